"""Attention over a packed token tree: every token sees its own path and nothing else.

transformers calls `tree_attention` in every layer of the language model; the plan of the pass says
how to attend. There are two kinds of plans, equal in their results: blocks of dense attention here,
which run everywhere, and block-sparse FlexAttention (`flex_attention.py`) on CUDA.

The rows of the tree are cut into blocks. The queries of a block are contiguous rows that hang
below one common chain of ancestors; its keys are the rows of that chain and its own rows. So a long
branch pays for its own path instead of for the whole tree, and many short siblings share one
call. The result equals attention with the full `[rows, rows]` ancestor mask.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface

from vprm_search.errors import ConfigError
from vprm_search.scoring.engine.kv_blocks import as_index
from vprm_search.scoring.engine.prefix_cache import KnownRows
from vprm_search.scoring.engine.token_tree import Segment, TokenPath, TokenTree, build_tree

TREE_ATTENTION = "vprm_tree"
_BLOCK_ROWS = 256  # below this, one call with some masked work is cheaper than several calls

Attend = Callable[[Tensor, Tensor, Tensor, float | None], Tensor]
"""From queries `[1, heads, new rows, head_dim]`, keys and values `[1, kv_heads, rows, head_dim]`
and a scale to `[1, heads, new rows, head_dim]`."""

Planner = Callable[[TokenTree, KnownRows, torch.device], Attend]
"""Makes the attention of one pass."""


@dataclass(frozen=True, slots=True)
class AttentionBlock:
    """Queries `[start, stop)`, attending to `keys` where `mask` is True.

    Queries count the new rows only, keys the known rows and then the new ones. `mask` is
    `[queries, keys]`; None means plain causal attention of a block without ancestors.
    """

    start: int
    stop: int
    keys: Tensor | slice
    mask: Tensor | None


@dataclass(slots=True, eq=False)
class AttentionPlan:
    """One pass: how to attend, the rows known before it, and a place for what it computes.

    `layers` fills up with the keys and values of the new rows, layer by layer, if `collect` is set.
    """

    attend: Attend
    known: KnownRows
    collect: bool = False
    layers: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    _layer: int = 0

    def with_known(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values of the next layer, the known rows before the new ones."""
        number, self._layer = self._layer, self._layer + 1
        if self.collect:
            self.layers.append((key, value))
        if self.known.rows is None:
            return key, value
        old_key, old_value = self.known.rows.layer(number)
        return torch.cat((old_key, key), dim=2), torch.cat((old_value, value), dim=2)


def plan_blocks(tree: TokenTree, known: KnownRows, device: torch.device) -> Attend:
    """Return attention in dense blocks, with keys and masks on `device`."""
    blocks = attention_blocks(tree, known, device)

    def attend(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
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

    return attend


def attention_blocks(
    tree: TokenTree, known: KnownRows, device: torch.device | str = "cpu"
) -> Sequence[AttentionBlock]:
    """Cut a tree into attention blocks, in row order.

    A subtree of up to 256 rows is one block, together with as many of the siblings that follow it
    as fit; a larger subtree gives one block for its first segment and is then cut further. Rows
    that are known ask nothing: they are keys only.
    """
    segments = tree.segments
    blocks = []
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
        if (known.slots[first.start : stop] >= known.count).any():
            blocks.append(_block(tree, at, after, known, device))
        at = after
    return blocks


def _joins(segment: Segment, first: Segment) -> bool:
    """Whether a segment with all below it fits into the block that `first` opens."""
    small = segment.subtree_stop - first.start <= _BLOCK_ROWS
    return small and segment.ancestors == first.ancestors


def _block(
    tree: TokenTree, at: int, after: int, known: KnownRows, device: torch.device | str
) -> AttentionBlock:
    """Return the block of the segments `[at, after)`."""
    own = np.arange(tree.segments[at].start, max(s.stop for s in tree.segments[at:after]))
    asking = known.slots[own] >= known.count
    queries = known.slots[own][asking] - known.count
    above = tree.ancestor_rows(at)
    keys = known.slots[np.concatenate([above, own])]
    mask = None
    if len(above) or after > at + 1 or not asking.all():
        allowed = np.zeros((len(own), len(keys)), dtype=np.bool_)
        allowed[:, : len(above)] = True
        _mask_inside(tree, at, after, allowed[:, len(above) :])
        mask = torch.from_numpy(allowed[asking]).to(device)
    return AttentionBlock(int(queries[0]), int(queries[-1]) + 1, as_index(keys, device), mask)


def _mask_inside(tree: TokenTree, at: int, after: int, mask: NDArray[np.bool_]) -> None:
    origin = tree.segments[at].start
    for number in range(at, after):
        segment = tree.segments[number]
        rows = slice(segment.start - origin, segment.stop - origin)
        for above in segment.ancestors:
            if above >= at:
                higher = tree.segments[above]
                mask[rows, higher.start - origin : higher.stop - origin] = True
        mask[rows, rows] = np.tri(segment.stop - segment.start, dtype=np.bool_)


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
    key, value = attention_plan.with_known(key, value)
    return attention_plan.attend(query, key, value, scaling).transpose(1, 2).contiguous(), None


AttentionInterface.register(TREE_ATTENTION, tree_attention)


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
        return "blocks", plan_blocks
    planner = FlexPlanner(compiled=device.type == "cuda")
    try:
        _try_out(planner, device, dtype, heads)
    except Exception as error:  # a compiler can fail in any way
        if name == "flex":
            raise ConfigError(f"FlexAttention does not work on {device}: {error}") from error
        _log.warning("FlexAttention does not work on %s, using dense blocks: %s", device, error)
        return "blocks", plan_blocks
    return "flex", planner


class FlexPlanner:
    """Makes the block-sparse attention of a pass; uncompiled it is a slow reference."""

    def __init__(self, *, compiled: bool) -> None:
        from torch.nn.attention import flex_attention as flex

        self._flex: Any = flex.flex_attention
        self._create: Any = flex.create_block_mask
        self._options: dict[str, Any] | None = None
        if compiled:
            self._flex = torch.compile(self._flex, dynamic=True)
            # the kernel for few queries wants shapes that are known beforehand
            self._options = {"FORCE_USE_FLEX_ATTENTION": True}

    def __call__(self, tree: TokenTree, known: KnownRows, device: torch.device) -> Attend:
        """Return the attention of a pass; its mask is made once and serves every layer."""
        new = known.new_rows
        queries, keys = _padded(len(new)), _padded(tree.size)
        mask = self._create(
            _visible(tree, known, queries, keys, device),
            B=None,
            H=None,
            Q_LEN=queries,
            KV_LEN=keys,
            device=device,
            BLOCK_SIZE=_TILE,
        )

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


def _visible(
    tree: TokenTree, known: KnownRows, queries: int, keys: int, device: torch.device
) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Return the mask as a function of query and key; what is padding sees and shows nothing."""
    new = known.new_rows
    ends = np.empty(tree.size, dtype=np.int64)
    for segment in tree.segments:
        ends[segment.start : segment.stop] = segment.subtree_stop
    query_row = np.full(queries, -1, dtype=np.int64)
    query_row[: len(new)] = new
    key_row = np.full(keys, tree.size, dtype=np.int64)
    key_row[known.slots] = np.arange(tree.size)
    key_end = np.zeros(keys, dtype=np.int64)
    key_end[known.slots] = ends
    at, start, end = (torch.from_numpy(a).to(device) for a in (query_row, key_row, key_end))

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (start[key] <= at[query]) & (at[query] < end[key])

    return visible


def _padded(length: int) -> int:
    return -(-length // _TILE) * _TILE


def _try_out(planner: FlexPlanner, device: torch.device, dtype: torch.dtype, heads: Heads) -> None:
    """Compare with dense blocks on two small trees. Raises whatever goes wrong."""
    draw = torch.Generator().manual_seed(0)
    for length in (40, 300):  # two shapes, so that the dynamic kernel is compiled here
        stem = tuple(range(length))
        tree = build_tree([TokenPath("", (*stem, 1000 + n, *stem)) for n in range(3)])
        known = KnownRows(np.arange(tree.size), 0, np.full(tree.size, np.nan))
        rows = [
            torch.randn(1, count, tree.size, heads[2], generator=draw).to(device, dtype)
            for count in (heads[0], heads[1], heads[1])
        ]
        with torch.inference_mode():
            ours, dense = (
                make(tree, known, device)(rows[0], rows[1], rows[2], None)
                for make in (planner, plan_blocks)
            )
        gap = float((ours - dense).abs().max())
        if not gap <= (1e-3 if dtype == torch.float32 else 5e-2):
            raise RuntimeError(f"it differs from dense attention by {gap:.1e}")
