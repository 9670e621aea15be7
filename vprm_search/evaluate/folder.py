"""The folder of a run: what its files were made with, and who may write into it."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vprm_search.compare.cell import write_atomically
from vprm_search.errors import ConfigError
from vprm_search.ids import digest

if sys.platform != "win32":
    import fcntl

VERSION = 1
MANIFEST = "manifest.json"
CALLED = "called"
Facts = Mapping[str, Any]
"""What something was made with, as plain JSON: equal facts give equal results."""


class RunFolder:
    """A folder with the files of one run.

    Its manifest says with what candidates, scores and grades were made. It moves with the files.

    Args:
        path: the folder.

    Raises:
        ConfigError: the manifest cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._manifest: dict[str, dict[str, Any]] = _read(path / MANIFEST)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out. Raises `ConfigError` if one is at work in the folder."""
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / "lock").open("a") as file:
            if sys.platform != "win32":
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError as error:
                    raise ConfigError(
                        f"{self.path}: another process is at work in this folder; wait for it, or "
                        "give another --out folder"
                    ) from error
            yield

    def facts(self, kind: str) -> dict[str, Any] | None:
        """Return what files of a kind were made with, None if there are none."""
        return self._manifest.get(kind)

    def kinds(self, family: str) -> list[str]:
        """Return the names X for which there are facts of "FAMILY X", in the order of coming."""
        whole = [kind.partition(" ") for kind in self._manifest]
        return [name for first, _, name in whole if first == family]

    def settle(self, kind: str, facts: Facts) -> str:
        """Write down what files of a kind are made with; return the key of their lines.

        Raises `ConfigError`, which names what differs, if they were made with something else.
        """
        wanted: dict[str, Any] = json.loads(json.dumps(dict(facts)))
        known = self._manifest.get(kind)
        if known is None:
            self._manifest[kind] = wanted
            whole = {"version": VERSION, **self._manifest}
            write_atomically(self.path / MANIFEST, json.dumps(whole, indent=1))
        elif key_of(known) != key_of(wanted):
            names = [n for n in {**known, **wanted} if known.get(n) != wanted.get(n)]
            told = ", ".join(f"{n} {known.get(n)!r}, not {wanted.get(n)!r}" for n in names)
            raise ConfigError(
                f"{self.path} was made with other settings ({kind}: {told}); give those, or "
                "another --out folder"
            )
        return key_of(wanted)


def key_of(facts: Facts) -> str:
    """Return a short name of facts; what something is called (`CALLED`) does not count."""
    known = {name: value for name, value in facts.items() if name != CALLED}
    return digest("facts", json.dumps(known, sort_keys=True)).hex()[:16]


def _read(path: Path) -> dict[str, dict[str, Any]]:
    if not path.exists():
        return {}
    try:
        data = dict(json.loads(path.read_text(encoding="utf-8")))
        version = data.pop("version", None)
        if not all(isinstance(facts, dict) for facts in data.values()):
            raise ValueError("not the manifest of a run")
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); use another --out folder") from error
    if version != VERSION:
        raise ConfigError(
            f"{path}: runs of version {version!r} are not known (expected {VERSION}); use the "
            "version of vprm-search that wrote it, or another --out folder"
        )
    return data
