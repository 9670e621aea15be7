"""The phases of the one loop — plan, propose, score — as functions over trees.

The LangGraph nodes call them with one tree; a benchmark calls them with many, so that one request
to the policy or the scorer carries the work of all searches. Every phase merges what it did into
the tree and returns the changed records, which is what a checkpoint has to hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from vprm_search import ids
from vprm_search.aggregate import path_score
from vprm_search.budget import usage_of
from vprm_search.errors import PolicyError, ScorerError, SearchError
from vprm_search.graph.proposed_nodes import proposed_nodes
from vprm_search.graph.rules import SearchRules
from vprm_search.search.plan import Expand, Plan
from vprm_search.steps import normalise_text
from vprm_search.tree import SearchTree
from vprm_search.types import (
    ImageData,
    NodeId,
    NodeRecord,
    Policy,
    ProposeRequest,
    ScoreRequest,
    ScoreResult,
    StepScore,
    StepScorer,
    Usage,
)


@dataclass(frozen=True, slots=True)
class Job:
    """One search in a batch: its tree and its problem's images."""

    tree: SearchTree
    images: tuple[ImageData, ...] = ()


# --- plan --------------------------------------------------------------------------------------


def next_plan(tree: SearchTree, rules: SearchRules, *, seconds: float = 0.0) -> Plan:
    """Return the next round: the strategy's plan, cut to the budget.

    When a limit is met the plan finishes with "budget: …"; what the strategy wanted to close is
    still closed. `seconds` is the time spent so far.
    """
    plan = rules.strategy.plan(tree)
    if plan.finish:
        return replace(plan, expand=())
    usage: Usage = usage_of(tree, seconds)
    met = rules.budget.exhausted(usage)
    if met is not None:
        return Plan(close=plan.close, finish=f"budget: {met}")
    left = rules.budget.candidates_left(usage)
    return plan if left is None else plan.limited_to(left)


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
        known = tree.child_count(expand.node)
        if expand.count < 1 or expand.first_index < known:
            raise SearchError(
                f"{name} asked for {expand.count} children of {expand.node} from index "
                f"{expand.first_index} on, which has {known}; ask for at least one, at new indices"
            )


def close_nodes(tree: SearchTree, plan: Plan) -> list[NodeRecord]:
    """Close the nodes the plan puts aside; return the changed records."""
    closed = (
        replace(tree[close.node], status=close.status, reason=close.reason) for close in plan.close
    )
    return _merged(tree, closed)


# --- propose -----------------------------------------------------------------------------------


async def propose(
    jobs: Sequence[Job], plans: Sequence[Plan], policy: Policy, rules: SearchRules
) -> list[list[NodeRecord]]:
    """Ask the policy for all children of this round at once; return the new records per job.

    Raises `PolicyError` if the policy breaks its contract (wrong number of replies).
    """
    todo = [
        (job, expand, job.tree.rounds + 1)
        for job, plan in zip(jobs, plans, strict=True)
        for expand in plan.expand
    ]
    requests = [_propose_request(job, expand) for job, expand, _ in todo]
    replies = await policy.propose(requests) if requests else []
    if [len(reply) for reply in replies] != [expand.count for _, expand, _ in todo]:
        raise PolicyError(
            f"the policy was asked for {[e.count for _, e, _ in todo]} continuations "
            f"and returned {[len(reply) for reply in replies]}"
        )
    new: dict[int, list[NodeRecord]] = {id(job): [] for job in jobs}
    for (job, expand, number), reply in zip(todo, replies, strict=True):
        for offset, proposal in enumerate(reply):
            index = expand.first_index + offset
            new[id(job)] += proposed_nodes(job.tree, expand, index, proposal, number, rules)
    return [_merged(job.tree, new[id(job)]) for job in jobs]


def _propose_request(job: Job, expand: Expand) -> ProposeRequest:
    indices = range(expand.first_index, expand.first_index + expand.count)
    return ProposeRequest(
        problem=job.tree.problem,
        steps=job.tree.steps(expand.node),
        seeds=tuple(ids.child_seed(expand.node, index) for index in indices),
        until=expand.until,
        images=job.images,
    )


# --- score -------------------------------------------------------------------------------------


async def score(
    jobs: Sequence[Job], scorer: StepScorer, rules: SearchRules
) -> list[list[NodeRecord]]:
    """Score all new steps of this round in one batch; return the changed records per job.

    A step whose very text path was scored before (two samples that begin alike) takes that score
    and costs nothing. Raises `ScorerError` if the scorer breaks its contract.
    """
    asked: list[tuple[Job, NodeId]] = []
    for job in jobs:
        _copy_twins(job.tree)
        asked += [(job, node) for node in _paths_to_score(job.tree)]
    requests = [
        ScoreRequest(job.tree.problem, job.tree.steps(node), job.images) for job, node in asked
    ]
    results = await scorer.score(requests) if requests else []
    if len(results) != len(requests):
        raise ScorerError(f"the scorer got {len(requests)} requests and returned {len(results)}")
    for (job, node), result in zip(asked, results, strict=True):
        _store(job.tree, node, result)
    return [_settle(job.tree, rules.aggregates) for job in jobs]


def _paths_to_score(tree: SearchTree) -> list[NodeId]:
    """Return the deepest unscored nodes, one for each distinct text path."""
    waiting = [record for record in tree.unscored() if record.text]
    inner = {record.parent for record in waiting}
    paths = {tree.steps(record.id): record.id for record in reversed(waiting)}
    chosen = set(paths.values())
    return [r.id for r in waiting if r.id in chosen and r.id not in inner]


def _store(tree: SearchTree, node: NodeId, result: ScoreResult) -> None:
    path = [record for record in tree.path(node) if record.text]
    if len(result.scores) != len(path):
        raise ScorerError(
            f"the scorer was given {len(path)} steps and returned {len(result.scores)} scores"
        )
    tokens = result.step_tokens or (0,) * len(path)
    if len(tokens) != len(path):
        raise ScorerError(f"the scorer counted tokens of {len(tokens)} steps, not of {len(path)}")
    changed = [
        _with_score(record, step, spent)
        for record, step, spent in zip(path, result.scores, tokens, strict=True)
        if record.score is None and not record.score_reason and not tree.scored_twin(record.id)
    ]
    root = tree[tree.root_id]
    tree.merge([*changed, replace(root, scored_tokens=int(result.prefix_tokens))])


def _with_score(record: NodeRecord, step: StepScore, tokens: int) -> NodeRecord:
    if step.value is None:
        reason = normalise_text(step.reason)[:500] or "the scorer gave no reason"
        return replace(record, score_reason=reason)
    if not 0.0 <= step.value <= 1.0:
        return replace(record, score_reason=f"score {step.value!r} is not a probability")
    return replace(record, score=float(step.value), scored_tokens=int(tokens))


def _copy_twins(tree: SearchTree) -> None:
    for record in tree.unscored():
        twin = tree.scored_twin(record.id) if record.text else None
        if twin is not None:
            tree.merge([replace(record, score=twin.score)])


def _settle(tree: SearchTree, aggregates: Sequence[str]) -> list[NodeRecord]:
    """Score twins and end markers, add path scores; return every record of the last round."""
    _copy_twins(tree)
    for record in tree.unscored():
        tree.merge([_inherited(tree, record)])
    fresh = []
    for record in tree.round_nodes(tree.rounds):
        scores = tree.counted_scores(record.id)
        paths = {name: path_score(name, scores) for name in aggregates}
        known = {name: value for name, value in paths.items() if value is not None}
        fresh.append(replace(record, path_scores=known))
    tree.merge(fresh)
    return [tree[tree.root_id], *tree.round_nodes(tree.rounds)]


def _inherited(tree: SearchTree, record: NodeRecord) -> NodeRecord:
    """Return an end marker with its parent's score; any other node was left without one."""
    parent = tree[record.parent or tree.root_id]
    if record.text:
        return replace(record, score_reason="a twin of this step has no score")
    if parent.score is None:
        return replace(record, score_reason=parent.score_reason or "no step before it")
    return replace(record, score=parent.score)


def _merged(tree: SearchTree, records: Iterable[NodeRecord]) -> list[NodeRecord]:
    return [tree[node] for node in tree.merge(records)]
