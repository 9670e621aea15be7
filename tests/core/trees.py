"""Random search trees for the tests of the core."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from hypothesis import strategies as st

from vprm_search.ids import child_id, root_id
from vprm_search.tree import SearchTree
from vprm_search.types import NodeRecord, Problem

PROBLEM = Problem("How many?", ("sha256-" + "0" * 64,))
ROOT = root_id(PROBLEM, 0)

texts = st.sampled_from(["a", "b", "ä\n½", ""])
small = st.integers(0, 3)
scores = st.none() | st.sampled_from([0.0, 0.25, 0.5, 1.0])


def tree_from(records: Iterable[NodeRecord]) -> SearchTree:
    """Return a tree of the test problem that holds `records`."""
    tree = SearchTree(PROBLEM)
    tree.merge(records)
    return tree


@st.composite
def contents(draw: st.DrawFn, node: str, parent: str | None, index: int, text: str) -> NodeRecord:
    """Draw a record of a node with that identity: any status, score, answer and costs."""
    score = draw(scores) if text else None
    status = draw(st.sampled_from(["open", "open", "finished", "truncated", "pruned", "failed"]))
    reason = draw(st.sampled_from(["", "x", "y"]))
    cause = draw(st.sampled_from(["", "duplicate", "budget"])) if reason else ""
    return NodeRecord(
        id=node,
        parent=parent,
        index=index,
        text=text,
        status=status,  # type: ignore[arg-type]
        reason=reason,
        cause=cause,
        merged_into=draw(st.sampled_from(["a", "b"])) if cause == "duplicate" else None,
        score=score,
        score_reason="" if score is not None else draw(st.sampled_from(["", "nan"])),
        path_scores=draw(st.dictionaries(st.sampled_from(["mean", "min"]), st.floats(0, 1))),
        answer=draw(st.sampled_from([None, "1", "2"])),
        seed=draw(small),
        round=draw(small),
        generated_tokens=draw(small),
        prompt_tokens=draw(small),
        scored_tokens=draw(small),
        requests=draw(small),
        tokens_sent=draw(small),
        tokens_computed=draw(small),
        images_encoded=draw(small),
        forward_passes=draw(st.integers(0, 4096)) / 4096,
    )


@st.composite
def record_trees(draw: st.DrawFn) -> list[NodeRecord]:
    """Draw the records of a legal tree, parents first, without its root."""
    records: list[NodeRecord] = []
    may_have_children = [ROOT]
    children: dict[str, int] = {}
    for _ in range(draw(st.integers(0, 12))):
        parent = draw(st.sampled_from(may_have_children))
        index = children.get(parent, 0)
        children[parent] = index + 1
        text = draw(texts)
        record = draw(contents(child_id(parent, index, text), parent, index, text))
        records.append(record)
        if record.status in ("open", "pruned"):
            may_have_children.append(record.id)
    return records


@st.composite
def versions_of(draw: st.DrawFn, record: NodeRecord) -> NodeRecord:
    """Draw an earlier delivery of a record: some of what is known later is still missing."""
    fresh = NodeRecord(record.id, record.parent, record.index, record.text)
    late = [
        ["status", "reason", "cause", "merged_into"],
        ["score", "score_reason"],
        ["path_scores"],
        ["answer"],
        ["seed", "round"],
        ["generated_tokens", "prompt_tokens"],
        ["scored_tokens", "requests"],
        ["tokens_sent", "tokens_computed", "images_encoded", "forward_passes"],
    ]
    missing = draw(st.lists(st.sampled_from(late), unique_by=tuple))
    return replace(record, **{name: getattr(fresh, name) for group in missing for name in group})


record_lists = record_trees()
