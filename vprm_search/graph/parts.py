"""What a search is made of: its pure rules, and what may be given as a policy and a scorer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from vprm_search.answers import answer_in_steps, choices_of, extract_answer
from vprm_search.budget import Budget
from vprm_search.errors import ConfigError
from vprm_search.search.auto import Advice, AutoSearch
from vprm_search.search.best_of_n import BestOfN
from vprm_search.search.plan import PartwiseStrategy, Strategy, needs_scores
from vprm_search.search.selectors import MajorityVote, Selector, WeightedVote
from vprm_search.steps import (
    DEFAULT_LIMITS,
    Splitter,
    StepLimits,
    join_steps,
    split_solution,
    splitter_of,
)
from vprm_search.types import (
    NO_SCORER,
    Policy,
    Problem,
    Proposal,
    ProposeRequest,
    ScoreRequest,
    ScoreResult,
    StepScorer,
)

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel
    from langchain_core.runnables import Runnable

    OnePolicy = Policy | BaseChatModel | Runnable[Any, Any]

OWN_VOTE = WeightedVote(aggregate="product", weight="odds")
"""What "auto" chooses by."""


@dataclass(frozen=True, slots=True)
class SearchRules:
    """The pure rules of a search: what to expand, what to choose, when to stop, how to read text.

    `split` cuts a whole solution into steps; by name (`steps.SPLITTERS`) it is
    `split_solution` with that splitter. `extract` reads the final answer out of it. An `AutoSearch`
    is fitted to `budget`. Raises `ConfigError` for a strategy or a selector that is none, or an
    unknown splitter.
    """

    strategy: Strategy
    selector: Selector
    budget: Budget = field(default_factory=Budget)
    extract: Callable[[str], str | None] = extract_answer
    split: str | Splitter = split_solution
    limits: StepLimits = DEFAULT_LIMITS

    def __post_init__(self) -> None:
        check_part("strategy", self.strategy, Strategy)
        check_part("selector", self.selector, Selector)
        object.__setattr__(self, "strategy", fitted(self.strategy, self.budget))
        if isinstance(self.split, str):
            splitter_of(self.split)

    def answer_in(self, steps: Sequence[str], problem: Problem) -> str | None:
        """Return the final answer of a path's steps, by the choices of its problem if any."""
        if self.extract is extract_answer:
            return answer_in_steps(steps, choices_of(problem))
        return self.extract(join_steps(steps))

    def steps_of(self, solution: str) -> list[str]:
        """Return the steps of a whole solution. Raises `InputError` if it is too long."""
        if isinstance(self.split, str):
            return split_solution(solution, splitter=self.split, limits=self.limits)
        return self.split(solution)

    def waits_for_all(self, policy: Policy) -> bool:
        """Whether a round waits for every reply of the policy before anything goes on.

        Parts of a tree go on by themselves if the strategy has independent parts and the policy's
        calls are independent, too (`batches` is False). With a limit other than seconds the search
        waits all the same: else the faster part would spend what is left, and the tree would
        depend on time.
        """
        parts = isinstance(self.strategy, PartwiseStrategy)
        return self.budget.limits_work or not parts or getattr(policy, "batches", True)

    @property
    def aggregates(self) -> tuple[str, ...]:
        """The path scores to store: those the strategy and the selector read."""
        return tuple(dict.fromkeys((*self.strategy.aggregates, self.selector.aggregate)))


_MOST_SAMPLES = 256  # where a budget says how many


def fitted(strategy: Strategy, budget: Budget) -> Strategy:
    """Return the strategy; an `AutoSearch` fitted to a budget."""
    return strategy.within(budget) if isinstance(strategy, AutoSearch) else strategy


def choose_rules(
    strategy: Strategy | Literal["auto"] | None,
    selector: Selector | None,
    *,
    policy: Policy,
    scorer: StepScorer | None,
    budget: Budget | None = None,
    advice: Advice | None = None,
) -> tuple[Strategy, Selector]:
    """Return the strategy and the selector of a search, where they are left open.

    "auto" (or None, or an `AutoSearch`) searches, with a vote weighted by the odds of the
    product of the scores (`OWN_VOTE`), unless

    * there is no scorer, or `advice` is "majority": best-of-N and the most frequent answer;
    * the policy cannot continue a path (its `continues` is False) and `advice` does not say
      "search": best-of-N and the same vote;
    * `advice` is "vote": best-of-N and a vote weighted by the last scores, the only ones that tell.

    Best-of-N samples `AutoSearch.n` solutions, or what a limit on tokens, candidates or requests
    pays for. Raises `ConfigError` for an advice beside a strategy of the user's own.
    """
    if strategy is None or strategy == "auto":
        strategy = AutoSearch()
    if not isinstance(strategy, AutoSearch):
        if advice is not None:
            raise ConfigError(
                f"advice {advice!r} is for strategy='auto', and the strategy is "
                f"{type(strategy).__name__}; leave one of them out"
            )
        return strategy, selector or WeightedVote()
    limits = () if budget is None else budget.model_dump(exclude={"seconds", "rounds"}).values()
    samples = BestOfN(strategy.n if set(limits) <= {None} else _MOST_SAMPLES)
    if scorer is None or advice == "majority":
        return samples, selector or MajorityVote()
    if advice == "vote":
        return samples, selector or WeightedVote()
    if advice is None and not getattr(policy, "continues", True):
        return samples, selector or OWN_VOTE
    return strategy, selector or OWN_VOTE


def check_part(name: str, given: object, kind: type[Any]) -> None:
    """Raise `ConfigError` if `given` has not the methods of the protocol `kind`, or is a class."""
    if isinstance(given, type):
        raise ConfigError(
            f"{name} is the class {given.__name__}; give an object: {given.__name__}()"
        )
    if not isinstance(given, kind):
        raise ConfigError(
            f"{name} is {type(given).__name__}, which is no {kind.__name__} "
            f"(the protocol vprm_search.{kind.__name__})"
        )


def as_scorer(scorer: StepScorer | None, rules: SearchRules) -> StepScorer:
    """Return `scorer`, or one that scores nothing if there is none and `rules` need none.

    Raises `ConfigError` if the strategy or the selector reads scores, or `scorer` is none.
    """
    if scorer is not None:
        check_part("scorer", scorer, StepScorer)
        return scorer
    for rule in (rules.strategy, rules.selector):
        if needs_scores(rule):
            raise ConfigError(
                f"{type(rule).__name__} reads scores, and scorer is None: give a scorer, or take "
                "rules that need none, such as BestOfN(8) with MajorityVote()"
            )
    return NoScorer()


class NoScorer:
    """Gives no step a score; implements `StepScorer`."""

    async def score(self, requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
        """Say of every step that there is no scorer."""
        return [ScoreResult.failed(len(r.steps), NO_SCORER) for r in requests]


def as_policy(policy: OnePolicy | Mapping[str, OnePolicy]) -> Policy:
    """Return `policy` itself, or the adapter around a chat model (`model.bind(...)` included).

    A mapping names several policies; a strategy such as `Cascade` says which one proposes, and the
    first proposes where it does not. Raises `ConfigError` for anything else.
    """
    if isinstance(policy, Mapping):
        return NamedPolicies({name: as_policy(one) for name, one in policy.items()})
    if isinstance(policy, Policy):
        return policy
    from vprm_search.policy.chat_model_policy import ChatModelPolicy

    return ChatModelPolicy(policy)


class NamedPolicies:
    """Several policies behind one: each request goes to the one it names; implements `Policy`.

    Raises `ConfigError` if there is none, or a request names one that is not there.
    """

    def __init__(self, policies: Mapping[str, Policy]) -> None:
        if not policies or "" in policies:
            raise ConfigError(f"policies need at least one name, none empty; got {list(policies)}")
        self._policies = {"": next(iter(policies.values())), **policies}

    async def propose(self, requests: Sequence[ProposeRequest]) -> list[list[Proposal]]:
        """Answer all requests, the policies side by side."""
        places: dict[str, list[int]] = {}
        for place, request in enumerate(requests):
            if request.policy not in self._policies:
                known = ", ".join(name for name in self._policies if name)
                raise ConfigError(f"no policy is named {request.policy!r}; there are: {known}")
            places.setdefault(request.policy, []).append(place)
        asked = [
            self._policies[name].propose([requests[place] for place in where])
            for name, where in places.items()
        ]
        replies: list[list[Proposal]] = [[] for _ in requests]
        for where, answers in zip(places.values(), await asyncio.gather(*asked), strict=True):
            for place, answer in zip(where, answers, strict=True):
                replies[place] = answer
        return replies
