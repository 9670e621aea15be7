"""Tree attention on FlexAttention: one block-sparse kernel for a whole pass, for CUDA.

In the packed order of a tree, row q sees row k exactly if k comes no later than q and q comes
before the end of the subtree that hangs below k. So two numbers per key and one per query are the
whole mask, and tiles of the score matrix in which nothing is visible are skipped by the kernel.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from vprm_search.errors import ConfigError
from vprm_search.scoring.engine.attention import Attend, Planner, plan_blocks
from vprm_search.scoring.engine.prefix_cache import KnownRows
from vprm_search.scoring.engine.token_tree import TokenPath, TokenTree, build_tree

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
