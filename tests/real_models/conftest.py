"""One server of SmolLM2-135M-Instruct for all tests of this folder, made on first use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.real_models.checkpoint import ensure_checkpoint
from tests.real_models.server import served
from tests.serving.conftest import vllm_python

__all__ = ["vllm_python"]


@pytest.fixture(scope="session")
def checkpoint(vllm_python: Path) -> Path:
    """The model's folder, in bfloat16."""
    return ensure_checkpoint(vllm_python)


@pytest.fixture(scope="session")
def address(
    vllm_python: Path,
    checkpoint: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[str]:
    """Where the model is served, as an OpenAI server."""
    log = tmp_path_factory.mktemp("server") / "vllm.log"
    with served(vllm_python, log) as address:
        yield address
