"""Attention over a packed token tree: every token sees its own path and nothing else.

The rows of the tree are cut into blocks. The queries of a block are contiguous rows that hang
below one common chain of ancestors; its keys are the rows of that chain and its own rows. So a long
branch pays for its own path instead of for the whole tree, and many short siblings share one
call. The result equals attention with the full `[rows, rows]` ancestor mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from vprm_search.scoring.kept_context import KnownRows, LayerStore
from vprm_search.scoring.token_tree import Rows, Segment, TokenTree

TREE_ATTENTION = "vprm_tree"
_BLOCK_ROWS = 256  # below this, one call with some masked work is cheaper than several calls


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


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """The blocks of one pass, the rows known before it, and a store for what it computes."""

    blocks: tuple[AttentionBlock, ...]
    known: KnownRows
    store: LayerStore


def plan_attention(
    tree: TokenTree, known: KnownRows, device: torch.device | str = "cpu"
) -> AttentionPlan:
    """Cut a tree into attention blocks, in row order, with keys and masks on `device`.

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
    return AttentionPlan(tuple(blocks), known, LayerStore())


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
    return AttentionBlock(int(queries[0]), int(queries[-1]) + 1, _as_index(keys, device), mask)


def _as_index(rows: Rows, device: torch.device | str) -> Tensor | slice:
    """Return rows as a slice where they are contiguous, so that they need not be copied."""
    if (np.diff(rows) == 1).all():
        return slice(int(rows[0]), int(rows[-1]) + 1)
    return torch.from_numpy(rows).to(device)


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
    """Attend block by block; called by transformers inside every layer of the language model.

    `query` is `[1, heads, new rows, head_dim]`, `key` and `value` have `kv_heads`; the result is
    `[1, new rows, heads, head_dim]`. `attention_mask` is not used: the plan says it all. Layers
    must come in order, as they do, since each leaves its keys and values in the plan's store.
    """
    key, value = attention_plan.known.prepend(len(attention_plan.store.keys), key, value)
    attention_plan.store.keys.append(key)
    attention_plan.store.values.append(value)
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    parts = []
    for block in attention_plan.blocks:
        parts.append(
            scaled_dot_product_attention(
                query[:, :, block.start : block.stop],
                key[:, :, block.keys],
                value[:, :, block.keys],
                attn_mask=block.mask,
                is_causal=block.mask is None,
                scale=scaling,
            )
        )
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


AttentionInterface.register(TREE_ATTENTION, tree_attention)
