"""What a round does, for one search or for many: plan, check, propose, score.

The LangGraph nodes call these phases with one tree; `run_jobs` and the benchmarks call them with
many, so that one request to the policy or the scorer carries the work of all searches. Every phase
merges what it did into the tree and returns the changed records, which is what a checkpoint has to
hold.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from vprm_search import ids
from vprm_search.aggregate import path_score
from vprm_search.budget import usage_of
from vprm_search.errors import InputError, PolicyError, ScorerError, SearchError
from vprm_search.graph.parts import SearchRules
from vprm_search.search.outcome import CUT_BY_BUDGET, NOT_NEEDED
from vprm_search.search.plan import Close, Expand, PartwiseStrategy, Plan, Strategy
from vprm_search.steps import join_steps, normalise_text
from vprm_search.tree import SearchTree
from vprm_search.types import (
    Cause,
    Counts,
    ImageData,
    NodeId,
    NodeRecord,
    NodeStatus,
    Policy,
    Proposal,
    ProposeRequest,
    ScoreRequest,
    ScoreResult,
    StepScore,
    StepScorer,
    Usage,
)

_STATUS: dict[str, NodeStatus] = {"step": "open", "stop": "finished", "length": "truncated"}


@dataclass(frozen=True, slots=True)
class Job:
    """One search in a batch: its tree, its problem's images, and the seconds spent so far."""

    tree: SearchTree
    images: tuple[ImageData, ...] = ()
    seconds: float = 0.0


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


def proposed_nodes(
    tree: SearchTree,
    expand: Expand,
    index: int,
    proposal: Proposal,
    number: int,
    rules: SearchRules,
) -> list[NodeRecord]:
    """Return the records of one proposal: one step, or the chain of steps of a whole solution."""
    first = NodeRecord(
        id="",
        parent=expand.node,
        index=index,
        seed=ids.child_seed(expand.node, index),
        round=number,
        **proposal.counts(),
        policy=expand.policy,
        role=expand.role,
    )
    if proposal.finish == "error":
        cause: Cause = "budget" if proposal.out_of_time else "failed"
        return [_failed(first, proposal.error or "the policy gave no reason", cause)]
    try:
        texts = _step_texts(expand, proposal, rules)
    except InputError as error:
        return [_failed(first, str(error))]
    if not texts:
        if proposal.finish != "stop" or expand.node == tree.root_id:
            return [_failed(first, "empty step")]
        texts = [""]  # the policy ended its answer at the step before: an end marker
    so_far = list(tree.steps(expand.node))
    chain: list[NodeRecord] = []
    for position, text in enumerate(texts):
        parent = chain[-1].id if chain else expand.node
        at = index if position == 0 else 0
        record = first if position == 0 else _later(expand, parent)
        node = ids.child_id(parent, at, text)
        chain.append(replace(record, id=node, parent=parent, text=text, round=number))
        so_far += [text] if text else []
    status = _STATUS[proposal.finish]
    answer = rules.extract(join_steps(so_far)) if status != "open" else None
    chain[-1] = replace(chain[-1], status=status, answer=answer)
    return chain


def _later(expand: Expand, parent: NodeId) -> NodeRecord:
    """Return the record of a further step of one proposal; what it cost stands on the first."""
    return NodeRecord(id="", parent=parent, index=0, policy=expand.policy, role=expand.role)


def _step_texts(expand: Expand, proposal: Proposal, rules: SearchRules) -> list[str]:
    if expand.until == "end":
        rules.limits.check_text(proposal.text, "the proposed solution")
        return [text for step in rules.split(proposal.text) if (text := step.strip())]
    text = normalise_text(proposal.text).strip()
    rules.limits.check_steps([text])
    return [text] if text else []


def _failed(record: NodeRecord, reason: str, cause: Cause = "failed") -> NodeRecord:
    node = ids.child_id(record.parent or "", record.index, "")
    reason = normalise_text(reason)[:500]
    return replace(record, id=node, status="failed", reason=reason, cause=cause)


# --- score --------------------------------------------------------------------------------------


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
    costs: dict[int, list[Counts]] = {id(job): [] for job in jobs}
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


def _note_cost(tree: SearchTree, nodes: Sequence[NodeId], costs: Sequence[Counts]) -> None:
    """Write what the scorer spent on `nodes` onto the first of them.

    The join keeps the larger of two deliveries, so a round that is replayed counts once. Shares of
    forward passes become multiples of 1/4096, whose sums do not depend on their order.
    """
    if not costs:
        return
    first = tree[min(nodes)]
    spent = sum(costs, Counts())
    spent = replace(spent, forward_passes=round(spent.forward_passes * 4096) / 4096)
    tree.merge([replace(first, **(first + spent).counts())])


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
