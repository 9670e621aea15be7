"""A person in a search: what is shown at a pause, and what the answer changes in the tree.

Everything a person decides is written into the records, so a search goes on from the tree alone: a
step put aside is pruned with the cause "review", a step that was rewritten is "redone" beside the
new one, whose `policy` is "person".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, create_model, model_validator

from vprm_search import ids
from vprm_search.answers import has_final_answer
from vprm_search.errors import InputError
from vprm_search.graph.parts import SearchRules
from vprm_search.search.plan import Close, Expand, Plan
from vprm_search.steps import join_steps, normalise_text
from vprm_search.tree import SearchTree
from vprm_search.types import Json, NodeId, NodeRecord

PERSON = "person"
"""The `policy` of a step that a person wrote."""

ReviewWhen = Callable[[SearchTree], bool]
"""Tells after a round whether a person is asked; a function of the tree alone."""

_LIVING = ("open", "finished", "truncated")


class Review(BaseModel):
    """What a person answers at a pause; `True` goes on as it is.

    (LangGraph takes `Command(resume={})` for no answer at all, and pauses again.)

    Args:
        prune: nodes to put aside, with all that follows them.
        prefer: nodes to go on with: every other path that is shown is put aside.
        edit: new texts by node: the step is put aside with all that follows it, and the new text
            stands beside it. It is scored, and shown at another pause, before the search goes on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    prune: list[str] = Field(default_factory=list)
    prefer: list[str] = Field(default_factory=list)
    edit: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _nothing_to_change(cls, given: Any) -> Any:
        return {} if given is True else given

    @model_validator(mode="after")
    def _one_word_a_node(self) -> Self:
        if twice := {*self.prune} & {*self.prefer, *self.edit}:
            raise ValueError(f"{', '.join(sorted(twice))} is to be pruned, and preferred or edited")
        return self


def review_of(tree: SearchTree) -> type[Review]:
    """Return `Review` for this pause: its nodes are those that may be named."""
    nodes: Any = Literal[tuple(sorted(r.id for r in tree if _may_change(tree, r)))]
    words: Any = dict[nodes, str]
    kinds: dict[str, Any] = {"prune": list[nodes], "prefer": list[nodes], "edit": words}
    named: Any = {name: (kind, Review.model_fields[name]) for name, kind in kinds.items()}
    return create_model("Review", __base__=Review, **named)


def frontier(tree: SearchTree, aggregate: str) -> list[dict[str, Json]]:
    """Return the paths that a person is shown, the best first: open ones, and ends of this round.

    Each with the nodes, the texts and the scores of its steps.
    """
    ends = [r for r in tree if _may_change(tree, r) and not tree.child_count(r.id)]
    paths = [(tree.path_score(end.id, aggregate), end) for end in ends]
    paths.sort(key=lambda pair: (pair[0] is None, -(pair[0] or 0.0), pair[1].id))
    return [
        {
            "node": end.id,
            "status": end.status,
            "path_score": score,
            "answer": end.answer,
            "steps": [
                {"node": r.id, "text": r.text, "score": r.score, "policy": r.policy}
                for r in tree.path(end.id)
                if r.is_step
            ],
        }
        for score, end in paths
    ]


def apply_review(tree: SearchTree, review: Review, rules: SearchRules) -> list[NodeRecord]:
    """Write a person's answer into the tree; return the records that are new or changed.

    Raises `InputError` for an empty text, or one that is longer than a step may be.
    """
    written = [_written(tree, NodeId(n), text, rules) for n, text in review.edit.items()]
    changed: list[NodeId] = []
    for node in review.prune:
        changed += _put_aside(tree, NodeId(node), "pruned by a person")
    if review.prefer:
        kept = {record.id for node in review.prefer for record in tree.path(NodeId(node))}
        kept.update(below for node in review.prefer for below in _subtree(tree, NodeId(node)))
        names = ", ".join(review.prefer)
        for end in [r for r in tree if _may_change(tree, r) and not tree.child_count(r.id)]:
            if end.id not in kept:
                changed += _put_aside(tree, end.id, f"a person preferred {names}")
    for node, record in zip(review.edit, written, strict=True):
        changed += Close(NodeId(node), f"edited by a person: {record.id}", cause="redone").on(tree)
        for child in tree.children(NodeId(node)):
            changed += _put_aside(tree, child.id, f"edited by a person above: {record.id}")
        changed += tree.merge([record])
    return [tree[node] for node in dict.fromkeys(changed)]


def gone_on_with(plan: Plan, tree: SearchTree) -> Plan:
    """Return a plan that asks for the rest of a person's paths before a search ends.

    A strategy of whole solutions does not go on with a single step; one that put a person's step
    aside, in its plan or before, is not overruled.
    """
    if not plan.finish:
        return plan
    gone = {close.node for close in plan.close}
    left = [r for r in tree.open_leaves() if r.policy == PERSON and r.id not in gone]
    if not left:
        return plan
    rests = tuple(Expand(r.id, 1, tree.child_count(r.id), until="end") for r in left)
    return Plan(expand=rests, close=plan.close)


def _may_change(tree: SearchTree, record: NodeRecord) -> bool:
    """Tell whether a person may change a node: an open leaf, or what this round has brought.

    Of earlier rounds strategies have drawn their conclusions already.
    """
    if record.parent is None or record.is_aside or record.status not in _LIVING:
        return False
    leaf = record.status == "open" and not tree.child_count(record.id)
    return leaf or record.round == tree.rounds


def _subtree(tree: SearchTree, node: NodeId) -> list[NodeId]:
    found = [node]
    for one in found:  # grows while it is read
        found += [child.id for child in tree.children(one)]
    return found


def _put_aside(tree: SearchTree, node: NodeId, reason: str) -> list[NodeId]:
    changed: list[NodeId] = []
    for below in _subtree(tree, node):
        if tree[below].status in _LIVING:
            changed += Close(below, reason, cause="review").on(tree)
    return changed


def _written(tree: SearchTree, draft: NodeId, text: str, rules: SearchRules) -> NodeRecord:
    """Return the record of a person's text in place of a draft."""
    text = normalise_text(text).strip()
    if not text:
        raise InputError(f"the new text of {draft} is empty; name it in `prune` to put it aside")
    rules.limits.check_steps([text])
    old = tree[draft]
    parent = old.parent or tree.root_id
    index = tree.child_count(parent)
    known: dict[str, Any] = {}
    if has_final_answer(text):
        answer = rules.extract(join_steps([*tree.steps(parent), text]))
        known = {"status": "finished", "answer": answer}
    node = ids.child_id(parent, index, text)
    return NodeRecord(
        id=node,
        parent=parent,
        index=index,
        text=text,
        round=old.round,
        policy=PERSON,
        role="redo",
        **known,
    )
