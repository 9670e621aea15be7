"""From what a policy proposed and a scorer said to the records of the tree.

A whole solution (`until="end"`) is cut as its reward model's reference cuts it and kept to the
letter, blank steps included; a single step is cleaned of white space around it. What stands in the
tree is what is scored, once: nothing is cut, joined or cleaned again afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from vprm_search import ids
from vprm_search.errors import InputError, PolicyError, ScorerError
from vprm_search.graph.parts import SearchRules
from vprm_search.search.plan import Expand
from vprm_search.steps import normalise_text
from vprm_search.steps.thinking import put_thinking_aside
from vprm_search.tree import SearchTree
from vprm_search.types import (
    COUNTED,
    Cause,
    Counts,
    NodeId,
    NodeRecord,
    NodeStatus,
    Proposal,
    ScoreResult,
    StepScore,
    changed_record,
    counted_values,
    sparse_record,
)

_ENDED = ("finished", "truncated")
_STATUS: dict[str, NodeStatus] = {"step": "open", "stop": "finished", "length": "truncated"}
_EMPTY = sparse_record(NodeRecord(id="", parent=None, index=0))


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
    return [tree[node] for node in tree.merge(new, trusted=True)]


def proposed_nodes(
    tree: SearchTree,
    expand: Expand,
    index: int,
    proposal: Proposal,
    number: int,
    rules: SearchRules,
) -> list[NodeRecord]:
    """Return the records of one proposal: one step, or the chain of steps of a whole solution.

    What all of a chain cost stands on its first record.
    """
    told: dict[str, Any] = {"round": number}
    if expand.policy or expand.role:
        told |= {"policy": expand.policy, "role": expand.role}
    spent = {name: n for name, n in zip(COUNTED, counted_values(proposal), strict=True) if n}
    first = told | spent | {"seed": ids.child_seed(expand.node, index)}
    texts, failure = _texts_or_failure(tree, expand, proposal, rules)
    if failure:
        return [_child(expand.node, index, "", first | failure)]
    end: dict[str, Any] = {"status": _STATUS[proposal.finish]}
    if proposal.finish != "step":
        steps = [*tree.steps(expand.node), *texts]
        end["answer"] = rules.answer_in(steps, tree.problem)
    if len(texts) < 2 and all(texts):  # one step, or none: the answer ended at the step before
        return [_child(expand.node, index, "".join(texts), first | end)]
    chain: list[NodeRecord] = []
    for place, text in enumerate(texts, 1):
        parent, at, known = (chain[-1].id, 0, told) if chain else (expand.node, index, first)
        if place == len(texts):
            known = known | end
        chain.append(_child(parent, at, text, known if text else known | {"blank": True}))
    return chain


def _child(parent: NodeId, index: int, text: str, told: dict[str, Any]) -> NodeRecord:
    own = {"id": ids.child_id(parent, index, text), "parent": parent, "index": index, "text": text}
    return changed_record(_EMPTY, told | own)


def _texts_or_failure(
    tree: SearchTree, expand: Expand, proposal: Proposal, rules: SearchRules
) -> tuple[list[str], dict[str, Any]]:
    """Return the steps of a proposal, or the fields of the record of a failed one."""
    cause: Cause = "unusable"
    texts: list[str] = []
    if proposal.finish == "error":
        cause = "budget" if proposal.out_of_time else cause if proposal.unusable else "failed"
        reason = proposal.error or "the policy gave no reason"
    else:
        try:
            texts, reason = _step_texts(expand, proposal, rules), ""
        except InputError as error:
            reason = str(error)
        if not texts and not reason and (proposal.finish != "stop" or expand.node == tree.root_id):
            thought = proposal.text.strip() and "all of it is thinking"
            reason = proposal.error or thought or "empty step"
    if not reason:
        return texts, {}
    reason = normalise_text(reason)[:500]
    return texts, {"status": "failed", "reason": reason, "cause": cause}


def _step_texts(expand: Expand, proposal: Proposal, rules: SearchRules) -> list[str]:
    """Return the steps of a proposal, none if it holds only white space and thinking."""
    text = put_thinking_aside(normalise_text(proposal.text))
    clean = text.strip()
    if not clean:
        return []
    if expand.until == "end":
        rules.limits.check_text(text, "the proposed solution")
        # the rest of a cleaned path
        return rules.steps_of(clean if expand.role == "completion" else text)
    rules.limits.check_steps([clean])
    return [clean]


# --- what was scored -----------------------------------------------------------------------------


def paths_to_score(tree: SearchTree, unscored: Sequence[NodeRecord]) -> list[NodeId]:
    """Return the deepest unscored nodes, one for each distinct text path."""
    waiting = [record for record in unscored if record.is_step]
    inner = {record.parent for record in waiting}
    paths = {tree.text_key(record.id): record.id for record in reversed(waiting)}
    chosen = set(paths.values())
    return [r.id for r in waiting if r.id in chosen and r.id not in inner]


def ended_without_score(tree: SearchTree) -> list[NodeRecord]:
    """Return the paths that ended in the round before this one and got no score.

    They are asked for once more. What goes on is asked for with the steps below it.
    """
    before = tree.round_nodes(tree.rounds - 1)
    return [r for r in before if r.status in _ENDED and r.score is None and r.score_reason]


def store_scores(
    tree: SearchTree, node: NodeId, steps: int, result: ScoreResult, aggregates: Sequence[str]
) -> list[NodeId]:
    """Write the scores of the path to `node`, and the path scores they make, on its records.

    Steps right above it that were left without a score get theirs, too. Returns whose records
    changed. Raises `ScorerError` if there are not as many scores as the path has `steps`.
    """
    if len(result.scores) != steps:
        raise ScorerError(
            f"the scorer was given {steps} steps and returned {len(result.scores)} scores"
        )
    tokens = result.step_tokens or (0,) * steps
    if len(tokens) != steps:
        raise ScorerError(f"the scorer counted tokens of {len(tokens)} steps, not of {steps}")
    record, new = tree[node], []
    while record.score is None and record.parent is not None:
        new.append(record)
        record = tree[record.parent]
    changed = []
    for place, record in enumerate(reversed(new), steps - len(new)):
        if not _copy_twin(tree, record, aggregates):
            said = _said_of(result.scores[place], tokens[place])
            if record.score_reason and "score" not in said:
                continue
            _settle(tree, record.id, said, aggregates)
        changed.append(record.id)
    if result.prefix_tokens > tree[tree.root_id].scored_tokens:
        tree.amend(tree.root_id, scored_tokens=int(result.prefix_tokens))
    return changed


def note_cost(tree: SearchTree, nodes: Sequence[NodeId], costs: Sequence[Counts]) -> None:
    """Write what the scorer spent on `nodes` onto the first of them.

    The join keeps the larger of two deliveries, so a round that is replayed counts once. Shares of
    forward passes become multiples of 1/4096, whose sums do not depend on their order.
    """
    reported = [counts for counts in map(counted_values, costs) if any(counts)]
    if not reported:
        return
    sums = map(sum, zip(*reported, strict=True))
    spent = Counts(**dict(zip(COUNTED, sums, strict=True)))
    spent = replace(spent, forward_passes=round(spent.forward_passes * 4096) / 4096)
    first = tree[min(nodes)]
    tree.amend(first.id, **(first + spent).counts())


def _said_of(step: StepScore, tokens: int) -> dict[str, Any]:
    """Return what a scorer said of a step, as fields of its record."""
    if step.value is None:
        return {"score_reason": normalise_text(step.reason)[:500] or "the scorer gave no reason"}
    if not 0.0 <= step.value <= 1.0:
        return {"score_reason": f"score {step.value!r} is not a probability"}
    return {"score": float(step.value), "scored_tokens": int(tokens)}


def copy_twins(
    tree: SearchTree, unscored: Sequence[NodeRecord], aggregates: Sequence[str]
) -> list[NodeRecord]:
    """Give steps whose very text path was scored before that score; return those without one."""
    return [record for record in unscored if not _copy_twin(tree, record, aggregates)]


def _copy_twin(tree: SearchTree, record: NodeRecord, aggregates: Sequence[str]) -> bool:
    twin = tree.scored_twin(record.id) if record.is_step else None
    if twin is not None:
        _settle(tree, record.id, {"score": twin.score}, aggregates)
    return twin is not None


def settle(tree: SearchTree, aggregates: Sequence[str], again: Sequence[NodeRecord] = ()) -> None:
    """Score what no request was made for: twins, end markers, and what is left without a score.

    `again` are ended paths that were asked for once more; their twins and end markers follow.
    """
    for record in copy_twins(tree, tree.unscored(), aggregates):
        _settle(tree, record.id, _inherited(tree, record), aggregates)
    for record in again:
        if record.is_step:
            copy_twins(tree, [record] if tree[record.id].score is None else [], aggregates)
        elif "score" in (told := _inherited(tree, record)):
            _settle(tree, record.id, told, aggregates)


def _settle(
    tree: SearchTree, node: NodeId, told: Mapping[str, Any], aggregates: Sequence[str]
) -> None:
    """Write what is told of a node's score, and the path scores that follow from it."""
    score = told.get("score")
    if score is None:
        tree.amend(node, **told)
    else:
        tree.amend(node, path_scores=tree.path_scores(node, score, aggregates), **told)


def _inherited(tree: SearchTree, record: NodeRecord) -> dict[str, Any]:
    """Return the score of an end marker: its parent's; any other node was left without one."""
    parent = tree[record.parent or tree.root_id]
    if record.is_step:
        return {"score_reason": "a twin of this step has no score"}
    if parent.score is None:
        return {"score_reason": parent.score_reason or "no step before it"}
    return {"score": parent.score}
