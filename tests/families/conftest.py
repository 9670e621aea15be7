"""One random checkpoint per family for the whole session, written when first asked for."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.families.tiny_models import write_family, write_settings


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a family's directory, with the `vprm.json` that names it; copy it to change it."""
    root = tmp_path_factory.mktemp("families")
    return cache(lambda name: write_settings(write_family(root / name, name), name))
