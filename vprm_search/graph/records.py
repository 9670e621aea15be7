"""From what a policy proposed and a scorer said to the records of the tree.

A whole solution (`until="end"`) is cut as its reward model's reference cuts it and kept to the
letter, blank steps included; a single step is cleaned of white space around it. What stands in the
tree is what is scored, once: nothing is cut, joined or cleaned again afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from vprm_search import ids
from vprm_search.aggregate import path_score
from vprm_search.errors import InputError, PolicyError, ScorerError
from vprm_search.graph.parts import SearchRules
from vprm_search.search.plan import Expand
from vprm_search.steps import join_steps, normalise_text
from vprm_search.tree import SearchTree
from vprm_search.types import (
    Cause,
    Counts,
    NodeId,
    NodeRecord,
    NodeStatus,
    Proposal,
    ScoreResult,
    StepScore,
)

_STATUS: dict[str, NodeStatus] = {"step": "open", "stop": "finished", "length": "truncated"}


# --- what was proposed ---------------------------------------------------------------------------


def take_replies(
    tree: SearchTree, replies: Mapping[Expand, Sequence[Proposal]], rules: SearchRules
) -> list[NodeRecord]:
    """Merge what the policy proposed into the tree; return the new records.

    Raises `PolicyError` for a wrong number of proposals.
    """
    number = tree.rounds + 1
    new: list[NodeRecord] = []
    for expand, reply in replies.items():
        if len(reply) != expand.count:
            raise PolicyError(
                f"the policy was asked for {expand.count} continuations of {expand.node} and "
                f"returned {len(reply)}"
            )
        for offset, proposal in enumerate(reply):
            index, at = expand.first_index + offset, expand.round or number
            new += proposed_nodes(tree, expand, index, proposal, at, rules)
    return [tree[node] for node in tree.merge(new)]


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
        cause: Cause = "unusable" if proposal.unusable else "failed"
        cause = "budget" if proposal.out_of_time else cause
        return [_failed(first, proposal.error or "the policy gave no reason", cause)]
    try:
        texts = _step_texts(expand, proposal, rules)
    except InputError as error:
        return [_failed(first, str(error), "unusable")]
    if not texts:
        if proposal.finish != "stop" or expand.node == tree.root_id:
            return [_failed(first, "empty step", "unusable")]
        end = ids.child_id(expand.node, index, "")  # the answer ended at the step before
        chain = [replace(first, id=end)]
    else:
        chain = _chain(first, texts)
    status = _STATUS[proposal.finish]
    so_far = [*tree.steps(expand.node), *texts]
    answer = rules.extract(join_steps(so_far)) if status != "open" else None
    chain[-1] = replace(chain[-1], status=status, answer=answer)
    return chain


def _chain(first: NodeRecord, texts: Sequence[str]) -> list[NodeRecord]:
    """Return one record per step, each below the one before; what all cost stands on the first."""
    later = NodeRecord(
        id="", parent="", index=0, round=first.round, policy=first.policy, role=first.role
    )
    chain: list[NodeRecord] = []
    for text in texts:
        record = replace(later, parent=chain[-1].id) if chain else first
        node = ids.child_id(record.parent or "", record.index, text)
        chain.append(replace(record, id=node, text=text, blank=not text))
    return chain


def _step_texts(expand: Expand, proposal: Proposal, rules: SearchRules) -> list[str]:
    """Return the steps of a proposal, none if it holds nothing but white space."""
    if not proposal.text.strip():
        return []
    if expand.until == "end":
        rules.limits.check_text(proposal.text, "the proposed solution")
        return rules.split(normalise_text(proposal.text))
    text = normalise_text(proposal.text).strip()
    rules.limits.check_steps([text])
    return [text]


def _failed(record: NodeRecord, reason: str, cause: Cause) -> NodeRecord:
    node = ids.child_id(record.parent or "", record.index, "")
    reason = normalise_text(reason)[:500]
    return replace(record, id=node, status="failed", reason=reason, cause=cause)


# --- what was scored -----------------------------------------------------------------------------


def paths_to_score(tree: SearchTree) -> list[NodeId]:
    """Return the deepest unscored nodes, one for each distinct text path."""
    waiting = [record for record in tree.unscored() if record.is_step]
    inner = {record.parent for record in waiting}
    paths = {tree.steps(record.id): record.id for record in reversed(waiting)}
    chosen = set(paths.values())
    return [r.id for r in waiting if r.id in chosen and r.id not in inner]


def store_scores(tree: SearchTree, node: NodeId, result: ScoreResult) -> None:
    """Write the scores of the path to `node` on its records.

    Raises `ScorerError` if there are not as many scores as steps.
    """
    path = [record for record in tree.path(node) if record.is_step]
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


def note_cost(tree: SearchTree, nodes: Sequence[NodeId], costs: Sequence[Counts]) -> None:
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


def copy_twins(tree: SearchTree) -> None:
    """Give a step whose very text path was scored before that score."""
    for record in tree.unscored():
        twin = tree.scored_twin(record.id) if record.is_step else None
        if twin is not None:
            tree.merge([replace(record, score=twin.score)])


def settle(
    tree: SearchTree, nodes: Sequence[NodeId], aggregates: Sequence[str]
) -> list[NodeRecord]:
    """Score twins and end markers, add path scores; return the root and the records of `nodes`."""
    copy_twins(tree)
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
    if record.is_step:
        return replace(record, score_reason="a twin of this step has no score")
    if parent.score is None:
        return replace(record, score_reason=parent.score_reason or "no step before it")
    return replace(record, score=parent.score)
