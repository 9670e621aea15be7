"""The plugin's own parts, importable without vLLM."""

from __future__ import annotations

import base64
import importlib
import runpy
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vprm_search.images import normalise_image
from vprm_search.types import ImageData

PLUGIN = Path(__file__).resolve().parents[2] / "integrations" / "vllm"
REPOSITORY = PLUGIN.parents[1]


@pytest.fixture(scope="module")
def plugin_package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The package as a build makes it, importable in this process."""
    root = tmp_path_factory.mktemp("plugin")
    shutil.copytree(PLUGIN / "vprm_search_vllm", root / "vprm_search_vllm")
    build = runpy.run_path(str(PLUGIN / "hatch_build.py"))
    build["write_shared"](REPOSITORY, root / "vprm_search_vllm" / "shared")
    sys.path.insert(0, str(root))
    yield
    sys.path.remove(str(root))
    for name in [name for name in sys.modules if name.startswith("vprm_search_vllm")]:
        del sys.modules[name]


def load(name: str) -> Any:
    return importlib.import_module(f"vprm_search_vllm.{name}")


def picture(width: int, height: int, seed: int = 0) -> ImageData:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return normalise_image(Image.fromarray(pixels))


def in_base64(data: bytes) -> str:
    """Return what a request carries."""
    return base64.b64encode(data).decode()
