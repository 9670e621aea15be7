"""Paths of tokens as one tree: every shared prefix once, and who may attend to whom."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class TokenPath:
    """One conversation to compute.

    `group` names the images behind the placeholders: tokens are shared within a group only.
    """

    group: Hashable
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of tokens without a branch.

    Its rows in the packed sequence are `[start, stop)`; the rows of all its descendants follow it
    and end at `subtree_stop`. `depth` is the position of its first token in its path, `path` the
    index of one path that goes through it, `ancestors` the segments above it, the root first.
    """

    start: int
    stop: int
    depth: int
    path: int
    ancestors: tuple[int, ...]
    subtree_stop: int


@dataclass(frozen=True, slots=True)
class TokenTree:
    """Paths packed behind one another in depth-first order.

    `segments` are in row order; `path_segments[p]` are the segments of path p from the root on.
    Paths are numbered as given to `build_tree`. `ids` is the token of every row, `groups` the group
    of every segment.
    """

    size: int
    segments: tuple[Segment, ...]
    path_segments: tuple[tuple[int, ...], ...]
    ids: Rows = field(compare=False)
    groups: tuple[Hashable, ...]

    def rows_of(self, path: int) -> Rows:
        """Return the row of every token of a path, `[tokens of the path]`."""
        return _rows([self.segments[s] for s in self.path_segments[path]])

    def ancestor_rows(self, segment: int) -> Rows:
        """Return the rows above a segment, the root's first."""
        return _rows([self.segments[s] for s in self.segments[segment].ancestors])

    def positions(self) -> Rows:
        """Return the position of every row in its own path, `[size]`."""
        out = np.empty(self.size, dtype=np.int64)
        for s in self.segments:
            out[s.start : s.stop] = np.arange(s.depth, s.depth + s.stop - s.start)
        return out


def build_tree(paths: Sequence[TokenPath]) -> TokenTree:
    """Merge paths into a tree; equal paths and prefixes of other paths take no row of their own.

    The order of `paths` does not matter for speed: they are sorted here.
    """
    order, arrays = _sorted_paths(paths)
    segments: list[Segment] = []
    ids = [np.empty(0, dtype=np.int64)]
    chains: list[tuple[int, ...]] = [()] * len(paths)
    # (first, last + 1 of the sorted paths, tokens they are known to share, segments above)
    work: list[tuple[int, int, int, tuple[int, ...]]] = []
    for lo, hi in reversed(_runs([paths[p].group for p in order])):
        work.append((lo, hi, 0, ()))
    size = 0
    while work:
        lo, hi, depth, above = work.pop()
        shared = common_prefix(arrays[lo], arrays[hi - 1], depth)
        if shared > depth:
            stop = size + shared - depth
            segments.append(Segment(size, stop, depth, order[lo], above, stop))
            ids.append(arrays[lo][depth:shared])
            size = stop
            above = (*above, len(segments) - 1)
        ended = lo
        while ended < hi and len(arrays[ended]) == shared:
            chains[order[ended]] = above
            ended += 1
        nexts = [int(arrays[p][shared]) for p in range(ended, hi)]
        for a, b in reversed(_runs(nexts)):
            work.append((ended + a, ended + b, shared, above))
    groups = tuple(paths[segment.path].group for segment in segments)
    return TokenTree(size, _closed(segments), tuple(chains), np.concatenate(ids), groups)


def tree_sizes(paths: Sequence[TokenPath]) -> tuple[list[int], list[int]]:
    """Return the depth-first order of the paths and the rows each adds to those before it."""
    order, arrays = _sorted_paths(paths)
    added: list[int] = []
    for at, path in enumerate(order):
        same = at > 0 and paths[order[at - 1]].group == paths[path].group
        shared = common_prefix(arrays[at - 1], arrays[at], 0) if same else 0
        added.append(len(arrays[at]) - shared)
    return order, added


def common_prefix(left: Rows, right: Rows, known: int) -> int:
    """Return how many tokens two paths share, of which `known` are known to be equal."""
    end = min(len(left), len(right))
    different = np.flatnonzero(left[known:end] != right[known:end])
    return known + int(different[0]) if len(different) else end


def _sorted_paths(paths: Sequence[TokenPath]) -> tuple[list[int], list[Rows]]:
    groups = {group: i for i, group in enumerate(dict.fromkeys(p.group for p in paths))}
    order = sorted(range(len(paths)), key=lambda i: (groups[paths[i].group], paths[i].ids))
    return order, [np.asarray(paths[i].ids, dtype=np.int64) for i in order]


def _runs(values: Sequence[Hashable]) -> list[tuple[int, int]]:
    """Return `[first, last + 1)` of every run of equal values."""
    cuts = [i for i in range(1, len(values)) if values[i] != values[i - 1]]
    return list(zip([0, *cuts], [*cuts, len(values)], strict=True)) if values else []


def _closed(segments: list[Segment]) -> tuple[Segment, ...]:
    """Return the segments with the ends of all that came below each."""
    ends = [segment.stop for segment in segments]
    for segment in segments:
        for above in segment.ancestors:
            ends[above] = segment.stop  # rows only grow
    return tuple(replace(s, subtree_stop=end) for s, end in zip(segments, ends, strict=True))


def _rows(parts: Sequence[Segment]) -> Rows:
    if not parts:
        return np.empty(0, dtype=np.int64)
    return np.concatenate([np.arange(s.start, s.stop, dtype=np.int64) for s in parts])
