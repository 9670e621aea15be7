"""Best-of-N: N independent whole solutions; the selector does the rest."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field

from vprm_search.search.plan import Expand, Plan
from vprm_search.tree import SearchTree


class BestOfN(BaseModel):
    """Sample `n` whole solutions from the policy, in one round.

    Equal samples stay separate candidates (they are votes); a failed call costs its candidates
    and is not asked again. Source: VisualPRM, arXiv 2503.10291 §4.2 (N = 8 … 128).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    n: int = Field(default=8, ge=1, le=256)

    def __init__(self, n: int = 8) -> None:
        super().__init__(n=n)

    @property
    def aggregates(self) -> Sequence[str]:
        """No path score is needed while searching."""
        return ()

    def plan(self, tree: SearchTree) -> Plan:
        """Ask for what is missing to `n` candidates, else finish."""
        have = tree.child_count(tree.root_id)
        if have < self.n:
            return Plan(expand=(Expand(tree.root_id, self.n - have, have, until="end"),))
        return Plan(finish=f"{self.n} solutions sampled")
