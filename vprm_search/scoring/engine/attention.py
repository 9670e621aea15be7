"""Attention over a packed token tree: every token sees its own path and nothing else.

transformers calls `tree_attention` in every layer of the language model; the plan of the pass says
how to attend. There are two planners, equal in their results: `DensePlanner` (blocks of dense
attention, everywhere) and `FlexPlanner` (one block-sparse kernel, on CUDA).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface

from vprm_search.errors import ConfigError
from vprm_search.scoring.engine.kv_blocks import as_index
from vprm_search.scoring.engine.prefix_cache import CachedRows
from vprm_search.scoring.engine.token_tree import Rows, Segment, TokenPath, TokenTree, build_tree

TREE_ATTENTION = "vprm_tree"
_LEAST_QUERIES = 16
_BLOCK_ROWS = 256  # below this, one call with some masked work is cheaper than several calls

Attend = Callable[[Tensor, Tensor, Tensor, float | None], Tensor]
"""From queries `[1, heads, new rows, head_dim]`, keys and values `[1, kv_heads, rows, head_dim]`
and a scale to `[1, heads, new rows, head_dim]`."""


class Planner(Protocol):
    """Makes the attention of one pass."""

    def __call__(self, tree: TokenTree, cached: CachedRows, device: torch.device) -> Attend:
        """Return the attention of the new rows of a tree over all its rows."""
        ...

    def use_less_memory(self) -> bool:
        """Take smaller blocks from now on; False if they are as small as they may be."""
        ...


@dataclass(frozen=True, slots=True)
class AttentionBlock:
    """Queries `[start, stop)`, attending to `keys` where `mask` is True.

    Queries count the new rows only, keys the cached rows and then the new ones. `mask` is
    `[queries, keys]`; None means plain causal attention of a block without ancestors.
    """

    start: int
    stop: int
    keys: Tensor | slice
    mask: Tensor | None


@dataclass(slots=True, eq=False)
class AttentionPlan:
    """One pass: how to attend, the rows cached before it, and a place for what it computes.

    `layers` fills up with the keys and values of the new rows, layer by layer, if `collect` is set.
    """

    attend: Attend
    cached: CachedRows
    collect: bool = False
    layers: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    _layer: int = 0

    def with_cached(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values of the next layer, the cached rows before the new ones."""
        number, self._layer = self._layer, self._layer + 1
        if self.collect:
            self.layers.append((key, value))
        if self.cached.rows is None:
            return key, value
        old_key, old_value = self.cached.rows.layer(number)
        return torch.cat((old_key, key), dim=2), torch.cat((old_value, value), dim=2)


# --- dense blocks ---------------------------------------------------------------------------------


class DensePlanner:
    """Cuts the rows of a tree into blocks of dense attention.

    The queries of a block are contiguous rows that hang below one common chain of ancestors; its
    keys are the rows of that chain and its own rows. So a long branch pays for its own path instead
    of for the whole tree, and many short siblings share one call. The result equals attention with
    the full `[rows, rows]` ancestor mask.

    Blocks have at most `max_queries` queries: without bound, until memory runs out.
    """

    def __init__(self) -> None:
        self.max_queries: int | None = None
        self._largest = 0

    def __call__(self, tree: TokenTree, cached: CachedRows, device: torch.device) -> Attend:
        """Return attention in dense blocks, with keys and masks on `device`."""
        blocks = attention_blocks(tree, cached, device, self.max_queries)
        self._largest = max(block.stop - block.start for block in blocks)
        return partial(_attend_blocks, blocks)

    def use_less_memory(self) -> bool:
        """Halve the largest block of the last pass; not below 16 queries."""
        halved = max(_LEAST_QUERIES, self._largest // 2)
        if halved >= self._largest:
            return False
        self.max_queries = self._largest = halved
        return True


def _attend_blocks(
    blocks: Sequence[AttentionBlock], query: Tensor, key: Tensor, value: Tensor, scale: float | None
) -> Tensor:
    groups = query.shape[1] // key.shape[1]
    gqa = query.device.type == "cpu"  # elsewhere, no kernel takes groups and a mask together
    if groups > 1 and not gqa:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    parts = []
    for block in blocks:
        mask = None if block.mask is None else block.mask.to(query.device)
        keys = block.keys
        if isinstance(keys, Tensor):
            keys = keys.to(query.device)  # layers may be spread over devices
        parts.append(
            scaled_dot_product_attention(
                query[:, :, block.start : block.stop],
                key[:, :, keys],
                value[:, :, keys],
                attn_mask=mask,
                is_causal=mask is None,
                scale=scale,
                enable_gqa=groups > 1 and gqa,
            )
        )
    return torch.cat(parts, dim=2)


def attention_blocks(
    tree: TokenTree,
    cached: CachedRows,
    device: torch.device | str = "cpu",
    max_queries: int | None = None,
) -> list[AttentionBlock]:
    """Cut a tree into attention blocks, in row order.

    A subtree of up to 256 rows is one block, together with as many of the siblings that follow it
    as fit; a larger subtree gives one block for its first segment and is then cut further. Rows
    that are cached ask nothing: they are keys only. A block of more than `max_queries` queries is
    cut into several.
    """
    segments = tree.segments
    blocks: list[AttentionBlock] = []
    at = 0
    while at < len(segments):
        first, after = segments[at], at + 1
        stop = first.stop
        if first.subtree_stop - first.start <= _BLOCK_ROWS:
            after = at
            while after < len(segments) and _joins(segments[after], first):
                stop = segments[after].subtree_stop
                while after < len(segments) and segments[after].start < stop:
                    after += 1
        if (cached.places[first.start : stop] >= cached.count).any():
            blocks += _blocks(tree, at, after, cached, device, max_queries)
        at = after
    return blocks


def _joins(segment: Segment, first: Segment) -> bool:
    """Whether a segment with all below it fits into the block that `first` opens."""
    small = segment.subtree_stop - first.start <= _BLOCK_ROWS
    return small and segment.ancestors == first.ancestors


def _blocks(
    tree: TokenTree,
    at: int,
    after: int,
    cached: CachedRows,
    device: torch.device | str,
    max_queries: int | None,
) -> Iterator[AttentionBlock]:
    """Yield the block of the segments `[at, after)`, cut into parts of at most `max_queries`."""
    start, stop = tree.segments[at].start, max(s.stop for s in tree.segments[at:after])
    above = tree.ancestor_rows(at)
    asking = start + np.flatnonzero(cached.places[start:stop] >= cached.count)
    size = max_queries or len(asking)
    for first in range(0, len(asking), size):
        rows = asking[first : first + size]
        last = first + size >= len(asking)
        own = np.arange(start, stop if last else rows[-1] + 1)  # the others see nothing behind them
        keys = cached.places[np.concatenate([above, own])]
        mask = None
        if len(above) or after > at + 1 or len(rows) < len(own):
            allowed = np.ones((len(rows), len(keys)), dtype=np.bool_)
            allowed[:, len(above) :] = _visible_inside(tree, at, after, rows, own)
            mask = torch.from_numpy(allowed).to(device)
        queries = cached.places[rows] - cached.count
        where = as_index(keys, device)
        yield AttentionBlock(int(queries[0]), int(queries[-1]) + 1, where, mask)


def _visible_inside(
    tree: TokenTree, at: int, after: int, queries: Rows, keys: Rows
) -> NDArray[np.bool_]:
    """Return which of the rows `keys` of the segments `[at, after)` the rows `queries` see.

    In the packed order, row q sees row k exactly if k comes no later than q and q comes before the
    end of the subtree that hangs below k.
    """
    ends = np.empty(len(keys), dtype=np.int64)
    for segment in tree.segments[at:after]:
        ends[max(0, segment.start - keys[0]) : segment.stop - keys[0]] = segment.subtree_stop
    visible: NDArray[np.bool_] = (keys <= queries[:, None]) & (queries[:, None] < ends)
    return visible


def tree_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    attention_plan: AttentionPlan,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend as the plan says; called by transformers inside every layer of the language model.

    `query` is `[1, heads, new rows, head_dim]`, `key` and `value` have `kv_heads`; the result is
    `[1, new rows, heads, head_dim]`. `attention_mask` is not used: the plan says it all. Layers
    must come in order, as they do: the plan counts them.
    """
    key, value = attention_plan.with_cached(key, value)
    return attention_plan.attend(query, key, value, scaling).transpose(1, 2).contiguous(), None


AttentionInterface.register(TREE_ATTENTION, tree_attention)


# --- FlexAttention, and which of the two ----------------------------------------------------------

AttentionName = Literal["auto", "blocks", "flex"]
Heads = tuple[int, int, int]
"""Query heads, key-value heads, and numbers per head."""

_TILE = 128  # rows of a tile of the mask; lengths are padded to it, so that few shapes occur
_log = logging.getLogger(__name__)


def choose_attention(
    name: AttentionName, device: torch.device, dtype: torch.dtype, heads: Heads
) -> tuple[str, Planner]:
    """Return the name and the planner of the attention to use, settled once per scorer.

    "auto" takes FlexAttention on CUDA if it compiles there and agrees with dense blocks on a small
    tree, else dense blocks. Raises `ConfigError` for "flex" where it does not work.
    """
    if name not in ("auto", "blocks", "flex"):
        raise ConfigError(f"attention is {name!r}; choose 'auto', 'blocks' or 'flex'")
    if name == "blocks" or (name == "auto" and device.type != "cuda"):
        return "blocks", DensePlanner()
    planner = FlexPlanner("inductor" if device.type == "cuda" else None)
    try:
        try_out(planner, device, dtype, heads)
    except Exception as error:  # a compiler can fail in any way
        if name == "flex":
            raise ConfigError(f"FlexAttention does not work on {device}: {error}") from error
        _log.warning("FlexAttention does not work on %s, using dense blocks: %s", device, error)
        return "blocks", DensePlanner()
    return "flex", planner


class FlexPlanner:
    """Makes the block-sparse attention of a pass from the tree itself.

    In the packed order of a tree, the queries that see a key are one run: from the key's own row to
    the end of the subtree that hangs below it. So two numbers per key are the whole mask, and which
    tiles of the score matrix are empty, full or mixed is counted from them: `create_block_mask`
    would evaluate every pair (10 GB at 32,000 rows).

    Args:
        backend: of `torch.compile`, a name or a function; None runs uncompiled, a slow reference.
    """

    def __init__(self, backend: str | Callable[..., Any] | None) -> None:
        from torch.nn.attention import flex_attention as flex

        self._flex: Any = flex.flex_attention
        self._from_blocks: Any = flex.BlockMask.from_kv_blocks
        self._options: dict[str, Any] | None = None
        if backend is not None:
            # lengths change with every round: one compiled kernel serves all; if torch compiles too
            # often all the same, it raises instead of turning to the full score matrix
            self._flex = torch.compile(self._flex, dynamic=True, fullgraph=True, backend=backend)
            # the kernel for few queries wants shapes that are known beforehand
            self._options = {"FORCE_USE_FLEX_ATTENTION": True}

    def __call__(self, tree: TokenTree, cached: CachedRows, device: torch.device) -> Attend:
        """Return the attention of a pass; its mask is made once and serves every layer."""
        queries, keys = _padded(len(cached.new_rows)), _padded(tree.size)
        mask = self._mask(*seen_by(tree, cached, keys), queries, device)

        def attend(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
            count = query.shape[2]
            out: Tensor = self._flex(
                pad(query, (0, 0, 0, queries - count)),
                pad(key, (0, 0, 0, keys - key.shape[2])),
                pad(value, (0, 0, 0, keys - value.shape[2])),
                block_mask=mask,
                scale=scale,
                enable_gqa=query.shape[1] != key.shape[1],
                kernel_options=self._options,
            )
            return out[:, :, :count]

        return attend

    def use_less_memory(self) -> bool:
        """Return False: no score matrix exists that could be smaller."""
        return False

    def _mask(self, first: Rows, last: Rows, queries: int, device: torch.device) -> Any:
        """Return the block mask in which key k is seen by the queries `[first[k], last[k])`."""
        mixed, full = (
            _block_table(which, device) for which in tile_kinds(first, last, queries, _TILE)
        )
        start, stop = (torch.from_numpy(a.astype(np.int32)).to(device) for a in (first, last))

        def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return (start[key] <= query) & (query < stop[key])

        return self._from_blocks(*mixed, *full, BLOCK_SIZE=_TILE, mask_mod=visible)


def seen_by(tree: TokenTree, cached: CachedRows, keys: int) -> tuple[Rows, Rows]:
    """Return for every key the run of queries that see it; padding is seen by none."""
    ends = np.empty(tree.size, dtype=np.int64)
    for segment in tree.segments:
        ends[segment.start : segment.stop] = segment.subtree_stop
    first, last = np.zeros((2, keys), dtype=np.int64)
    new = cached.new_rows
    first[cached.places] = np.searchsorted(new, np.arange(tree.size))
    last[cached.places] = np.searchsorted(new, ends)
    return first, last


def tile_kinds(
    first: Rows, last: Rows, queries: int, tile: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which tiles `[query tiles, key tiles]` are visible in part, and which wholly."""
    starts = np.arange(0, queries, tile)[:, None]
    pairs = np.empty((len(starts), len(first) // tile), dtype=np.int64)
    for number in range(pairs.shape[1]):
        own = slice(number * tile, (number + 1) * tile)
        seen = np.clip(last[own] - starts, 0, tile) - np.clip(first[own] - starts, 0, tile)
        pairs[:, number] = seen.sum(axis=1)
    full = pairs == tile * tile
    return (pairs > 0) & ~full, full


def _block_table(chosen: NDArray[np.bool_], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return how many key tiles every query tile has, and which, those first: as FlexAttention."""
    counts = chosen.sum(axis=1, dtype=np.int32)
    order = np.argsort(~chosen, axis=1, kind="stable").astype(np.int32)
    tables = (torch.from_numpy(a)[None, None].to(device) for a in (counts, order))
    return next(tables), next(tables)


def _padded(length: int) -> int:
    """Return a length in whole tiles, at least two: a kernel is compiled anew for a single one."""
    return max(2, -(-length // _TILE)) * _TILE


def try_out(planner: FlexPlanner, device: torch.device, dtype: torch.dtype, heads: Heads) -> None:
    """Compare with dense blocks: a first round, and one with cached rows. Raises what goes wrong.

    All that a kernel is compiled for is met here, not in the first rounds of a search.
    """
    draw = torch.Generator().manual_seed(0)
    for length, count in ((300, 0), (400, 300), (40, 0)):
        stem = tuple(range(length))
        tree = build_tree([TokenPath("", (*stem, 1000 + n, *stem)) for n in range(3)])
        cached = CachedRows(np.arange(tree.size), count, np.full(tree.size, np.nan))
        query, key, value = (
            torch.randn(1, number, rows, heads[2], generator=draw).to(device, dtype)
            for number, rows in (
                (heads[0], tree.size - count),
                (heads[1], tree.size),
                (heads[1], tree.size),
            )
        )
        with torch.inference_mode():
            ours, dense = (
                make(tree, cached, device)(query, key, value, None)
                for make in (planner, DensePlanner())
            )
        gap = float((ours - dense).abs().max())
        if not gap <= (1e-3 if dtype == torch.float32 else 5e-2):
            raise RuntimeError(f"it differs from dense attention by {gap:.1e}")
