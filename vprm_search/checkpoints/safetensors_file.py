"""The safetensors format, read and written as bytes: no tensor is ever built.

A file is an 8-byte little-endian length, a JSON header of that length, and the data. The header
names each tensor's dtype, shape and byte range. Conversion only renames tensors and regroups their
rows, so it copies byte ranges: every value stays what it was, bit for bit, and no tensor library
is needed. Source of the format: the safetensors repository.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vprm_search.errors import CheckpointError

DTYPE_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
"""Dtypes a checkpoint may hold; integers and 8-bit floats are other, quantised, checkpoints."""

TORCH_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
MAX_HEADER_BYTES = 100_000_000
"""As the safetensors library itself bounds it."""

_LENGTH = struct.Struct("<Q")
_ALIGNMENT = 8
_MAX_DIMENSIONS = 8


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


def read_shard(path: Path) -> Shard:
    """Read and check a file's header.

    The data must be covered without gap or overlap, must be as long as the header says, and every
    dtype must be one of `DTYPE_BYTES`. Raises `CheckpointError` otherwise.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(_LENGTH.size)
            length = _LENGTH.unpack(prefix)[0] if len(prefix) == _LENGTH.size else -1
            if not 2 <= length <= min(MAX_HEADER_BYTES, size - _LENGTH.size):
                raise CheckpointError(
                    f"{path} is no safetensors file, or was cut off: {size} bytes, header of "
                    f"{length}; download it again"
                )
            header = file.read(length)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    tensors = sorted(_tensors(path, header), key=lambda tensor: (tensor.start, tensor.stop))
    _check_coverage(path, tensors, size - _LENGTH.size - length)
    return Shard(path, prefix + header, tuple(tensors))


def make_header(tensors: Iterable[tuple[str, str, tuple[int, ...]]]) -> bytes:
    """Return length and JSON header for tensors `(name, dtype, shape)` whose data follow in order.

    The header is padded with blanks so that the data begin at a multiple of eight bytes.
    """
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, dtype, shape in tensors:
        stop = offset + math.prod(shape) * DTYPE_BYTES[dtype]
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, stop]}
        offset = stop
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return _LENGTH.pack(len(text)) + text


def _tensors(path: Path, header: bytes) -> list[Tensor]:
    try:
        entries = json.loads(header, object_pairs_hook=_unique)
        if not isinstance(entries, dict):
            raise TypeError("the header is no JSON object")
        entries.pop("__metadata__", None)
        return [_tensor(name, entry) for name, entry in entries.items()]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CheckpointError(f"{path}: the header is damaged: {error}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _tensor(name: str, entry: Any) -> Tensor:
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if dtype not in DTYPE_BYTES:
        raise ValueError(
            f"{name} has dtype {dtype!r}; only {', '.join(DTYPE_BYTES)} can be converted "
            "(take the checkpoint that is not quantised)"
        )
    numbers = [*shape, *offsets]
    if any(type(n) is not int or n < 0 for n in numbers) or len(offsets) != 2:
        raise ValueError(f"{name} has shape {shape} and bytes {offsets}")
    if len(shape) > _MAX_DIMENSIONS:
        raise ValueError(f"{name} has {len(shape)} dimensions")
    needed = math.prod(shape) * DTYPE_BYTES[dtype]
    if offsets[1] - offsets[0] != needed:
        raise ValueError(f"{name} of shape {shape} needs {needed} bytes, its range is {offsets}")
    return Tensor(name, dtype, tuple(shape), offsets[0], offsets[1])


def _check_coverage(path: Path, tensors: list[Tensor], size: int) -> None:
    at = 0
    for tensor in tensors:
        if tensor.start != at:
            raise CheckpointError(
                f"{path}: the data of {tensor.name} begin at byte {tensor.start}, expected {at}: "
                "the file has a gap or an overlap"
            )
        at = tensor.stop
    if at != size:
        raise CheckpointError(
            f"{path} is damaged or cut off: its header describes {at} bytes of data, it holds "
            f"{size}; download it again"
        )
