"""Importing the package is cheap: heavy libraries are loaded by what needs them."""

from __future__ import annotations

import importlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import vprm_search

LAZY_ROOMS = ("agents", "checkpoints", "graph", "images", "scoring", "tiny")
HEAVY = ("torch", "transformers", "vllm", "PIL", "langgraph", "langchain_core", "networkx", "numpy")

_LOADED = """
import sys
before = set(sys.modules)
import {module}
print(*sorted({{name.partition(".")[0] for name in set(sys.modules) - before}}))
"""


def _python(code: str) -> list[str]:
    """Run `code` in a new interpreter and return the lines it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120
    )
    return done.stdout.splitlines()


def test_import_loads_the_standard_library_alone() -> None:
    loaded = set(_python(_LOADED.format(module="vprm_search"))[0].split())
    assert "vprm_search" in loaded
    assert loaded.isdisjoint(HEAVY)
    assert loaded - set(sys.stdlib_module_names) == {"vprm_search"}


def test_the_doubles_load_no_model_library() -> None:
    loaded = set(_python(_LOADED.format(module="vprm_search.testing"))[0].split())
    assert "langchain_core" in loaded
    assert loaded.isdisjoint({"torch", "transformers", "vllm", "langgraph", "numpy", "networkx"})


@pytest.mark.parametrize("name", vprm_search.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(vprm_search, name) is not None
    assert name in dir(vprm_search)


def test_public_names_are_few_and_an_unknown_one_is_an_attribute_error() -> None:
    assert len(vprm_search.__all__) <= 48
    with pytest.raises(AttributeError, match="no attribute 'beam_search'"):
        _ = vprm_search.beam_search


def test_every_strategy_and_selector_is_public() -> None:
    from vprm_search import search

    rules = {
        name
        for name, kind in vars(search).items()
        if isinstance(kind, type) and (hasattr(kind, "plan") or hasattr(kind, "select"))
    }
    assert rules <= set(vprm_search.__all__)
    assert {"BeamSearch", "MCTS", "Knockout", "Strategy"} <= rules


def test_the_reference_names_everything_public() -> None:
    page = (Path(__file__).parents[1] / "docs" / "reference.md").read_text()
    shown = set(re.findall(r"^::: (\S+)$", page, re.MULTILINE))
    for name in vprm_search.__all__:
        home = getattr(vprm_search, name).__module__
        assert {f"{home}.{name}", home} & shown, name
    for place in shown:
        module, _, name = place.rpartition(".")
        found = hasattr(importlib.import_module(module), name)
        assert found or importlib.util.find_spec(place), place


@pytest.mark.parametrize(
    "package", ["vprm_search", *(f"vprm_search.{room}" for room in LAZY_ROOMS)]
)
def test_the_names_that_type_checkers_see_are_there_at_run_time(package: str) -> None:
    module = importlib.import_module(package)
    names: dict[str, object] = {}
    exec(Path(str(module.__file__)).with_suffix(".pyi").read_text(), names)
    names = {name: value for name, value in names.items() if not name.startswith("_")}
    assert set(names) == set(module.__all__)
    for name, value in names.items():
        assert getattr(module, name) is value
        assert name in dir(module)
