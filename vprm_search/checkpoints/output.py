"""The folder a conversion writes: its manifest, and how it appears whole or not at all.

The target appears by one rename when everything in it is complete. Until then all lies in
`OUT.partial`, where every finished weight file is entered in a journal with its digest. A
conversion that was killed goes on with the first file that is not in the journal. The manifest
names every file with its size and SHA-256 and is written last.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from vprm_search.errors import CheckpointError, need
from vprm_search.records import read_json

MANIFEST_FILE = "vprm_conversion.json"
JOURNAL_FILE = "vprm_progress.json"
"""Only an unfinished conversion has this file."""

SPARE_BYTES = 64 << 20
"""Left free on the disk beside the weights, for tokenizer, JSON files and others."""

_VERSION = 1
_STRICT = ConfigDict(extra="forbid", strict=True)


def _plain_name(name: str) -> str:
    if Path(name).name != name:
        raise ValueError("a file in the same directory is needed")
    return name


@dataclass(frozen=True, slots=True, config=_STRICT)
class FileRecord:
    """A file's name, its size in bytes and its SHA-256 in hex."""

    name: Annotated[str, AfterValidator(_plain_name)]
    bytes: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


@dataclass(frozen=True, slots=True, config=_STRICT)
class CopiedShard:
    """A finished weight file and the one it was made from."""

    source: FileRecord
    target: FileRecord


@dataclass(frozen=True, slots=True, config=_STRICT)
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
    version = data.pop("version", None)
    try:
        if version != _VERSION:
            raise ValueError(f"it has version {version}, this program reads {_VERSION}")
        return TypeAdapter(Manifest).validate_json(json.dumps(data))
    except ValueError as error:  # pydantic's is one, too
        raise CheckpointError(
            f"{path} is no manifest of a conversion ({error}); convert the checkpoint again"
        ) from error


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


class Staging:
    """`OUT.partial` of one conversion; `key` names the source and the options."""

    def __init__(self, out: Path, key: str) -> None:
        self.out = out
        self.directory = out.with_name(out.name + ".partial")
        self._key = key
        self._done: dict[str, CopiedShard] = {}

    def open(self) -> None:
        """Create the directory, or take over what an earlier run of the same conversion left.

        Of an earlier run only files whose digests are those in the journal are kept. A directory
        that is no unfinished conversion is never touched: `CheckpointError`.
        """
        if self.directory.exists():
            journal = self.directory / JOURNAL_FILE
            ours = journal.is_file() or (self.directory / MANIFEST_FILE).is_file()
            if not ours and any(self.directory.iterdir()):
                raise CheckpointError(
                    f"{self.directory} is in the way and is no unfinished conversion; move it away"
                )
            for shard in self._read_journal(journal):
                path = self.directory / shard.target.name
                if path.is_file() and file_sha256(path) == shard.target.sha256:
                    self._done[shard.target.name] = shard
            for path in self.directory.iterdir():
                if path.name not in self._done and path != journal:
                    path.unlink()
        self.directory.mkdir(parents=True, exist_ok=True)
        self._write_journal()

    def complete(self) -> Manifest | None:
        """Return the manifest of an earlier run that was killed just before the last rename."""
        if not self.directory.is_dir() or (self.directory / JOURNAL_FILE).exists():
            return None
        try:
            manifest = check_converted(self.directory, digests=True)
        except CheckpointError:
            return None
        return manifest if manifest is not None and manifest.key == self._key else None

    def finished(self, name: str) -> CopiedShard | None:
        """Return the record of a weight file that an earlier run finished."""
        return self._done.get(name)

    def add(self, shard: CopiedShard) -> None:
        """Enter a finished weight file into the journal."""
        self._done[shard.target.name] = shard
        self._write_journal()

    def require_space(self, needed: int) -> None:
        """Raise `CheckpointError` unless the disk has room for `needed` more bytes."""
        free = shutil.disk_usage(self.directory).free
        if free < needed + SPARE_BYTES:
            raise CheckpointError(
                f"{self.out.parent} has {free:,} bytes free, {needed + SPARE_BYTES:,} are needed; "
                "free some space or choose another place"
            )

    def write(self, name: str, content: bytes) -> FileRecord:
        """Write a small file."""
        return write_file(self.directory / name, content)

    def publish(self) -> None:
        """Remove the journal and rename the directory to the target."""
        (self.directory / JOURNAL_FILE).unlink(missing_ok=True)
        sync_directory(self.directory)
        if self.out.is_dir():
            self.out.rmdir()  # the caller has seen that it is empty
        self.directory.rename(self.out)
        sync_directory(self.out.parent)

    def _read_journal(self, path: Path) -> list[CopiedShard]:
        """Return the finished files of an earlier run, none if it was another conversion."""
        try:
            data = read_json(path)
            done = data.get("done") if data.get("key") == self._key else []
            return TypeAdapter(list[CopiedShard]).validate_json(json.dumps(done))
        except (CheckpointError, ValidationError):
            return []

    def _write_journal(self) -> None:
        done = [asdict(shard) for shard in self._done.values()]
        text = json.dumps({"key": self._key, "done": done}, indent=1)
        write_file(self.directory / JOURNAL_FILE, text.encode())


@contextmanager
def exclusive(out: Path) -> Iterator[None]:
    """Hold the lock `OUT.lock`: other processes that convert to the same place wait.

    The file is gone afterwards, whether the conversion succeeded or not; who waited on it notices
    and takes a lock of its own. The system frees the lock of a process that dies.
    """
    need("filelock", "local")
    from filelock import FileLock

    path = out.with_name(out.name + ".lock")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=out.parent):
        pass  # where nothing can be written, the lock might be waited for without end
    with FileLock(path):
        try:
            yield
        finally:
            with suppress(OSError):  # some systems keep a file that is open
                path.unlink()
