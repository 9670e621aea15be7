"""Copies one weight file into native names and layouts, as a stream."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from vprm_search.checkpoints.manifest import FileRecord
from vprm_search.checkpoints.mapping import Expected, Part
from vprm_search.checkpoints.safetensors_file import Shard, Tensor, make_header
from vprm_search.errors import CheckpointError

CHUNK_BYTES = 4 << 20
Progress = Callable[[int], None]
"""Called with the number of source bytes just read."""


@dataclass(frozen=True, slots=True)
class CopiedShard:
    """A finished file, the one it was made from, and the tensors in it."""

    source: FileRecord
    target: FileRecord


def shard_parts(shard: Shard, table: Mapping[str, Expected]) -> list[tuple[Tensor, Part]]:
    """Return the native tensors of a file in the order in which they are written."""
    return [
        (tensor, part)
        for tensor in shard.tensors
        if tensor.name in table
        for part in table[tensor.name].parts
    ]


def target_size(shard: Shard, table: Mapping[str, Expected]) -> int:
    """Return the bytes of the file that `copy_shard` will write."""
    return len(_header(shard, table)) + sum(
        (stop - start) * tensor.row_bytes
        for tensor, part in shard_parts(shard, table)
        for start, stop in part.rows
    )


def copy_shard(
    shard: Shard, table: Mapping[str, Expected], target: Path, progress: Progress
) -> CopiedShard:
    """Write `target`, which appears only when it is complete and on the disk.

    The source is read once from beginning to end. A tensor that only changes its name passes
    through a buffer of `CHUNK_BYTES`; one that is split is held whole, and nothing else is.
    Raises `CheckpointError` when the source changes meanwhile.
    """
    temporary = target.with_name(target.name + ".tmp")
    with shard.path.open("rb") as source, temporary.open("wb") as sink:
        reader, writer = _Reader(source, shard.path, progress), _Writer(sink)
        if reader.take(len(shard.head)) != shard.head:
            raise CheckpointError(f"{shard.path} changed while it was converted; start again")
        writer.put(_header(shard, table))
        for tensor in shard.tensors:
            expected = table.get(tensor.name)
            _copy_tensor(tensor, expected.parts if expected else (), reader, writer)
        if source.read(1):
            raise CheckpointError(f"{shard.path} grew while it was converted; start again")
        sink.flush()
        os.fsync(sink.fileno())
    temporary.replace(target)
    return CopiedShard(
        FileRecord(shard.path.name, reader.count, reader.state.hexdigest()),
        FileRecord(target.name, writer.count, writer.state.hexdigest()),
    )


def _header(shard: Shard, table: Mapping[str, Expected]) -> bytes:
    parts = shard_parts(shard, table)
    return make_header((part.name, tensor.dtype, part.shape) for tensor, part in parts)


def _copy_tensor(tensor: Tensor, parts: tuple[Part, ...], reader: _Reader, writer: _Writer) -> None:
    size = tensor.stop - tensor.start
    renamed_only = len(parts) == 1 and parts[0].rows == ((0, tensor.shape[0]),)
    if renamed_only or not parts:
        while size:
            chunk = reader.take(min(size, CHUNK_BYTES))
            size -= len(chunk)
            if parts:
                writer.put(chunk)
        return
    data = memoryview(reader.take(size))
    for part in parts:
        for start, stop in part.rows:
            writer.put(data[start * tensor.row_bytes : stop * tensor.row_bytes])


class _Reader:
    def __init__(self, stream: BinaryIO, path: Path, progress: Progress) -> None:
        self._stream, self._path, self._progress = stream, path, progress
        self.state = hashlib.sha256()
        self.count = 0

    def take(self, size: int) -> bytearray:
        data = bytearray(size)
        view = memoryview(data)
        while len(view):
            count = self._stream.readinto(view[:CHUNK_BYTES])  # type: ignore[attr-defined]
            if not count:
                raise CheckpointError(f"{self._path} was cut off while it was converted")
            self.state.update(view[:count])
            self.count += count
            view = view[count:]
            self._progress(count)
        return data


class _Writer:
    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.state = hashlib.sha256()
        self.count = 0

    def put(self, data: bytes | bytearray | memoryview) -> None:
        self._stream.write(data)
        self.state.update(data)
        self.count += len(data)
