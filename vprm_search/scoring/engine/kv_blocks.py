"""Keys and values of many tokens in blocks of memory: rows come and go, bounded by bytes.

A row is one token: its keys and values of every layer. Blocks are taken from the device when rows
need them and given back when their last row is freed, so an idle pool holds no memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

import numpy as np
import torch
from torch import Tensor

from vprm_search.scoring.engine.token_tree import Rows

BLOCK_ROWS = 256
_ROWS_AT_ONCE = 4096  # bounds the copy a pass needs while its rows are put away

LayerRows = Sequence[tuple[Tensor, Tensor]]
"""Keys and values of one pass, per layer two tensors `[1, kv_heads, rows, head_dim]`."""


@dataclass(slots=True)
class _Block:
    """A run of slots.

    `rows` holds, for every run of layers on one device, `[layers, 2, kv_heads, rows, head_dim]`;
    `free` the unused offsets, ascending.
    """

    rows: list[Tensor]
    free: Rows


@dataclass(frozen=True, slots=True)
class ReadRows:
    """Rows copied out of a pool, as `_Block.rows`; `runs` counts the layers of each tensor."""

    rows: Sequence[Tensor]
    runs: Sequence[int]

    def layer(self, number: int) -> tuple[Tensor, Tensor]:
        """Return keys and values of one layer, each `[1, kv_heads, rows, head_dim]`."""
        for tensor, count in zip(self.rows, self.runs, strict=True):
            if number < count:
                return tensor[number, 0][None], tensor[number, 1][None]
            number -= count
        raise IndexError(f"no layer {number} behind the last one")


class KVBlocks:
    """Stores rows in numbered slots and never holds more than `max_bytes`."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.row_bytes = 0  # not known before the first rows come
        self._block_rows = BLOCK_ROWS
        self._runs: list[int] = []
        self._blocks: dict[int, _Block] = {}

    @property
    def held_bytes(self) -> int:
        """The memory of all blocks."""
        return len(self._blocks) * self._block_rows * self.row_bytes

    @property
    def used_rows(self) -> int:
        """How many slots hold a row."""
        return sum(self._block_rows - len(block.free) for block in self._blocks.values())

    @property
    def capacity(self) -> int:
        """How many rows fit into `max_bytes`; 0 before the first rows came."""
        block = self.row_bytes * self._block_rows
        return self.max_bytes // block * self._block_rows if block else 0

    def measure(self, layers: LayerRows) -> None:
        """Learn the size of a row from the first rows; a small pool has one smaller block."""
        if self.row_bytes:
            return
        self._runs = [len(list(run)) for _, run in groupby(key.device for key, _ in layers)]
        self.row_bytes = sum((k.nbytes + v.nbytes) // k.shape[2] for k, v in layers)
        self._block_rows = max(1, min(BLOCK_ROWS, self.max_bytes // self.row_bytes))

    def put(self, layers: LayerRows, wanted: Rows) -> Rows:
        """Store the rows `wanted` of a pass; return the slot of each.

        The caller has made room: `used_rows` stays within `capacity`. Lowest slots are taken first.
        """
        slots = self._take(len(wanted), layers)
        for start in range(0, len(wanted), _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            for run, stacked in enumerate(self._stacked(layers, wanted[part])):
                for number, at, offsets in self._by_block(slots[part]):
                    rows = self._blocks[number].rows[run]
                    rows[:, :, :, as_index(offsets, rows.device)] = stacked[:, :, :, at]
        return slots

    def read(self, slots: Rows) -> ReadRows:
        """Return rows, whose slots ascend, in one piece."""
        pieces: list[list[Tensor]] = [[] for _ in self._runs]
        for number, _, offsets in self._by_block(slots):
            for piece, rows in zip(pieces, self._blocks[number].rows, strict=True):
                piece.append(rows[:, :, :, as_index(offsets, rows.device)])
        return ReadRows([torch.cat(piece, dim=3) for piece in pieces], self._runs)

    def free(self, slots: Rows) -> None:
        """Forget rows; a block without rows gives its memory back."""
        for number, _, offsets in self._by_block(np.sort(slots)):
            block = self._blocks[number]
            block.free = np.union1d(block.free, offsets)
            if len(block.free) == self._block_rows:
                del self._blocks[number]

    def clear(self) -> None:
        """Forget everything."""
        self._blocks.clear()

    def _stacked(self, layers: LayerRows, wanted: Rows) -> Iterator[Tensor]:
        first = 0
        for count in self._runs:
            run = layers[first : first + count]
            index = as_index(wanted, run[0][0].device)
            yield torch.stack([torch.cat((k[:, :, index], v[:, :, index])) for k, v in run])
            first += count

    def _take(self, count: int, layers: LayerRows) -> Rows:
        taken = [np.empty(0, dtype=np.int64)]
        number = 0
        while count:
            block = self._blocks.get(number)
            if block is None:
                block = self._blocks[number] = self._new_block(layers)
            offsets, block.free = block.free[:count], block.free[count:]
            taken.append(offsets + number * self._block_rows)
            count -= len(offsets)
            number += 1
        return np.concatenate(taken)

    def _new_block(self, layers: LayerRows) -> _Block:
        rows = []
        first = 0
        for count in self._runs:
            key = layers[first][0]
            shape = (count, 2, key.shape[1], self._block_rows, key.shape[3])
            rows.append(key.new_empty(shape))
            first += count
        return _Block(rows, np.arange(self._block_rows, dtype=np.int64))

    def _by_block(self, slots: Rows) -> Iterator[tuple[int, slice, Rows]]:
        """Yield block, place in `slots` and offsets of every run of slots in one block."""
        numbers = slots // self._block_rows
        cuts = [0, *(np.flatnonzero(np.diff(numbers)) + 1).tolist(), len(slots)]
        for start, stop in pairwise(cuts):
            if stop > start:
                part = slice(start, stop)
                yield int(numbers[start]), part, slots[part] - numbers[start] * self._block_rows


def as_index(rows: Rows, device: torch.device | str) -> Tensor | slice:
    """Return rows as a slice where they are contiguous, so that they need not be copied."""
    if len(rows) and (np.diff(rows) == 1).all():
        return slice(int(rows[0]), int(rows[-1]) + 1)
    return torch.from_numpy(rows).to(device)
