"""What passes have computed, kept for the next ones: a search adds steps to paths it scored before.

The keys and values of a token depend on the tokens before it only. They are kept in a radix tree
per group of images: paths with a common prefix share its rows, so a round of a search
costs its new steps alone, and searches over one problem share what they have in common. When the
bytes run out, branches go whole, the deepest first: those a newer request for their images did not
touch (what a search pruned), and then those of the images unused for longest.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vprm_search.scoring.engine.kv_blocks import KVBlocks, LayerRows, ReadRows
from vprm_search.scoring.engine.token_tree import Rows, TokenPath, TokenTree, common_prefix


@dataclass(slots=True, eq=False)
class Branch:
    """A run of tokens `[tokens]` without a fork.

    `slots` says where the row of each is, `plus` is P('+') where it was read, else NaN. A root is a
    branch without tokens. `used` is the time of the last call that needed it, which needed its
    first `extent` tokens; `before` is the time of the call before that.
    """

    ids: Rows
    slots: Rows
    plus: NDArray[np.float64]
    parent: Branch | None
    children: dict[int, Branch] = field(default_factory=dict)
    used: int = 0
    extent: int = 0
    before: int = 0

    def touch(self, time: int, extent: int) -> None:
        """Note that a call needs the first `extent` tokens."""
        if self.used != time:
            self.before, self.used, self.extent = self.used, time, 0
        self.extent = max(self.extent, extent)

    def walk(self, at: int, ids: Rows, time: int) -> Iterator[tuple[Branch, int, int]]:
        """Yield `(branch, start, stop)` of what is cached of `ids` behind the first `at` tokens."""
        branch, done = self, 0
        branch.touch(time, at)
        while done < len(ids):
            if at == len(branch.ids):
                child = branch.children.get(int(ids[done]))
                if child is None:
                    return
                branch, at = child, 0
            same = common_prefix(branch.ids[at:], ids[done:], 0)
            if not same:
                return
            branch.touch(time, at + same)
            yield branch, at, at + same
            at += same
            done += same

    def split(self, at: int) -> Branch:
        """Cut off what is behind the first `at` tokens, as a child; return this branch."""
        if at == len(self.ids):
            return self
        below = Branch(
            self.ids[at:], self.slots[at:], self.plus[at:], self, self.children, self.used
        )
        if self.extent <= at:
            below.used = self.before  # the last call did not need it
        else:
            below.before, below.extent = self.before, self.extent - at
        for child in below.children.values():
            child.parent = below
        self.ids, self.slots, self.plus = self.ids[:at], self.slots[:at], self.plus[:at]
        self.children = {int(below.ids[0]): below}
        return self

    def leaves(self) -> Iterator[Branch]:
        """Yield the branches below this one that have none below them."""
        waiting = list(self.children.values())
        while waiting:
            branch = waiting.pop()
            waiting.extend(branch.children.values())
            if not branch.children:
                yield branch


def new_root() -> Branch:
    """Return a branch without tokens."""
    nothing: Rows = np.empty(0, dtype=np.int64)
    return Branch(nothing, nothing, np.empty(0), None)


_NO_SLOT = -1
_SPARE = 8  # when room is needed, at least a share of 1 / _SPARE is freed: not row by row

_End = tuple[Branch, int]
"""A place in the tree of branches: behind the first so many tokens of a branch."""


@dataclass(frozen=True, slots=True)
class CachedRows:
    """Which rows of a tree are in the cache and need no computing.

    `places` is the place of every row among the keys of the pass: first the `count` cached rows,
    by their slots, then the new ones in tree order. `plus` is P('+') of cached rows that were read,
    else NaN; `rows` holds their keys and values.
    """

    places: Rows
    count: int
    plus: NDArray[np.float64]
    rows: ReadRows | None = None

    @property
    def new_rows(self) -> Rows:
        """The rows to compute, in order."""
        return np.flatnonzero(self.places >= self.count)


class PrefixCache:
    """Keeps what was computed, within `max_bytes` of keys and values; 0 keeps nothing.

    What the current call uses is never dropped during that call (`begin_call` starts one): where
    it does not fit, the deepest rows of the call are not kept.
    """

    def __init__(self, max_bytes: int) -> None:
        self.blocks = KVBlocks(max_bytes)
        self.enabled = max_bytes > 0
        self._roots: dict[Hashable, Branch] = {}
        self._time = 0

    def begin_call(self) -> None:
        """Let go of what the last call used."""
        self._time += 1

    def clear(self) -> None:
        """Drop everything, for instance when memory runs out."""
        self._roots.clear()
        self.blocks.clear()

    def give_up_half(self) -> bool:
        """Drop everything and keep half of it from now on; False if there was nothing to drop."""
        held = self.blocks.held_bytes
        self.blocks.max_bytes = held // 2 if held else self.blocks.max_bytes
        self.clear()
        return held > 0

    def cached_tokens(self, path: TokenPath) -> int:
        """Return how many of a path's first tokens are cached; they stay so during this call."""
        root = self._roots.get(path.group)
        if root is None:
            return 0
        ids = np.asarray(path.ids, dtype=np.int64)
        return sum(stop - start for _, start, stop in root.walk(0, ids, self._time))

    def find(self, tree: TokenTree, reads: Rows) -> CachedRows:
        """Match a tree with what is kept.

        `reads` are the rows whose P('+') is wanted: one that was not read before is computed
        again, alone.
        """
        slots = np.full(tree.size, _NO_SLOT, dtype=np.int64)
        plus = np.full(tree.size, np.nan)
        for row, branch, start, stop in self._matches(tree):
            slots[row : row + stop - start] = branch.slots[start:stop]
            plus[row : row + stop - start] = branch.plus[start:stop]
        slots[reads[np.isnan(plus[reads])]] = _NO_SLOT
        hits = np.flatnonzero(slots != _NO_SLOT)
        hits = hits[np.argsort(slots[hits])]
        new = np.flatnonzero(slots == _NO_SLOT)
        places = np.empty(tree.size, dtype=np.int64)
        places[hits] = np.arange(len(hits))
        places[new] = len(hits) + np.arange(len(new))
        rows = self.blocks.read(slots[hits]) if len(hits) and len(new) else None
        return CachedRows(places, len(hits), plus, rows)

    def keep(
        self,
        tree: TokenTree,
        cached: CachedRows,
        layers: LayerRows,
        plus: NDArray[np.float64],
    ) -> None:
        """Keep a finished pass; `layers` are its new rows, `plus` P('+') by row, NaN if not read.

        Rows that were cached get the P('+') that was still missing.
        """
        self.blocks.measure(layers)
        stored = np.zeros(tree.size, dtype=np.bool_)
        for row, branch, start, stop in self._matches(tree):
            rows = slice(row, row + stop - start)
            stored[rows] = True
            missing = np.isnan(branch.plus[start:stop])
            branch.plus[start:stop][missing] = plus[rows][missing]
        new = np.flatnonzero(~stored)
        new = new[: self._make_room(len(new))]  # in tree order: no row is kept without its parent
        slots = np.full(tree.size, _NO_SLOT, dtype=np.int64)
        slots[new] = self.blocks.put(layers, cached.places[new] - cached.count)
        self._insert(tree, slots, plus)

    def _matches(self, tree: TokenTree) -> Iterator[tuple[int, Branch, int, int]]:
        """Yield `(row, branch, start, stop)` for every cached stretch of a tree."""
        ends: list[_End | None] = []
        for number, segment in enumerate(tree.segments):
            root = self._roots.get(tree.groups[number])
            end = None if root is None else (root, 0)
            if segment.ancestors:
                end = ends[segment.ancestors[-1]]
            ends.append(None)
            if end is None:
                continue
            row, (above, at) = segment.start, end
            for branch, start, stop in above.walk(at, tree.ids[row : segment.stop], self._time):
                yield row, branch, start, stop
                row, end = row + stop - start, (branch, stop)
            if row == segment.stop:
                ends[-1] = end

    def _insert(self, tree: TokenTree, slots: Rows, plus: NDArray[np.float64]) -> None:
        """Add the rows that got a slot; one without ends its path."""
        ends: list[_End | None] = []
        for number, segment in enumerate(tree.segments):
            if segment.ancestors:
                end = ends[segment.ancestors[-1]]
            else:
                end = self._roots.setdefault(tree.groups[number], new_root()), 0
            ends.append(None)
            if end is None:
                continue
            row, (above, at) = segment.start, end
            for branch, start, stop in above.walk(at, tree.ids[row : segment.stop], self._time):
                row, end = row + stop - start, (branch, stop)
            own = slice(row, row + int((slots[row : segment.stop] != _NO_SLOT).sum()))
            if own.stop > row:
                above = end[0].split(end[1])
                new = Branch(tree.ids[own].copy(), slots[own].copy(), plus[own].copy(), above)
                new.touch(self._time, len(new.ids))
                above.children[int(new.ids[0])] = new
                row, end = own.stop, (new, len(new.ids))
            if row == segment.stop:
                ends[-1] = end

    def _make_room(self, count: int) -> int:
        """Drop branches until `count` rows fit, if that can be; return how many fit."""
        capacity, used = self.blocks.capacity, self.blocks.used_rows
        if used + count <= capacity:
            return count
        excess = used + max(count, capacity // _SPARE) - capacity
        every = ((group, leaf) for group, root in self._roots.items() for leaf in root.leaves())
        heap = [self._candidate(group, leaf, n) for n, (group, leaf) in enumerate(every)]
        heapq.heapify(heap)
        while heap and excess > 0:
            leaf = heapq.heappop(heap)
            if leaf.branch.used == self._time:
                break  # only what this call needs is left
            excess -= len(leaf.branch.ids)
            above = self._drop(leaf.group, leaf.branch)
            if above is not None:
                heapq.heappush(heap, self._candidate(leaf.group, above, leaf.rank[-1]))
        return min(count, capacity - self.blocks.used_rows)

    def _candidate(self, group: Hashable, leaf: Branch, order: int) -> _Candidate:
        wanted = leaf.used == self._roots[group].used
        return _Candidate((wanted, leaf.used, order), group, leaf)

    def _drop(self, group: Hashable, leaf: Branch) -> Branch | None:
        """Drop a leaf; return the branch above it if that is a leaf now."""
        above = leaf.parent
        if above is None:
            return None
        self.blocks.free(leaf.slots)
        del above.children[int(leaf.ids[0])]
        if above.parent is None and not above.children:
            del self._roots[group]
        return None if above.parent is None or above.children else above


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A leaf that may be dropped; the least `rank` (touched last, when, order) goes first."""

    rank: tuple[bool, int, int]
    group: Hashable
    branch: Branch

    def __lt__(self, other: _Candidate) -> bool:
        return self.rank < other.rank
