"""One rule object for pruning, shared by every strategy; a reason for every pruned path."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field

from vprm_search.search.plan import Close
from vprm_search.types import NodeRecord

Ranked = list[tuple[float, NodeRecord]]
"""Paths with their scores, best first."""


class Pruning(BaseModel):
    """Which of a level's open paths are put aside, whatever the strategy; by default none.

    `below` is absolute and `margin` relative to the best open path, as thresholds on the path
    score (calibrate the scorer before trusting an absolute one). Neither takes one of the
    `keep_at_least` best, so that a hard problem does not lose every path; `top_k` is a hard width.

    Args:
        below: a path with a lower score is pruned.
        margin: a path whose score is lower than the best one's by more than this is pruned.
        top_k: paths after the first so many are pruned.
        keep_at_least: so many of the best are never pruned by `below` or `margin`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    below: float | None = Field(default=None, ge=0, le=1)
    margin: float | None = Field(default=None, ge=0, le=1)
    top_k: int | None = Field(default=None, ge=1)
    keep_at_least: int = Field(default=1, ge=0)

    def apply(self, ranked: Sequence[tuple[float, NodeRecord]]) -> tuple[Ranked, list[Close]]:
        """Return what stays, best first, and what is closed: by which rule and against whom.

        `ranked` is sorted best first.
        """
        keep: Ranked = []
        close = []
        for rank, (score, leaf) in enumerate(ranked):
            reason = self._reason(rank, score, ranked)
            if reason:
                close.append(Close(leaf.id, reason))
            else:
                keep.append((score, leaf))
        return keep, close

    def _reason(self, rank: int, score: float, ranked: Sequence[tuple[float, NodeRecord]]) -> str:
        best = ranked[0]
        if self.top_k is not None and rank >= self.top_k:
            last = ranked[self.top_k - 1]
            return f"outranked: {score:.4f} is rank {rank + 1} of {len(ranked)}, after {last[1].id}"
        if rank < self.keep_at_least:
            return ""
        if self.below is not None and score < self.below:
            return f"prune_below: {score:.4f} < {self.below:.4f}"
        if self.margin is not None and score < best[0] - self.margin:
            return f"prune_margin: {score:.4f} < {best[0]:.4f} of {best[1].id} - {self.margin}"
        return ""
