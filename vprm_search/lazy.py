"""Public names of a package that are loaded when they are first used.

A package's stub, `__init__.pyi`, lists them; type checkers read the same file.
"""

from __future__ import annotations

import ast
import importlib
import pkgutil
import sys
from collections.abc import Callable
from typing import Any

_EXTRAS = dict.fromkeys(("torch", "transformers", "tokenizers", "safetensors", "numpy"), "local")
_EXTRAS["langchain"] = "agents"


def names_in_stub(
    package: str,
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return `__getattr__`, `__dir__` and `__all__` of a package, as its stub has them.

    A missing library that belongs to an extra becomes a `MissingDependencyError`.
    """
    stub = ast.parse(pkgutil.get_data(package, "__init__.pyi") or b"")
    homes = {
        alias.name: str(node.module)
        for node in stub.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }

    def load(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        try:
            value = getattr(importlib.import_module(homes[name]), name)
        except ModuleNotFoundError as error:
            raise _explained(error) from error
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes})

    return load, names, list(homes)


def _explained(error: ModuleNotFoundError) -> ImportError:
    from vprm_search.errors import MissingDependencyError

    library = (error.name or "").partition(".")[0]
    extra = _EXTRAS.get(library)
    return error if extra is None else MissingDependencyError(library, extra)
