"""Equal generated tokens: a strategy that is held to what best-of-N spent on the same problem."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from vprm_search.search import Plan, Strategy
from vprm_search.tree import SearchTree
from vprm_search.types import NodeId

CUT = "budget: generated_tokens"
"""How the reason begins for which a search ends that has used up its tokens."""


@dataclass(frozen=True)
class Capped:
    """Another strategy's plan, cut to the children that a token budget still has room for.

    `tokens` maps the root of a search to its budget. A child is expected to cost the mean of the
    children proposed so far in this search, so a round is cut, or not begun, before the budget is
    exceeded; what a search spends beyond it is the error of that one estimate. A function of the
    tree alone, as every strategy is.
    """

    strategy: Strategy
    tokens: Mapping[NodeId, int]

    @property
    def aggregates(self) -> Sequence[str]:
        """The path scores that the strategy reads."""
        return self.strategy.aggregates

    def plan(self, tree: SearchTree) -> Plan:
        """Return the strategy's plan as far as the tokens go."""
        plan = self.strategy.plan(tree)
        spent, proposed = tree.totals.generated_tokens, tree.totals.candidates
        if plan.finish or not proposed:
            return plan
        budget = self.tokens[tree.root_id]
        each = max(1.0, spent / proposed)
        room = math.floor((budget - spent) / each + 1e-9)
        if room < 1:
            return Plan(close=plan.close, finish=f"{CUT} {spent} of {budget}")
        return replace(plan.limited_to(room), cut=plan.cut)
