"""The pure rules of a search, in one place for the graph, `run_search` and the benchmarks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from vprm_search.answers import extract_answer
from vprm_search.budget import Budget
from vprm_search.search.plan import Strategy
from vprm_search.search.selectors import Selector
from vprm_search.steps import DEFAULT_LIMITS, StepLimits, split_steps


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

    @property
    def aggregates(self) -> tuple[str, ...]:
        """The path scores to store: those the strategy and the selector read."""
        return tuple(dict.fromkeys((*self.strategy.aggregates, self.selector.aggregate)))
