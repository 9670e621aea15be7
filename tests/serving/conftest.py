"""One vLLM server for all tests of this folder, in an environment that is built on first use."""

from __future__ import annotations

import fcntl
import json
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.serving.install_vllm import ensure_environment
from tests.serving.plugin_parts import plugin_package as plugin_package
from tests.serving.server import PrmServer, free_port
from vprm_search.cli.vllm_server import ServeOptions
from vprm_search.scoring.transformers_scorer import TransformersScorer
from vprm_search.tiny.weights import weights_path

SERVE = ServeOptions(enforce_eager=True, dtype="float32", max_images=4, on_cpu=True)

LIMITS = {"max_body_bytes": 8_000_000, "max_tokens": 100_000}
"""Lower than the defaults, so that a test can reach them."""


@pytest.fixture(scope="session")
def vllm_python() -> Iterator[Path]:
    """The interpreter with vLLM and the plugin; held by one test process of the machine at a time.

    A server takes 3 GB and both cores of a small machine: run these tests in one process.
    """
    with (Path(tempfile.gettempdir()) / "vprm-search-serving-tests.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield ensure_environment()


@pytest.fixture(scope="session")
def prm_server(vllm_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrmServer]:
    """The trained tiny reward model, served in float32; running whenever a test begins."""
    options = replace(SERVE, port=free_port())
    folder = tmp_path_factory.mktemp("server")
    limits = {"VPRM_SEARCH_VLLM_LIMITS": json.dumps(LIMITS)}
    server = PrmServer(weights_path("prm"), vllm_python, folder, options, limits)
    server.ensure_running()
    print(f"\nvLLM was ready after {server.start_seconds:.0f} s")
    yield server
    server.stop()


@pytest.fixture(autouse=True)
def _running(request: pytest.FixtureRequest) -> None:
    """Start the server again when a test before this one has stopped it."""
    if "prm_server" in request.fixturenames:
        request.getfixturevalue("prm_server").ensure_running()


@pytest.fixture(scope="session")
def in_process() -> TransformersScorer:
    """The same model in this process, in float32: the oracle of the server's scores."""
    return TransformersScorer.from_pretrained(weights_path("prm"), device="cpu", dtype="float32")
