"""The folder of a run: what its files were made with, and who may write into it."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from vprm_search.errors import ConfigError
from vprm_search.ids import digest

if sys.platform != "win32":
    import fcntl

VERSION = 1
MANIFEST = "manifest.json"
COMPARISON = "comparison.json"
"""What `vprm-search compare` wrote in its place before it was a part of this."""
SEARCHES, MODELS = "searches", "models"
CALLED = "called"
Facts = Mapping[str, Any]
"""What something was made with, as plain JSON: equal facts give equal results."""


class RunFolder:
    """A folder with the files of one run.

    Its manifest says with what candidates, scores and grades were made. It moves with the files.

    Args:
        path: the folder.

    Raises:
        ConfigError: the manifest cannot be read, or there is a file in the folder's place.
    """

    def __init__(self, path: Path) -> None:
        if path.exists() and not path.is_dir():
            raise ConfigError(f"{path} is no folder; give another --out folder")
        self.path = path
        self._manifest: dict[str, dict[str, Any]] = _read(path)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out. Raises `ConfigError` if one is at work in the folder."""
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / "lock").open("a") as file:
            try:
                hold(file, wait=False)
            except OSError as error:
                raise ConfigError(
                    f"{self.path}: another process is at work in this folder; wait for it, or "
                    "give another --out folder"
                ) from error
            self._manifest = _read(self.path)  # another process may have written it since
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

        Raises as `check`.
        """
        wanted = self.check(kind, facts)
        if kind not in self._manifest:
            self._manifest[kind] = wanted
            whole = {"version": VERSION, **self._manifest}
            write_atomically(self.path / MANIFEST, json.dumps(whole, indent=1))
        return key_of(wanted)

    def forget(self, *kinds: str) -> None:
        """Let other facts be settled for files that were not made yet."""
        for kind in kinds:
            self._manifest.pop(kind, None)

    def check_some(self, kind: str, some: Facts) -> None:
        """Raise as `check` if files of the kind were made with others of these facts."""
        known = self.facts(kind)
        if known is not None:
            self.check(kind, {**known, **some})

    def check(self, kind: str, facts: Facts) -> dict[str, Any]:
        """Return facts as they would be written down, and write nothing.

        Raises `ConfigError`, which names what differs, if files of the kind were made with
        something else.
        """
        wanted: dict[str, Any] = json.loads(json.dumps(dict(facts)))
        known = self._manifest.get(kind, wanted)
        if key_of(known) != key_of(wanted):
            there, asked = (_flat(_counting(facts)) for facts in (known, wanted))
            told = ", ".join(
                f"{name} {_shown(there, name)}, not {_shown(asked, name)}"
                for name in {**there, **asked}
                if there.get(name, _UNKNOWN) != asked.get(name, _UNKNOWN)
            )
            raise ConfigError(
                f"{self.path} was made with other settings ({kind}: {told}); give those, or "
                "another --out folder"
            )
        return wanted


def key_of(facts: Facts) -> str:
    """Return a short name of facts; what something is called (`CALLED`) does not count."""
    return digest("facts", json.dumps(_counting(facts), sort_keys=True)).hex()[:16]


def _counting(facts: Facts) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if name != CALLED}


def write_atomically(path: Path, text: str) -> None:
    """Write a file, and its folder, so that it is never there in part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    partial.write_text(text)
    partial.replace(path)


def hold(file: IO[Any], *, wait: bool = True) -> None:
    """Lock an open file until it is closed; on Windows, which has no such lock, do nothing.

    Raises `OSError` if another process holds it and this one is not to wait.
    """
    if sys.platform != "win32":
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)


_UNKNOWN = object()
_SHOWN = 60  # characters; a prompt is longer


def _shown(facts: Facts, name: str) -> str:
    text = repr(facts[name]) if name in facts else "unknown"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _flat(facts: Facts, before: str = "") -> dict[str, Any]:
    """Return nested facts by their dotted names."""
    flat: dict[str, Any] = {}
    for name, value in facts.items():
        inside = isinstance(value, Mapping)
        flat |= _flat(value, f"{before}{name}.") if inside else {f"{before}{name}": value}
    return flat


def _read(folder: Path) -> dict[str, dict[str, Any]]:
    path = folder / MANIFEST
    if not path.exists() and (folder / COMPARISON).exists():
        path = folder / COMPARISON
    if not path.exists():
        return {}
    try:
        data = dict(json.loads(path.read_text(encoding="utf-8")))
        if path.name == COMPARISON:
            asked = {"world": data["world"], "run_seed": data["run_seed"]}
            models = {MODELS: data["models"]} if "models" in data else {}
            data = {"version": VERSION, SEARCHES: asked, **models}
        version = data.pop("version", None)
        if not all(isinstance(facts, dict) for facts in data.values()):
            raise ValueError("not the manifest of a run")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); use another --out folder") from error
    if version != VERSION:
        raise ConfigError(
            f"{path}: runs of version {version!r} are not known (expected {VERSION}); use the "
            "version of vprm-search that wrote it, or another --out folder"
        )
    return data
