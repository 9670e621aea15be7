"""Weight files: what they hold, and the copy of one into native names and layouts.

A conversion only renames tensors and regroups their rows, so it copies byte ranges: every value
stays what it was, bit for bit. The safetensors library reads and checks the headers. It does not
do the copying, because `save_file` holds a whole file in memory (5 GB of VisualPRM's) and
`get_slice` cannot give bfloat16 without torch; the bytes go through a buffer of 4 MiB instead.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from vprm_search.checkpoints.original import Expected, OriginalConfig, Part
from vprm_search.checkpoints.output import CopiedShard, FileRecord
from vprm_search.checkpoints.source import CONFIG_FILE, INDEX_FILE, inside, weight_files
from vprm_search.errors import CheckpointError, need
from vprm_search.records import read_json

DTYPE_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
"""Dtypes a checkpoint may hold; integers and 8-bit floats are other, quantised, checkpoints."""

TORCH_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
CHUNK_BYTES = 4 << 20
Progress = Callable[[int], None]
"""Called with the number of source bytes just read."""

_LENGTH_BYTES = 8  # a file begins with the length of its JSON header, little-endian


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a file: `start` and `stop` count bytes behind the header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one row, that is of one index of the first axis."""
        return math.prod(self.shape[1:]) * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class Shard:
    """A safetensors file whose header has been read and checked; `tensors` are in data order."""

    path: Path
    head: bytes
    tensors: tuple[Tensor, ...]

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return len(self.head) + (self.tensors[-1].stop if self.tensors else 0)


@dataclass(frozen=True, slots=True)
class Source:
    """A directory with an original checkpoint; `shards` are in the order of their names."""

    directory: Path
    config: dict[str, Any]
    shards: tuple[Shard, ...]

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weight files."""
        return sum(shard.size for shard in self.shards)


def open_source(directory: Path) -> Source:
    """Read config, index and the headers of all weight files.

    Raises `CheckpointError` when the directory has no config or no safetensors weights (pickles
    are never opened), when the index names a file outside the directory or a tensor that is not
    where it says, or when a tensor occurs twice.
    """
    config = read_json(inside(directory, CONFIG_FILE))
    names, index = weight_files(directory)
    shards = tuple(read_shard(inside(directory, name)) for name in names)
    homes: dict[str, str] = {}
    for name, shard in zip(names, shards, strict=True):
        for tensor in shard.tensors:
            if tensor.name in homes:
                raise CheckpointError(
                    f"{directory}: the tensor {tensor.name} is in {homes[tensor.name]} and in "
                    f"{name}; one of the files does not belong here"
                )
            homes[tensor.name] = name
    wrong = sorted(name for name, home in index.items() if homes.get(name) != home)
    if wrong:
        raise CheckpointError(
            f"{directory}: {INDEX_FILE} names {len(wrong)} tensors that are not in the file it "
            f"gives, the first is {wrong[0]!r} in {index[wrong[0]]!r}; download the files again"
        )
    return Source(directory, config, shards)


def read_shard(path: Path) -> Shard:
    """Read a file's header, which the library checks: no gap, no overlap, nothing cut off.

    Raises:
        CheckpointError: the file is damaged, or holds another dtype than those of `DTYPE_BYTES`.
        OSError: it cannot be read.
    """
    need("safetensors", "local")
    from safetensors import SafetensorError, safe_open

    with path.open("rb"):
        pass  # the library would not tell a file that may not be read from a damaged one
    try:
        with safe_open(path, framework="np") as file:
            slices = [(name, file.get_slice(name)) for name in file.offset_keys()]
            found = [(name, part.get_dtype(), tuple(part.get_shape())) for name, part in slices]
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} is no whole safetensors file ({error}); download it again"
        ) from error
    with path.open("rb") as stream:
        prefix = stream.read(_LENGTH_BYTES)
        head = prefix + stream.read(int.from_bytes(prefix, "little"))
    tensors: list[Tensor] = []
    at = 0
    for name, dtype, shape in found:
        if dtype not in DTYPE_BYTES:
            raise CheckpointError(
                f"{path}: {name} has dtype {dtype!r}; only {', '.join(DTYPE_BYTES)} can be "
                "converted (take the checkpoint that is not quantised)"
            )
        stop = at + math.prod(shape) * DTYPE_BYTES[dtype]
        tensors.append(Tensor(name, dtype, shape, at, stop))
        at = stop
    return Shard(path, head, tuple(tensors))


def check_tensors(
    config: OriginalConfig, table: Mapping[str, Expected], shards: Sequence[Shard]
) -> tuple[str, ...]:
    """Check that the files hold exactly the tensors of the model, in the right shapes.

    Returns the names of stored tensors that are dropped on purpose: rotary frequencies, which are
    computed, and a tied head. Raises `CheckpointError` naming what is missing, extra or misshapen.
    """
    dropped: list[str] = []
    extra: list[str] = []
    misshapen: list[str] = []
    missing = set(table)
    for tensor in (tensor for shard in shards for tensor in shard.tensors):
        expected = table.get(tensor.name)
        missing.discard(tensor.name)
        if expected is None:
            computed = tensor.name.endswith("rotary_emb.inv_freq")
            (dropped if computed else extra).append(tensor.name)
        elif tensor.shape != expected.shape:
            misshapen.append(f"{tensor.name} is {tensor.shape}, not {expected.shape}")
        elif not expected.parts:
            dropped.append(tensor.name)
    missing -= {name for name, expected in table.items() if not expected.parts}
    for what, names in (("lack", missing), ("have too many", extra), ("misshape", misshapen)):
        if names:
            first = ", ".join(sorted(names)[:3])
            raise CheckpointError(
                f"the weight files {what} tensors of a {config.architecture} with this config: "
                f"{len(names)}, the first are {first}; the download is incomplete, or config.json "
                "belongs to other weights"
            )
    return tuple(sorted(dropped))


def tensor_chunks(shard: Shard, tensor: Tensor) -> Iterator[bytes]:
    """Yield the bytes of one tensor in pieces of at most `CHUNK_BYTES`."""
    with shard.path.open("rb") as stream:
        stream.seek(len(shard.head) + tensor.start)
        for at in range(tensor.start, tensor.stop, CHUNK_BYTES):
            yield stream.read(min(CHUNK_BYTES, tensor.stop - at))


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
    """Return length and JSON header; the data begin at a multiple of eight bytes."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for tensor, part in shard_parts(shard, table):
        stop = at + math.prod(part.shape) * DTYPE_BYTES[tensor.dtype]
        entries[part.name] = {
            "dtype": tensor.dtype,
            "shape": list(part.shape),
            "data_offsets": [at, stop],
        }
        at = stop
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text


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
    """Reads a source, counts and digests its bytes."""

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
    """Writes a target, counts and digests its bytes."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.state = hashlib.sha256()
        self.count = 0

    def put(self, data: bytes | bytearray | memoryview) -> None:
        self._stream.write(data)
        self.state.update(data)
        self.count += len(data)
