"""A level-by-level strategy that starts narrow and grows wider."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field

from vprm_search.search import REBASE, Plan
from vprm_search.tree import SearchTree


class Widening(BaseModel):
    """REBASE whose width grows from `start` to `2 - start` times its own over `levels` levels.

    Few of the first steps of a solution have to be right; at the end many right paths are needed
    to outvote the wrong ones, so that slots are worth more there. Over `levels` levels, and over
    more, it costs as much as the strategy at its own width; shorter solutions cost less. The linear
    schedule is ours. A function of the tree alone: the level is its last round.

    Args:
        strategy: the REBASE to run, at its mean width.
        start: share of the width at the first level.
        levels: levels over which the width grows; after them it is the strategy's own. About the
            number of steps of a solution.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    strategy: REBASE
    start: float = Field(default=0.6, gt=0, le=1)
    levels: int = Field(default=10, ge=2)

    @property
    def aggregates(self) -> Sequence[str]:
        """Those of the strategy."""
        return self.strategy.aggregates

    def plan(self, tree: SearchTree) -> Plan:
        """Return the strategy's plan at the width of the next level."""
        if tree.rounds >= self.levels:
            return self.strategy.plan(tree)
        share = self.start + 2 * (1 - self.start) * tree.rounds / (self.levels - 1)
        width = max(1, round(self.strategy.width * share))
        return self.strategy.model_copy(update={"width": width}).plan(tree)
