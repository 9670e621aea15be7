"""The one loop: what a round does, said once, for one search or for many.

`Loop` reads from top to bottom: plan, propose, score, plan …, conclude. The nodes of the graph
call its phases with one search and keep what they return in LangGraph's state; `run_jobs` calls
them with many, so that one request to the policy or the scorer carries the work of all. Every
phase merges what it did into the tree and returns the records it changed, which is what a
checkpoint has to hold, and the events that tell of it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from vprm_search import ids
from vprm_search.budget import Budget, usage_of
from vprm_search.errors import PolicyError, ScorerError, SearchError
from vprm_search.graph import events
from vprm_search.graph.parts import SearchRules
from vprm_search.graph.records import (
    copy_twins,
    ended_without_score,
    note_cost,
    paths_to_score,
    settle,
    store_scores,
    take_replies,
)
from vprm_search.graph.review import gone_on_with
from vprm_search.graph.session import CallsInFlight, ScoredRounds, propose_in_time
from vprm_search.search.outcome import CUT_BY_BUDGET, NOT_NEEDED, OnNoAnswer, conclude
from vprm_search.search.plan import (
    Close,
    Expand,
    Plan,
    Strategy,
)
from vprm_search.search.reserve import (
    leave_enough,
    longest_path,
    most_tokens,
    refill_or_go_on,
    rest_of_a_cut_path,
    was_completed,
    without_refills,
)
from vprm_search.tree import SearchTree
from vprm_search.types import (
    Counts,
    ImageData,
    NodeId,
    NodeRecord,
    Policy,
    Proposal,
    ProposeRequest,
    ScoreRequest,
    ScoreResult,
    SearchResult,
    StepScorer,
)

_LEAST_GRACE_S, _MOST_GRACE_S = 0.5, 5.0
_UNSCORED = "cut by budget: the search's seconds were over before the step was scored"

Told = tuple[list[NodeRecord], list[events.Event]]
"""What a phase did to one tree: the changed records, and the events that tell of it."""


@dataclass(slots=True)
class Job:
    """One search: its tree, its problem's images, the seconds spent so far, the round under way.

    `budget` takes the place of the one in the rules where searches run together have their own.
    """

    tree: SearchTree
    images: tuple[ImageData, ...] = ()
    seconds: float = 0.0
    plan: Plan = field(default_factory=Plan)
    messages: tuple[Any, ...] = ()  # the conversation around the question (`ProposeRequest`)
    budget: Budget | None = None


class Loop:
    """The phases of a round, in their order. A search has ended when its plan has a `finish`.

    Args:
        policy: what proposes steps.
        scorer: what scores them.
        rules: the pure rules of the search.
        waits: whether a round waits for every reply of the policy; else the parts of a
            `PartwiseStrategy` go on by themselves (`SearchRules.waits_for_all`).
        on_no_answer: what `conclude` does when no path finished.
        scored: which rounds the scorer of this process has seen, where a search may have begun
            in another process; None where it cannot.
        tells: whether somebody listens to the events; else none are made of the rounds.
    """

    def __init__(
        self,
        policy: Policy,
        scorer: StepScorer,
        rules: SearchRules,
        *,
        waits: bool = True,
        on_no_answer: OnNoAnswer = "best_truncated",
        scored: ScoredRounds | None = None,
        tells: bool = True,
    ) -> None:
        self.policy = policy
        self.scorer = scorer
        self.rules = rules
        self.waits = waits
        self.on_no_answer = on_no_answer
        self.calls = CallsInFlight(policy)
        self._scored = scored
        self._tells = tells

    def plan(self, job: Job) -> Told:
        """Ask the strategy what to do next, check it, and close what it puts aside.

        Raises `SearchError` for a plan that would go on for ever (`check_plan`).
        """
        tree, rules = job.tree, _rules_of(job, self.rules)
        known = () if self.waits else job.plan.expand
        plan = next_plan(tree, rules, seconds=job.seconds, was_cut=job.plan.cut, under_way=known)
        check_plan(plan, tree, rules)
        closed = close_nodes(tree, plan)
        job.plan = plan
        if plan.finish:
            self.calls.end_run()
        if self._scored is not None and tree.rounds == 0:
            self._scored.begin(tree.root_id)
        return closed, events.planned(tree, plan, closed, known=known) if self._tells else []

    async def propose(self, jobs: Sequence[Job]) -> list[Told]:
        """Ask the policy for all children of this round, or for the first that are there.

        Then `job.plan` holds what is still being asked. Raises what the policy raises, and
        `PolicyError` if it breaks its contract.
        """
        if self.waits:
            plans = [job.plan for job in jobs]
            records = await propose(jobs, plans, self.policy, self.rules)
        else:
            records = [await self._propose_some(job) for job in jobs]
        return [
            (new, events.expanded(j.tree, new) if self._tells else [])
            for j, new in zip(jobs, records, strict=True)
        ]

    async def _propose_some(self, job: Job) -> list[NodeRecord]:
        requests = {e: propose_request(job, e, self.rules) for e in job.plan.expand}  # no limit
        replies = await self.calls.replies(requests)
        left = tuple(expand for expand in job.plan.expand if expand not in replies)
        job.plan = replace(job.plan, expand=left)
        return take_replies(job.tree, replies, self.rules)

    async def score(self, jobs: Sequence[Job]) -> list[Told]:
        """Score all new steps of this round in one batch.

        What has no score when the search's seconds are over (`scoring_seconds`) stays without
        one, and the round counts as cut. Raises what the scorer raises, and `ScorerError` if it
        breaks its contract.
        """
        clock = asyncio.timeout(scoring_seconds(self.rules.budget, jobs))
        try:
            async with clock:
                taken_over = [await self._catch_up(job) for job in jobs]
                records = await score(jobs, self.scorer, self.rules, recompute=any(taken_over))
        except TimeoutError:
            if not clock.expired():
                raise
            records = await score(jobs, _TooLate(), self.rules)
            for job in jobs:
                job.plan = replace(job.plan, cut=True)
        return [
            (new, events.scored(j.tree, new) if self._tells else [])
            for j, new in zip(jobs, records, strict=True)
        ]

    async def _catch_up(self, job: Job) -> bool:
        """Bring the scorer's prefix cache to where another process left it; tell if it was needed.

        A scorer that keeps keys and values between rounds computes a new step on top of what the
        earlier rounds left behind. Computed in one piece, the same prefix gives scores that differ
        in their last bits. Asking for the earlier rounds again, in their order, makes the very
        same passes, so the search goes on byte for byte as if it had never stopped. The replies
        are thrown away: the records hold the scores already. A cache of scores must answer neither
        for those rounds nor for the present one, which may have been scored and not recorded.
        """
        if self._scored is None or not getattr(self.scorer, "has_prefix_cache", False):
            return False
        root, last = job.tree.root_id, job.tree.rounds
        taken_over = self._scored.misses(root, last)
        if taken_over:
            copy = SearchTree(job.tree.problem, job.tree.run_seed)
            for number in range(1, last):
                copy.merge(
                    replace(r, score=None, score_reason="", path_scores={}, scored_tokens=0)
                    for r in job.tree.round_nodes(number)
                )
                replayed = [Job(copy, job.images)]
                await score(replayed, self.scorer, self.rules, recompute=True)
        self._scored.note(root, last)
        return taken_over

    def conclude(self, job: Job) -> tuple[SearchResult, list[events.Event]]:
        """Choose the answer. Raises `NoAnswerError` if there is none and it was asked to."""
        result = conclude(
            job.tree,
            self.rules.selector,
            usage=usage_of(job.tree, job.seconds),
            ended_by=job.plan.finish,
            on_no_answer=self.on_no_answer,
        )
        return result, events.answered(job.tree, result)


# --- plan ----------------------------------------------------------------------------------------


def next_plan(
    tree: SearchTree,
    rules: SearchRules,
    *,
    seconds: float = 0.0,
    was_cut: bool = False,
    under_way: tuple[Expand, ...] = (),
) -> Plan:
    """Return the next round: the strategy's plan, cut to the budget.

    When a limit is met the plan finishes with "budget: …"; what the strategy wanted to close is
    still closed. `seconds` is the time spent so far. `was_cut` says that the last round was cut:
    a strategy that finds nothing left to do after it was kept from doing more is at the limit.
    `under_way` is what a `PartwiseStrategy` planned before and the policy has not answered yet; it
    stays in the plan.
    """
    plan = gone_on_with(_planned(rules.strategy, tree, under_way), tree)
    met = rules.budget.exhausted(usage_of(tree, seconds))
    if met is not None and (was_cut or not plan.finish or _gave_up(tree)):
        return ended(plan, tree, rules, f"budget: {met}", cut_short=True)
    if plan.finish:
        rest = rest_of_a_cut_path(plan, tree, rules.budget, _first_aggregate(rules))
        return rest or ended(plan, tree, rules, plan.finish)
    return _within_budget(plan, tree, rules, under_way) if rules.budget.limits_work else plan


def _within_budget(
    plan: Plan, tree: SearchTree, rules: SearchRules, under_way: tuple[Expand, ...]
) -> Plan:
    """Return what a limited search does of a strategy's plan, or how it ends for want of tokens."""
    budget, longest = rules.budget, longest_path(rules.strategy)
    lean = without_refills(rules.strategy)
    if lean is not rules.strategy:
        plan = refill_or_go_on(plan, _planned(lean, tree, under_way), tree, budget, longest)
    plan = leave_enough(plan, tree, budget, longest, _first_aggregate(rules))
    limited = _limited(plan, budget.room(tree, plan.count), tree)
    if limited.expand:
        return limited
    return ended(plan, tree, rules, f"budget: {budget.short(tree)}", cut_short=True)


def _first_aggregate(rules: SearchRules) -> str:
    return (*rules.strategy.aggregates, rules.selector.aggregate)[0]


def _rules_of(job: Job, rules: SearchRules) -> SearchRules:
    return rules if job.budget is None else replace(rules, budget=job.budget)


def _limited(plan: Plan, candidates: int, tree: SearchTree) -> Plan:
    """Return the plan cut to so many candidates; a draft that is not redone then stays."""
    limited = plan.limited_to(candidates)
    slots = Counter[NodeId]()
    for expand in limited.expand:
        slots[expand.node] += expand.count if expand.role == "redo" else 0
    close = []
    for one in limited.close:
        if one.cause == "redone":
            parent = tree[one.node].parent or tree.root_id
            slots[parent] -= 1
            if slots[parent] < 0:
                continue
        close.append(one)
    return replace(limited, close=tuple(close))


def _gave_up(tree: SearchTree) -> bool:
    """Tell whether calls of the last round were given up because the search's time was over."""
    return any(r.cause == "budget" for r in tree.round_nodes(tree.rounds))


def _planned(strategy: Strategy, tree: SearchTree, under_way: tuple[Expand, ...]) -> Plan:
    if not hasattr(strategy, "plan_parts"):
        return strategy.plan(tree)
    plan: Plan = strategy.plan_parts(tree, frozenset(expand.node for expand in under_way))
    return plan if plan.finish else replace(plan, expand=under_way + plan.expand)


def ended(
    plan: Plan, tree: SearchTree, rules: SearchRules, reason: str, *, cut_short: bool = False
) -> Plan:
    """Return the plan that ends the search: what is still open gets a reason, too.

    With `cut_short` a limit ended the search, and open paths are "cut by budget". Otherwise the
    strategy was content: they are pruned if there is an answer without them, and else stay open,
    for the fallback. So do those whose whole rests were asked for: paths go on below them.
    """
    # A draft that nothing will replace is not put aside.
    own = [c for c in plan.close if not (cut_short and c.cause == "redone")]
    gone = {close.node for close in own}
    waiting = [r.id for r in tree.open_leaves() if r.parent is not None and r.id not in gone]
    rests = [r for r in tree if r.role == "completion" and r.status == "open"]
    waiting += sorted(r.id for r in rests if not tree.child_count(r.id))
    aggregate = rules.selector.aggregate
    answered = any(
        tree.path_score(r.id, aggregate) is not None for r in tree.finished() if r.id not in gone
    )
    marks = tuple(
        Close(node, f"{CUT_BY_BUDGET}: {reason.removeprefix('budget: ')}", "open", cause="budget")
        if cut_short
        else Close(
            node,
            f"{NOT_NEEDED}: {reason}",
            "pruned" if answered and not was_completed(tree, node) else "open",
            cause="not_needed",
        )
        for node in waiting
    )
    return Plan(close=(*own, *marks), finish=reason)


def check_plan(plan: Plan, tree: SearchTree, rules: SearchRules) -> None:
    """Raise `SearchError` for a plan that would go on for ever.

    That is one that neither expands nor ends, or that asks again for children which exist.
    """
    name = type(rules.strategy).__name__
    if not plan.finish and not plan.expand:
        raise SearchError(
            f"{name} planned neither an expansion nor an end after round {tree.rounds}; a plan "
            "must do one of them"
        )
    for expand in plan.expand:
        asked = range(expand.first_index, expand.first_index + expand.count)
        known = {child.index for child in tree.children(expand.node)}
        if expand.count < 1 or not known.isdisjoint(asked):
            raise SearchError(
                f"{name} asked for {expand.count} children of {expand.node} from index "
                f"{expand.first_index} on, where {len(known)} are known; ask for at least one, at "
                "new indices"
            )


def close_nodes(tree: SearchTree, plan: Plan) -> list[NodeRecord]:
    """Close the nodes the plan puts aside; return the changed records."""
    closed: list[NodeId] = []
    for close in plan.close:
        closed += close.on(tree)
    return [tree[node] for node in closed]


# --- propose -------------------------------------------------------------------------------------


async def propose(
    jobs: Sequence[Job], plans: Sequence[Plan], policy: Policy, rules: SearchRules
) -> list[list[NodeRecord]]:
    """Ask the policy for all children of this round at once; return the new records per job.

    Raises `PolicyError` if the policy breaks its contract (wrong number of replies).
    """
    todo, requests = [], []
    for job, plan in zip(jobs, plans, strict=True):
        own = _rules_of(job, rules)
        share = most_tokens(plan, job.tree, own.budget, longest_path(own.strategy))
        todo += [(job, expand) for expand in plan.expand]
        requests += [propose_request(job, expand, own, max_tokens=share) for expand in plan.expand]
    replies = await propose_in_time(policy, requests) if requests else []
    if len(replies) != len(requests):
        raise PolicyError(f"the policy got {len(requests)} requests and returned {len(replies)}")
    answered: dict[int, dict[Expand, list[Proposal]]] = {id(job): {} for job in jobs}
    for (job, expand), reply in zip(todo, replies, strict=True):
        answered[id(job)][expand] = reply
    return [take_replies(job.tree, answered[id(job)], rules) for job in jobs]


def propose_request(
    job: Job, expand: Expand, rules: SearchRules, *, max_tokens: int | None = None
) -> ProposeRequest:
    """Return what the policy is asked for one expansion."""
    indices = range(expand.first_index, expand.first_index + expand.count)
    return ProposeRequest(
        problem=job.tree.problem,
        steps=job.tree.steps(expand.node),
        seeds=tuple(ids.child_seed(expand.node, index) for index in indices),
        until=expand.until,
        images=job.images,
        policy=expand.policy,
        timeout_s=rules.budget.seconds_left(job.seconds),
        temperature_scale=expand.temperature_scale,
        messages=job.messages,
        max_tokens=max_tokens,
    )


# --- score ---------------------------------------------------------------------------------------


def scoring_seconds(budget: Budget, jobs: Sequence[Job]) -> float | None:
    """Return how many seconds scoring may take, None if they are not limited.

    That is what is left of the budget. A policy that used all of it would leave its replies
    without scores, so scoring has a tenth of the limit in any case: half a second to five.
    """
    left = [s for job in jobs if (s := budget.seconds_left(job.seconds)) is not None]
    if not left or budget.seconds is None:
        return None
    return max(min(left), min(_MOST_GRACE_S, max(_LEAST_GRACE_S, 0.1 * budget.seconds)))


class _TooLate:
    """The scorer of a round whose time is up."""

    async def score(self, requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
        return [ScoreResult.failed(len(request.steps), _UNSCORED) for request in requests]


async def score(
    jobs: Sequence[Job], scorer: StepScorer, rules: SearchRules, *, recompute: bool = False
) -> list[list[NodeRecord]]:
    """Score all new steps of this round in one batch; return the changed records per job.

    A step whose very text path was scored before (two samples that begin alike) takes that score
    and costs nothing. What the round before left without a score is asked for once more: with the
    steps that follow it, or by itself where a path ended there. `recompute` asks caches not to
    answer. Raises `ScorerError` if the scorer breaks its contract.
    """
    asked: list[tuple[Job, NodeId]] = []
    aggregates = rules.aggregates
    waiting = [job.tree.unscored() for job in jobs]
    again = [
        ended_without_score(job.tree) if new else [] for job, new in zip(jobs, waiting, strict=True)
    ]
    for job, unscored, ended in zip(jobs, waiting, again, strict=True):
        left = copy_twins(job.tree, unscored, aggregates)
        steps = [r if r.is_step else job.tree[r.parent or job.tree.root_id] for r in ended]
        left += [step for step in steps if step.score is None]
        asked += [(job, node) for node in paths_to_score(job.tree, left)]
    requests = [
        ScoreRequest(job.tree.problem, job.tree.steps(node), job.images, recompute=recompute)
        for job, node in asked
    ]
    results = await scorer.score(requests) if requests else []
    if len(results) != len(requests):
        raise ScorerError(f"the scorer got {len(requests)} requests and returned {len(results)}")
    costs: dict[int, list[Counts]] = {id(job): [] for job in jobs}
    late: dict[int, list[NodeId]] = {id(job): [] for job in jobs}
    for (job, node), request, result in zip(asked, requests, results, strict=True):
        late[id(job)] += store_scores(job.tree, node, len(request.steps), result, aggregates)
        costs[id(job)].append(result.cost)
    changed = []
    for job, unscored, ended in zip(jobs, waiting, again, strict=True):
        nodes = [record.id for record in unscored]
        note_cost(job.tree, nodes, costs[id(job)])
        settle(job.tree, aggregates, ended)
        told = dict.fromkeys([*nodes, *late[id(job)], *(r.id for r in ended)])
        changed.append([job.tree[node] for node in (job.tree.root_id, *told)])
    return changed
