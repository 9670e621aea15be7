"""What a search tells while it runs: plain-JSON events on LangGraph's `custom` stream.

Every event has `event` (its kind) and `search` (the id of the tree's root, which tells concurrent
searches apart). One event per phase and round carries all nodes of that phase. `SearchEvent` is
their schema: `pydantic.TypeAdapter(SearchEvent).json_schema()` writes it down.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypedDict

from vprm_search.search.plan import Expand, Plan
from vprm_search.tree import SearchTree
from vprm_search.types import Json, NodeRecord, NodeStatus, SearchResult, Until

Event = dict[str, Json]
_typed = with_config(ConfigDict(extra="forbid", strict=True))


@_typed
class Asked(TypedDict):
    """So many children of a node are asked for: single steps, or whole rests ("end")."""

    node: str
    count: int
    until: Until


@_typed
class Proposed(TypedDict):
    """A step that the policy proposed; `answer` where its path ends with one."""

    node: str
    parent: str | None
    index: int
    text: str
    status: NodeStatus
    reason: str
    answer: str | None


@_typed
class Changed(Proposed):
    """A step that a person changed, or wrote (`policy` is then "person")."""

    policy: str


@_typed
class Scored(TypedDict):
    """P('+') of a step and the path scores with it, or why there is none."""

    node: str
    score: float | None
    reason: str
    path_scores: dict[str, float]


@_typed
class PutAside(TypedDict):
    """A node the strategy closed, and why."""

    node: str
    status: NodeStatus
    reason: str
    score: float | None


@_typed
class RoundEvent(TypedDict):
    """A round begins."""

    event: Literal["round"]
    search: str
    round: int
    expand: list[Asked]


@_typed
class ExpandedEvent(TypedDict):
    """The policy has answered; a node that failed has the status "failed" and a reason."""

    event: Literal["expanded"]
    search: str
    round: int
    nodes: list[Proposed]


@_typed
class ScoredEvent(TypedDict):
    """The reward model has answered."""

    event: Literal["scored"]
    search: str
    round: int
    nodes: list[Scored]


@_typed
class ReviewedEvent(TypedDict):
    """A person has answered at a pause."""

    event: Literal["reviewed"]
    search: str
    round: int
    nodes: list[Changed]


@_typed
class PrunedEvent(TypedDict):
    """The strategy has put nodes aside."""

    event: Literal["pruned"]
    search: str
    nodes: list[PutAside]


@_typed
class FinishedEvent(TypedDict):
    """The search is over: by which rule or limit, and how many nodes it has."""

    event: Literal["finished"]
    search: str
    ended_by: str
    nodes: int


@_typed
class AnswerEvent(TypedDict):
    """The chosen path, and what it was chosen from; `candidates` as in `SearchResult`."""

    event: Literal["answer"]
    search: str
    answer: str | None
    node: str | None
    score: float | None
    ended_by: str
    fallback: bool
    candidates: list[dict[str, Any]]
    warning: str


SearchEvent = Annotated[
    RoundEvent
    | ExpandedEvent
    | ScoredEvent
    | ReviewedEvent
    | PrunedEvent
    | FinishedEvent
    | AnswerEvent,
    Field(discriminator="event"),
]
"""Any event of a search."""

_KINDS = ("round", "expanded", "scored", "reviewed", "pruned", "finished", "answer")


def search_event(part: Any) -> Event | None:
    """Return the search event in whatever a stream yields, None if there is none in it.

    That is: what `on_event` gets; a chunk of `stream` and `astream` with `"custom"` among their
    `stream_mode`, alone or with others, with or without `subgraphs=True`; a typed part of
    `version="v2"`; and an event of `stream_events(version="v3")`.
    """
    if isinstance(part, tuple):  # (namespace,) (mode,) data
        part = part[-1] if part else None
    if isinstance(part, Mapping) and part.get("type") == "custom":
        part = part.get("data")
    if isinstance(part, Mapping) and part.get("method") == "custom":
        part = (part.get("params") or {}).get("data")
    told = isinstance(part, dict) and part.get("event") in _KINDS and "search" in part
    return part if told else None


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
    nodes = [_step(r) for r in records]
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


def reviewed(tree: SearchTree, records: Sequence[NodeRecord]) -> list[Event]:
    """Return "reviewed": what a person changed; a step with the policy "person" is a new one."""
    nodes = [{**_step(r), "policy": r.policy} for r in records]
    return [_event(tree, "reviewed", round=tree.rounds, nodes=nodes)]


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


def _step(record: NodeRecord) -> dict[str, Json]:
    return {
        "node": record.id,
        "parent": record.parent,
        "index": record.index,
        "text": record.text,
        "status": record.status,
        "reason": record.reason,
        "answer": record.answer,
    }


def _event(tree: SearchTree, kind: str, **data: Json) -> Event:
    return {"event": kind, "search": tree.root_id, **data}
