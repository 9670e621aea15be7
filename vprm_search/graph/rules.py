"""The pure rules of a search, in one place for the graph, `run_search` and the benchmarks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from vprm_search.answers import extract_answer
from vprm_search.budget import Budget
from vprm_search.search.plan import PartwiseStrategy, Strategy
from vprm_search.search.selectors import Selector
from vprm_search.steps import DEFAULT_LIMITS, StepLimits, split_steps
from vprm_search.types import Policy


@dataclass(frozen=True, slots=True)
class SearchRules:
    """The pure rules of a search: what to expand, what to choose, when to stop, how to read text.

    `split` cuts a whole solution into steps; `extract` reads the final answer out of it.
    """

    strategy: Strategy
    selector: Selector
    budget: Budget = field(default_factory=Budget)
    extract: Callable[[str], str | None] = extract_answer
    split: Callable[[str], list[str]] = split_steps
    limits: StepLimits = DEFAULT_LIMITS

    def waits_for_all(self, policy: Policy) -> bool:
        """Whether a round waits for every reply of the policy before anything goes on.

        Parts of a tree go on by themselves if the strategy has independent parts and the policy's
        calls are independent, too (`batches` is False). With a limit other than seconds the search
        waits all the same: else the faster part would spend what is left, and the tree would
        depend on time.
        """
        limits = self.budget.model_dump(exclude={"seconds"}, exclude_none=True)
        parts = isinstance(self.strategy, PartwiseStrategy)
        return bool(limits) or not parts or getattr(policy, "batches", True)

    @property
    def aggregates(self) -> tuple[str, ...]:
        """The path scores to store: those the strategy and the selector read."""
        return tuple(dict.fromkeys((*self.strategy.aggregates, self.selector.aggregate)))
