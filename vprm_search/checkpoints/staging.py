"""The unfinished conversion: a directory beside the target, and a journal of what is done in it.

The target appears by one rename when everything in it is complete. Until then all lies in
`OUT.partial`, where every finished weight file is entered in a journal with its digest. A
conversion that was killed goes on with the first file that is not in the journal.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from vprm_search.checkpoints.copy_shard import CopiedShard
from vprm_search.checkpoints.manifest import (
    JOURNAL_FILE,
    MANIFEST_FILE,
    FileRecord,
    Manifest,
    check_converted,
    file_records,
    file_sha256,
    sync_directory,
    write_file,
)
from vprm_search.checkpoints.source import read_json
from vprm_search.errors import CheckpointError, MissingDependencyError

SPARE_BYTES = 64 << 20
"""Left free on the disk beside the weights, for tokenizer, JSON files and others."""


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
            if data.get("key") != self._key:
                return []
            return [CopiedShard(*file_records([e["source"], e["target"]])) for e in data["done"]]
        except (CheckpointError, KeyError, TypeError, ValueError):
            return []

    def _write_journal(self) -> None:
        done = [
            {"source": _plain(shard.source), "target": _plain(shard.target)}
            for shard in self._done.values()
        ]
        text = json.dumps({"key": self._key, "done": done}, indent=1)
        write_file(self.directory / JOURNAL_FILE, text.encode())


def _plain(record: FileRecord) -> dict[str, Any]:
    return {"name": record.name, "bytes": record.bytes, "sha256": record.sha256}


@contextmanager
def exclusive(out: Path) -> Iterator[None]:
    """Hold the lock `OUT.lock`: other processes that convert to the same place wait.

    The system frees the lock of a process that dies. The file is removed after success only; a
    process that waited on it then finds the finished target.
    """
    try:
        from filelock import FileLock
    except ImportError as error:
        raise MissingDependencyError("filelock", "local") from error
    path = out.with_name(out.name + ".lock")
    out.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path):
        yield
        with suppress(OSError):  # some systems keep a file that is open
            path.unlink()
