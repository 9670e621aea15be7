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

from vprm_search.scoring.token_tree import Segment, TokenTree

TREE_ATTENTION = "vprm_tree"
_BLOCK_ROWS = 256  # below this, one call with some masked work is cheaper than several calls


@dataclass(frozen=True, slots=True)
class AttentionBlock:
    """Queries `[start, stop)`, attending to the rows `keys` where `mask` is True.

    `mask` is `[queries, keys]`; None means plain causal attention of a block without ancestors.
    """

    start: int
    stop: int
    keys: Tensor | slice
    mask: Tensor | None


AttentionPlan = tuple[AttentionBlock, ...]


def plan_attention(tree: TokenTree, device: torch.device | str = "cpu") -> AttentionPlan:
    """Cut a tree into attention blocks, in row order, with keys and masks on `device`.

    A subtree of up to 256 rows is one block, together with as many of the siblings that follow it
    as fit; a larger subtree gives one block for its first segment and is then cut further.
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
        blocks.append(_block(tree, at, after, stop, device))
        at = after
    return tuple(blocks)


def _joins(segment: Segment, first: Segment) -> bool:
    """Whether a segment with all below it fits into the block that `first` opens."""
    small = segment.subtree_stop - first.start <= _BLOCK_ROWS
    return small and segment.ancestors == first.ancestors


def _block(
    tree: TokenTree, at: int, after: int, stop: int, device: torch.device | str
) -> AttentionBlock:
    start = tree.segments[at].start
    above = tree.ancestor_rows(at)
    if not len(above) and after == at + 1:
        return AttentionBlock(start, stop, slice(start, stop), None)
    mask = np.zeros((stop - start, len(above) + stop - start), dtype=np.bool_)
    mask[:, : len(above)] = True
    _mask_inside(tree, at, after, mask[:, len(above) :])
    rows = np.concatenate([above, np.arange(start, stop, dtype=np.int64)])
    keys: Tensor | slice = torch.from_numpy(rows).to(device)
    if len(rows) == stop - int(rows[0]):
        keys = slice(int(rows[0]), stop)  # contiguous: no copy
    return AttentionBlock(start, stop, keys, torch.from_numpy(mask).to(device))


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

    `query` is `[1, heads, rows, head_dim]`, `key` and `value` `[1, kv_heads, rows, head_dim]`; the
    result is `[1, rows, heads, head_dim]`. `attention_mask` is not used: the plan says it all.
    """
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    parts = []
    for block in attention_plan:
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
