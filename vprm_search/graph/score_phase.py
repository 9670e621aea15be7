"""The last phase of the one loop: score the new steps of all searches in one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vprm_search.aggregate import path_score
from vprm_search.errors import ScorerError
from vprm_search.graph.job import Job
from vprm_search.graph.rules import SearchRules
from vprm_search.steps import normalise_text
from vprm_search.tree import SearchTree
from vprm_search.types import (
    NodeId,
    NodeRecord,
    ScoreCost,
    ScoreRequest,
    ScoreResult,
    StepScore,
    StepScorer,
)


async def score(
    jobs: Sequence[Job], scorer: StepScorer, rules: SearchRules
) -> list[list[NodeRecord]]:
    """Score all new steps of this round in one batch; return the changed records per job.

    A step whose very text path was scored before (two samples that begin alike) takes that score
    and costs nothing. Raises `ScorerError` if the scorer breaks its contract.
    """
    asked: list[tuple[Job, NodeId]] = []
    waiting = [[record.id for record in job.tree.unscored()] for job in jobs]
    for job in jobs:
        _copy_twins(job.tree)
        asked += [(job, node) for node in _paths_to_score(job.tree)]
    requests = [
        ScoreRequest(job.tree.problem, job.tree.steps(node), job.images) for job, node in asked
    ]
    results = await scorer.score(requests) if requests else []
    if len(results) != len(requests):
        raise ScorerError(f"the scorer got {len(requests)} requests and returned {len(results)}")
    costs: dict[int, list[ScoreCost]] = {id(job): [] for job in jobs}
    for (job, node), result in zip(asked, results, strict=True):
        _store(job.tree, node, result)
        costs[id(job)].append(result.cost)
    for job, nodes in zip(jobs, waiting, strict=True):
        _note_cost(job.tree, nodes, costs[id(job)])
    return [
        _settle(job.tree, nodes, rules.aggregates) for job, nodes in zip(jobs, waiting, strict=True)
    ]


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


def _note_cost(tree: SearchTree, nodes: Sequence[NodeId], costs: Sequence[ScoreCost]) -> None:
    """Write what the scorer spent on `nodes` onto the first of them.

    The join keeps the larger of two deliveries, so a round that is replayed counts once. Shares of
    forward passes become multiples of 1/4096, whose sums do not depend on their order.
    """
    if not costs:
        return
    first = tree[min(nodes)]
    passes = round(sum(cost.forward_passes for cost in costs) * 4096) / 4096
    spent = replace(
        first,
        tokens_sent=first.tokens_sent + sum(cost.tokens_sent for cost in costs),
        tokens_computed=first.tokens_computed + sum(cost.tokens_computed for cost in costs),
        images_encoded=first.images_encoded + sum(cost.images_encoded for cost in costs),
        forward_passes=first.forward_passes + passes,
    )
    tree.merge([spent])


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


def _settle(
    tree: SearchTree, nodes: Sequence[NodeId], aggregates: Sequence[str]
) -> list[NodeRecord]:
    """Score twins and end markers, add path scores; return the root and the records of `nodes`."""
    _copy_twins(tree)
    for record in tree.unscored():
        tree.merge([_inherited(tree, record)])
    fresh = []
    for node in nodes:
        scores = tree.counted_scores(node)
        paths = {name: path_score(name, scores) for name in aggregates}
        known = {name: value for name, value in paths.items() if value is not None}
        fresh.append(replace(tree[node], path_scores=known))
    tree.merge(fresh)
    return [tree[tree.root_id], *(tree[node] for node in nodes)]


def _inherited(tree: SearchTree, record: NodeRecord) -> NodeRecord:
    """Return an end marker with its parent's score; any other node was left without one."""
    parent = tree[record.parent or tree.root_id]
    if record.text:
        return replace(record, score_reason="a twin of this step has no score")
    if parent.score is None:
        return replace(record, score_reason=parent.score_reason or "no step before it")
    return replace(record, score=parent.score)
