"""From what a policy proposed to the records of the tree."""

from __future__ import annotations

from dataclasses import replace

from vprm_search import ids
from vprm_search.errors import InputError
from vprm_search.graph.rules import SearchRules
from vprm_search.search.plan import Expand
from vprm_search.steps import join_steps, normalise_text
from vprm_search.tree import SearchTree
from vprm_search.types import Cause, NodeId, NodeRecord, NodeStatus, Proposal

_STATUS: dict[str, NodeStatus] = {"step": "open", "stop": "finished", "length": "truncated"}


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
        generated_tokens=proposal.generated_tokens,
        prompt_tokens=proposal.prompt_tokens,
        requests=proposal.requests,
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
