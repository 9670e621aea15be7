"""The manifest of a converted checkpoint: every file with its size and SHA-256, written last."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vprm_search.checkpoints.source import read_json
from vprm_search.errors import CheckpointError

MANIFEST_FILE = "vprm_conversion.json"
JOURNAL_FILE = "vprm_progress.json"
"""Only an unfinished conversion has this file."""

_VERSION = 1


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A file's name, its size in bytes and its SHA-256 in hex."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a conversion read and wrote. It holds no time: converting again gives the same bytes.

    `key` names the source's files, the options and the converter. `dropped` are tensors left out on
    purpose, `warnings` what the user should know.
    """

    key: str
    architecture: str
    language_model: str
    dtype: str
    tensors: int
    parameters: int
    sources: tuple[FileRecord, ...]
    files: tuple[FileRecord, ...]
    dropped: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the manifest as plain JSON."""
        return {"version": _VERSION, **asdict(self)}

    def write(self, directory: Path) -> None:
        """Write the manifest into a directory whose other files are complete."""
        text = json.dumps(self.to_json(), ensure_ascii=False, indent=1) + "\n"
        write_file(directory / MANIFEST_FILE, text.encode())


def read_manifest(directory: Path) -> Manifest | None:
    """Return a directory's manifest, or None if it has none. Raises `CheckpointError` if broken."""
    path = directory / MANIFEST_FILE
    if not path.is_file():
        return None
    data = read_json(path)
    try:
        if data.pop("version") != _VERSION:
            raise ValueError("it was written by another version of this program")
        for key in ("sources", "files"):
            data[key] = file_records(data[key])
        for key in ("dropped", "warnings"):
            data[key] = tuple(map(str, data[key]))
        return Manifest(**data)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} is no manifest of a conversion ({error}); convert the checkpoint again"
        ) from error


def file_records(entries: Sequence[dict[str, Any]]) -> tuple[FileRecord, ...]:
    """Return file records from JSON. Raises `TypeError` or `ValueError` for anything else."""
    found = tuple(FileRecord(**entry) for entry in entries)
    for record in found:
        plain = isinstance(record.name, str) and Path(record.name).name == record.name
        if not plain or type(record.bytes) is not int or len(record.sha256) != 64:
            raise ValueError(f"the entry {record} is damaged")
    return found


def check_converted(directory: str | Path, *, digests: bool = False) -> Manifest | None:
    """Compare a converted directory with its manifest; None if it was not made by a conversion.

    Sizes are compared always, SHA-256 digests (which reads every byte) on demand. Raises
    `CheckpointError` for an unfinished or damaged conversion.
    """
    directory = Path(directory)
    manifest = read_manifest(directory)
    if (directory / JOURNAL_FILE).exists():
        raise CheckpointError(
            f"{directory} is an unfinished conversion; run the same vprm-search convert again, it "
            "goes on where it stopped"
        )
    if manifest is None:
        return None
    for record in manifest.files:
        path = directory / record.name
        if not path.is_file() or path.stat().st_size != record.bytes:
            raise CheckpointError(
                f"{path} is missing or has another size than the {record.bytes} bytes in "
                f"{MANIFEST_FILE}; delete {directory} and convert again"
            )
        if digests and file_sha256(path) != record.sha256:
            raise CheckpointError(
                f"{path} was changed: its SHA-256 is not the one in {MANIFEST_FILE}; delete "
                f"{directory} and convert again"
            )
    return manifest


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_file(path: Path, content: bytes) -> FileRecord:
    """Write a file so that it is there whole or not at all, and return its record."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
    return FileRecord(path.name, len(content), hashlib.sha256(content).hexdigest())


def sync_directory(directory: Path) -> None:
    """Make renames inside a directory survive a power failure, where the platform can."""
    if os.name != "posix":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
