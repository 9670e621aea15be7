"""Which files these are: digests of their content, whatever their dates and places.

The in-process scorer, the converter and the vLLM plugin name checkpoints with these functions, so a
copy keeps its score caches and calibrations, `touch` changes nothing, and one changed byte changes
the name. Reading 16 GB takes seconds, so digests of large files are remembered beside them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from vprm_search.ids import digest

DIGESTS_FILE = ".vprm_digests"
"""Beside large files: their digests, with the size and the times that they had when read."""

_LARGE_BYTES = 256 << 20
_SETTLED_NS = 100_000_000  # a file changed a moment ago may change again within one clock tick
_READERS = 4


def checkpoint_digest(directory: Path) -> bytes:
    """Return the digest of a checkpoint's weights, configuration and tokenizer files, 32 bytes.

    Args:
        directory: of the checkpoint; its `*.safetensors`, `*.json` and `*.model` files count, by
            name and content, and `merges.txt` where no `tokenizer.json` takes its place.

    Raises:
        OSError: a file cannot be read.
    """
    files = sorted([*directory.glob("*.safetensors"), *directory.glob("*.json")])
    files += sorted(directory.glob("*.model"))
    if not (directory / "tokenizer.json").is_file():
        files += directory.glob("merges.txt")  # the tokenizer is made from it and `vocab.json`
    state = hashlib.sha256()
    for file, part in zip(files, file_digests(files), strict=True):
        state.update(digest(file.name, part))
    return state.digest()


def file_digests(files: Iterable[Path]) -> list[bytes]:
    """Return the SHA-256 of every file's content, several files at a time.

    Files of more than 256 MiB whose digest is in `DIGESTS_FILE` beside them, with the size and the
    times of change they still have, are not read again; where that file cannot be written, they
    are read every time.

    Args:
        files: paths; links are followed.

    Raises:
        OSError: a file cannot be read.
    """
    with ThreadPoolExecutor(_READERS) as readers:
        return list(readers.map(_file_digest, files))


def _file_digest(path: Path) -> bytes:
    stamp = _stamp(path)
    large = stamp[0] > _LARGE_BYTES
    known = _remembered(path, stamp) if large else None
    if known is not None:
        return known
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").digest()
    if large and stamp == _stamp(path):
        _remember(path, stamp, found)
    return found


def _stamp(path: Path) -> list[int]:
    """Return the size and the times of change; the second cannot be set, so no change hides."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def _remembered(path: Path, stamp: list[int]) -> bytes | None:
    """Return a file's digest if it was read with this stamp; a damaged memory is none."""
    try:
        *seen, found = _entries(path.parent)[path.name]
        return bytes.fromhex(found) if seen == stamp and len(found) == 64 else None
    except (KeyError, TypeError, ValueError):
        return None


def _remember(path: Path, stamp: list[int], found: bytes) -> None:
    if time.time_ns() - max(stamp[1:]) < _SETTLED_NS:
        return
    entries = {**_entries(path.parent), path.name: [*stamp, found.hex()]}
    target = path.parent / DIGESTS_FILE
    temporary = target.with_name(f"{DIGESTS_FILE}.{os.getpid()}-{path.name}.tmp")
    with contextlib.suppress(OSError):  # a read-only place: read again the next time
        try:
            temporary.write_text(json.dumps(entries), encoding="utf-8")
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)


def _entries(directory: Path) -> dict[str, Any]:
    """Return `[size, time, time, hex digits]` by file name, as they were stored."""
    try:
        data = json.loads((directory / DIGESTS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}
