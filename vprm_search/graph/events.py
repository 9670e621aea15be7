"""What a search tells while it runs: plain-JSON events on LangGraph's `custom` stream.

Every event has `event` (its kind) and `search` (the id of the tree's root, which tells concurrent
searches apart). One event per phase and round carries all nodes of that phase.
"""

from __future__ import annotations

from collections.abc import Sequence

from vprm_search.search.plan import Expand, Plan
from vprm_search.tree import SearchTree
from vprm_search.types import Json, NodeRecord, SearchResult

Event = dict[str, Json]


def planned(
    tree: SearchTree, plan: Plan, closed: Sequence[NodeRecord], *, known: Sequence[Expand] = ()
) -> list[Event]:
    """Return "pruned" for what was put aside and why, then "round" or "finished".

    `known` are the expansions that were told before and are still under way.
    """
    events = []
    if closed:
        nodes = [
            {"node": r.id, "status": r.status, "reason": r.reason, "score": r.score} for r in closed
        ]
        events.append(_event(tree, "pruned", nodes=nodes))
    if plan.finish:
        return [*events, _event(tree, "finished", ended_by=plan.finish, nodes=len(tree) - 1)]
    new = [e for e in plan.expand if e not in known]
    if not new:
        return events
    expand = [{"node": e.node, "count": e.count, "until": e.until} for e in new]
    return [*events, _event(tree, "round", round=tree.rounds + 1, expand=expand)]


def expanded(tree: SearchTree, records: Sequence[NodeRecord]) -> list[Event]:
    """Return "expanded": the steps the policy proposed in this round."""
    nodes = [
        {
            "node": r.id,
            "parent": r.parent,
            "index": r.index,
            "text": r.text,
            "status": r.status,
            "reason": r.reason,
            "answer": r.answer,
        }
        for r in records
    ]
    return [_event(tree, "expanded", round=tree.rounds, nodes=nodes)]


def scored(tree: SearchTree, records: Sequence[NodeRecord]) -> list[Event]:
    """Return "scored": P('+') of each new step, or why there is none."""
    nodes = [
        {
            "node": r.id,
            "score": r.score,
            "reason": "" if r.score is not None else r.score_reason,
            "path_scores": dict(r.path_scores),
        }
        for r in records
        if r.parent is not None and r.status != "failed"
    ]
    return [_event(tree, "scored", round=tree.rounds, nodes=nodes)]


def answered(tree: SearchTree, result: SearchResult) -> list[Event]:
    """Return "answer": the chosen path, and all that it was chosen from."""
    return [
        _event(
            tree,
            "answer",
            answer=result.answer,
            node=result.node,
            score=result.score,
            ended_by=result.ended_by,
            fallback=result.fallback,
            candidates=[candidate.to_json() for candidate in result.candidates],
            warning=result.warning,
        )
    ]


def _event(tree: SearchTree, kind: str, **data: Json) -> Event:
    return {"event": kind, "search": tree.root_id, **data}
