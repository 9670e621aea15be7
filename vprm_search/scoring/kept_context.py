"""What a pass has computed, kept for the next one: a search adds steps to paths it scored before.

The keys and values of a token depend on the tokens before it only, so those of a surviving path
serve the next round unchanged, and a round costs its new steps alone. Only the rows of a group's
latest tree are kept: what a search pruned is dropped with the next round.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vprm_search.scoring.token_tree import Rows, TokenTree

_ROOT = -1


@dataclass(slots=True, eq=False)
class LayerStore:
    """The keys and values of one pass, `[1, kv_heads, rows, head_dim]` per layer."""

    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    rows: int = 0


@dataclass(slots=True)
class _Group:
    """A group's latest tree: `(row of the parent, token) -> row`, and P('+') where it was read."""

    store: LayerStore
    children: dict[tuple[int, int], int]
    plus: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class KnownRows:
    """Which rows of a tree need no computing.

    `slots` is the place of every row among keys and values: first the `count` known rows, then the
    new ones, both in tree order. `plus` is P('+') of known rows that were read, else NaN.
    """

    slots: Rows
    count: int
    plus: NDArray[np.float64]
    sources: tuple[tuple[LayerStore, Tensor], ...]

    @property
    def new_rows(self) -> Rows:
        """The rows to compute, in order."""
        return np.flatnonzero(self.slots >= self.count)

    def prepend(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return the layer's keys and values with those of the known rows before the new ones."""
        if not self.count:
            return key, value
        keys = [store.keys[layer][:, :, rows] for store, rows in self.sources]
        values = [store.values[layer][:, :, rows] for store, rows in self.sources]
        return torch.cat([*keys, key], dim=2), torch.cat([*values, value], dim=2)


class KeptContext:
    """Keeps the latest pass of each group, at most about `max_tokens` rows in all; 0 keeps none."""

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._groups: OrderedDict[Hashable, _Group] = OrderedDict()

    def clear(self) -> None:
        """Drop everything, for instance when memory runs out."""
        self._groups.clear()

    def find(
        self, tree: TokenTree, ids: Rows, groups: Sequence[Hashable], reads: Rows
    ) -> KnownRows:
        """Match a tree with what is kept.

        `ids` are the tokens of its rows, `groups` the group of every segment, `reads` the rows
        whose P('+') is wanted: one that was not read before is computed anew, with all below it.
        """
        places = np.full(tree.size, _ROOT, dtype=np.int64)
        plus = np.full(tree.size, np.nan)
        wanted = np.zeros(tree.size, dtype=np.bool_)
        wanted[reads] = True
        for number, segment in enumerate(tree.segments):
            group = self._groups.get(groups[number])
            place = _ROOT
            if segment.ancestors:
                place = int(places[tree.segments[segment.ancestors[-1]].stop - 1])
            if group is None or (segment.ancestors and place == _ROOT):
                continue
            for row in range(segment.start, segment.stop):
                place = group.children.get((place, int(ids[row])), _ROOT)
                if place == _ROOT or (wanted[row] and np.isnan(group.plus[place])):
                    break
                places[row], plus[row] = place, group.plus[place]
        return self._known(tree, places, plus, groups)

    def _known(
        self, tree: TokenTree, places: Rows, plus: NDArray[np.float64], groups: Sequence[Hashable]
    ) -> KnownRows:
        known = places != _ROOT
        count = int(known.sum())
        slots = np.where(known, np.cumsum(known) - 1, count + np.cumsum(~known) - 1)
        sources = []
        for group in dict.fromkeys(groups):
            rows = [
                places[s.start : s.stop]
                for s, name in zip(tree.segments, groups, strict=True)
                if name == group
            ]
            found = np.concatenate(rows)
            found = found[found != _ROOT]
            if len(found):
                store = self._groups[group].store
                sources.append((store, torch.from_numpy(found).to(store.keys[0].device)))
        return KnownRows(slots, count, plus, tuple(sources))

    def keep(
        self,
        tree: TokenTree,
        ids: Rows,
        groups: Sequence[Hashable],
        known: KnownRows,
        store: LayerStore,
        plus: NDArray[np.float64],
    ) -> None:
        """Keep a finished pass; `plus` is P('+') by row, NaN where it was not read."""
        if tree.size > self._max_tokens:
            for group in groups:
                self._groups.pop(group, None)
            return
        store.rows = tree.size
        by_slot = np.empty_like(plus)
        by_slot[known.slots] = plus
        children: dict[Hashable, dict[tuple[int, int], int]] = {}
        for number, segment in enumerate(tree.segments):
            table = children.setdefault(groups[number], {})
            parent = _ROOT
            if segment.ancestors:
                parent = int(known.slots[tree.segments[segment.ancestors[-1]].stop - 1])
            for row in range(segment.start, segment.stop):
                place = int(known.slots[row])
                table[(parent, int(ids[row]))] = place
                parent = place
        for group, table in children.items():
            self._groups[group] = _Group(store, table, by_slot)
            self._groups.move_to_end(group)
        while self._groups and self._rows() > self._max_tokens:
            self._groups.popitem(last=False)

    def _rows(self) -> int:
        stores = {id(group.store): group.store.rows for group in self._groups.values()}
        return sum(stores.values())
