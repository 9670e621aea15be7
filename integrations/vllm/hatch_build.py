"""Packages the files of vprm_search that the plugin needs, as `vprm_search_vllm.shared`.

The contract, the prompt builder, the image rule and the image checks must be the same on both sides
of the wire. So they are not written twice: a build takes the very files of the repository, and
everything they import from vprm_search, and changes the package's name in their import lines,
nothing else. A build from a source distribution finds them already packaged.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ModuleNotFoundError:  # the tests use `write_shared` without building anything
    BuildHookInterface = object

NEEDED = (
    "vprm_search.errors",
    "vprm_search.ids",
    "vprm_search.images.normalise",
    "vprm_search.scoring.prompt.layout",
    "vprm_search.scoring.pixels",
    "vprm_search.scoring.families",
    "vprm_search.scoring.vllm.contract",
    "vprm_search.servers.access",
    "vprm_search.types",
)
SHARED = "vprm_search_vllm.shared"

_IMPORT = re.compile(r"^(\s*from )vprm_search((?:\.\w+)+)( import )", re.MULTILINE)
_OTHER_IMPORT = re.compile(r"^\s*(?:import vprm_search\b|from vprm_search import )", re.MULTILINE)


def shared_modules(source: Path) -> dict[str, Path]:
    """Return by name the modules in `NEEDED` and all they import from vprm_search."""
    found: dict[str, Path] = {}
    waiting = list(NEEDED)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        path = source.joinpath(*name.split(".")).with_suffix(".py")
        text = path.read_text(encoding="utf-8")
        if _OTHER_IMPORT.search(text):
            raise ValueError(f"{path}: write `from vprm_search.module import name` here")
        found[name] = path
        waiting += ["vprm_search" + match[2] for match in _IMPORT.finditer(text)]
    return found


def write_shared(source: Path, target: Path) -> None:
    """Write the package `shared` into `target` from the repository's root `source`."""
    target.mkdir(parents=True)
    (target / "__init__.py").write_text('"""Files of vprm_search, packaged by the build."""\n')
    for name, path in shared_modules(source).items():
        file = target.joinpath(*name.split(".")[1:]).with_suffix(".py")
        for package in reversed(file.relative_to(target).parents[:-1]):
            (target / package).mkdir(exist_ok=True)
            (target / package / "__init__.py").write_text("")
        text = _IMPORT.sub(rf"\g<1>{SHARED}\g<2>\g<3>", path.read_text(encoding="utf-8"))
        file.write_text(text, encoding="utf-8")


class CustomBuildHook(BuildHookInterface):
    """Adds `vprm_search_vllm/shared` to a wheel or a source distribution."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before it collects the files."""
        repository = Path(self.root).parents[1]
        self.scratch: Path | None = None
        if not (repository / "vprm_search" / "scoring" / "prompt" / "layout.py").is_file():
            return
        self.scratch = Path(tempfile.mkdtemp())
        write_shared(repository, self.scratch / "shared")
        build_data["force_include"][str(self.scratch / "shared")] = "vprm_search_vllm/shared"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Called by hatchling when the archive is written."""
        if self.scratch is not None:
            shutil.rmtree(self.scratch)
