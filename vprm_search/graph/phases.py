"""The first phases of the one loop — plan, propose — as functions over trees.

The LangGraph nodes call them with one tree; a benchmark calls them with many, so that one request
to the policy or the scorer carries the work of all searches. Every phase merges what it did into
the tree and returns the changed records, which is what a checkpoint has to hold.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from vprm_search import ids
from vprm_search.budget import usage_of
from vprm_search.errors import PolicyError, SearchError
from vprm_search.graph.in_flight import CallKey, CallsInFlight
from vprm_search.graph.job import Job
from vprm_search.graph.proposed_nodes import proposed_nodes
from vprm_search.graph.rules import SearchRules
from vprm_search.search.outcome import CUT_BY_BUDGET, NOT_NEEDED
from vprm_search.search.plan import Close, Expand, PartwiseStrategy, Plan, Strategy
from vprm_search.tree import SearchTree
from vprm_search.types import (
    NodeId,
    NodeRecord,
    Policy,
    Proposal,
    ProposeRequest,
    Usage,
)

# --- plan --------------------------------------------------------------------------------------


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
    plan = _planned(rules.strategy, tree, under_way)
    usage: Usage = usage_of(tree, seconds)
    met = rules.budget.exhausted(usage)
    if met is not None and (was_cut or not plan.finish or _gave_up(tree)):
        return ended(plan, tree, rules, f"budget: {met}", cut_short=True)
    if plan.finish:
        return ended(plan, tree, rules, plan.finish)
    left = rules.budget.candidates_left(usage)
    return plan if left is None else _limited(plan, left, tree)


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
    if not isinstance(strategy, PartwiseStrategy):
        return strategy.plan(tree)
    plan = strategy.plan_parts(tree, frozenset(expand.node for expand in under_way))
    return plan if plan.finish else replace(plan, expand=under_way + plan.expand)


def ended(
    plan: Plan, tree: SearchTree, rules: SearchRules, reason: str, *, cut_short: bool = False
) -> Plan:
    """Return the plan that ends the search: what is still open gets a reason, too.

    With `cut_short` a limit ended the search, and open paths are "cut by budget". Otherwise the
    strategy was content: they are pruned if there is an answer without them, and else stay open,
    for the fallback.
    """
    # A draft that nothing will replace is not put aside.
    own = [c for c in plan.close if not (cut_short and c.cause == "redone")]
    gone = {close.node for close in own}
    waiting = [r.id for r in tree.open_leaves() if r.parent is not None and r.id not in gone]
    aggregate = rules.selector.aggregate
    answered = any(
        tree.path_score(r.id, aggregate) is not None for r in tree.finished() if r.id not in gone
    )
    marks = tuple(
        Close(node, f"{CUT_BY_BUDGET}: {reason.removeprefix('budget: ')}", "open", cause="budget")
        if cut_short
        else Close(
            node, f"{NOT_NEEDED}: {reason}", "pruned" if answered else "open", cause="not_needed"
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
    return _merged(tree, (close.closed(tree[close.node]) for close in plan.close))


# --- propose -----------------------------------------------------------------------------------


async def propose(
    jobs: Sequence[Job], plans: Sequence[Plan], policy: Policy, rules: SearchRules
) -> list[list[NodeRecord]]:
    """Ask the policy for all children of this round at once; return the new records per job.

    Raises `PolicyError` if the policy breaks its contract (wrong number of replies).
    """
    todo = [(job, e) for job, plan in zip(jobs, plans, strict=True) for e in plan.expand]
    requests = [propose_request(job, expand, rules) for job, expand in todo]
    replies = await policy.propose(requests) if requests else []
    if len(replies) != len(requests):
        raise PolicyError(f"the policy got {len(requests)} requests and returned {len(replies)}")
    answered: dict[int, dict[Expand, list[Proposal]]] = {id(job): {} for job in jobs}
    for (job, expand), reply in zip(todo, replies, strict=True):
        answered[id(job)][expand] = reply
    return [take_replies(job, answered[id(job)], rules) for job in jobs]


async def propose_some(
    job: Job, plan: Plan, calls: CallsInFlight, rules: SearchRules, owner: str
) -> tuple[list[NodeRecord], Plan]:
    """Ask for what is planned and not being asked yet; return the records that are there so far.

    The plan that comes back holds what is still under way.
    """
    keys = {CallKey(owner, expand): propose_request(job, expand, rules) for expand in plan.expand}
    done = await calls.replies(keys)
    records = take_replies(job, {key.expand: reply for key, reply in done.items()}, rules)
    left = tuple(expand for expand in plan.expand if CallKey(owner, expand) not in done)
    return records, replace(plan, expand=left)


def take_replies(
    job: Job, replies: Mapping[Expand, Sequence[Proposal]], rules: SearchRules
) -> list[NodeRecord]:
    """Merge what the policy proposed into the tree; return the new records.

    Raises `PolicyError` for a wrong number of proposals.
    """
    number = job.tree.rounds + 1
    new: list[NodeRecord] = []
    for expand, reply in replies.items():
        if len(reply) != expand.count:
            raise PolicyError(
                f"the policy was asked for {expand.count} continuations of {expand.node} and "
                f"returned {len(reply)}"
            )
        for offset, proposal in enumerate(reply):
            index, at = expand.first_index + offset, expand.round or number
            new += proposed_nodes(job.tree, expand, index, proposal, at, rules)
    return _merged(job.tree, new)


def propose_request(job: Job, expand: Expand, rules: SearchRules) -> ProposeRequest:
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
    )


def _merged(tree: SearchTree, records: Iterable[NodeRecord]) -> list[NodeRecord]:
    return [tree[node] for node in tree.merge(records)]
