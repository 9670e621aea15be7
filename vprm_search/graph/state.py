"""The state of a search graph: plain JSON, images by digest, the tree as a table of records."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence, Set
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

from langchain_core.messages import AnyMessage, convert_to_messages
from langgraph.channels.delta import DeltaChannel
from langgraph.graph.message import add_messages
from typing_extensions import TypedDict  # pydantic cannot show typing's before Python 3.12

from vprm_search.errors import RecordError
from vprm_search.graph.session import ENDS, merged_by_tree
from vprm_search.search.plan import Expand, Plan
from vprm_search.tree import SearchTree, join_records
from vprm_search.types import Json, NodeId, NodeRecord, Problem

if TYPE_CHECKING:
    from langgraph.types import StateSnapshot

RecordTable = dict[str, Any]
"""Node records as plain JSON, by node id."""


def merge_records(known: RecordTable, new: RecordTable) -> RecordTable:
    """Join two tables of records: the reducer of `search_nodes`.

    Idempotent, commutative and associative, so a node that is replayed after a crash, or whose
    writes arrive twice, changes nothing. Records that do not change stay the same objects. A record
    in `new` may leave out its "id", and hold only what became known of a node (a status comes with
    its reason and cause); one in the result has its "id", if its "parent" is known. Raises
    `RecordError` for what is no record, or contradicts the one that is known.
    """
    if (joined := merged_by_tree(known, new)) is not None:
        return joined
    merged = dict(known)
    for node, record in new.items():
        if not isinstance(record, Mapping):
            raise RecordError(f"not a record of node {str(node)[:80]}: {str(record)[:80]!r}")
        whole = {"id": node, **record} if "parent" in record and "id" not in record else record
        old = merged.get(node)
        if old is None:
            merged[node] = whole
        elif old != whole:
            merged[node] = _joined(old, whole)
    return merged


def _joined(old: Mapping[str, Json], new: Mapping[str, Json]) -> Mapping[str, Json]:
    partial = "id" in old and "id" not in new
    grown = {**old, **new} if partial else new
    apart = not partial or old.keys().isdisjoint(ENDS) or new.keys().isdisjoint(ENDS)
    if apart and old.items() <= grown.items() and _grows(grown, grown.keys() - old.keys()):
        return grown
    names = next((_names(r) for r in (old, new) if "id" in r), _UNNAMED)
    a, b = (NodeRecord.from_json({**names, **record}) for record in (old, new))
    joined = join_records(a, b).to_json()
    if names is _UNNAMED:
        joined = {name: value for name, value in joined.items() if name not in _UNNAMED}
    return old if joined == old else new if joined == new else joined


_UNNAMED: dict[str, Json] = {"id": "", "parent": None, "index": 0}


def _names(record: Mapping[str, Json]) -> dict[str, Json]:
    return {n: record[n] for n in (*_UNNAMED, "text") if n in record}


def merge_all(known: RecordTable, news: Sequence[RecordTable]) -> RecordTable:
    """Join several tables of records, one after the other (the reducer of a `DeltaChannel`)."""
    return functools.reduce(merge_records, news, known)


def _grows(record: Mapping[str, Json], added: Set[str]) -> bool:
    """Tell whether a record with these fields added is the join with what it was without them.

    So it is, as a rule, and nothing has to be parsed: what is left out is at its default, and every
    default is less than anything else. False where that is not certain.
    """
    return (
        added.isdisjoint(("id", "parent", "index", "text"))
        and ("reason" not in added or "cause" in added)
        and record.get("status") != "open"
        and all(record[name] for name in added)
    )


class SearchChannels(TypedDict, total=False):
    """The keys a search adds to a graph's state.

    `search_problem` is the question with its image digests, `search_nodes` the tree's records by
    id, `search_size` how many there are, `search_plan` the round under way, `search_seconds` the
    time spent, and `search_result` the outcome (None while the search runs). All start anew when a
    new question arrives.

    A checkpoint holds of `search_nodes` only what its step wrote (LangGraph's `DeltaChannel`).
    """

    search_problem: dict[str, Any]
    search_run_seed: int
    search_nodes: Annotated[dict[str, Any], DeltaChannel(merge_all)]
    search_size: int
    search_plan: dict[str, Any]
    search_seconds: float
    search_result: dict[str, Any] | None


def _add_all(said: list[AnyMessage], writes: Sequence[Any]) -> list[AnyMessage]:
    return functools.reduce(add_messages, writes, said)  # type: ignore[arg-type]


TALK = Annotated[list[AnyMessage], DeltaChannel(_add_all, snapshot_frequency=20)]
"""A conversation of which a checkpoint holds what is new, and every twentieth time all of it."""


class SearchState(SearchChannels, total=False):
    """The state of a search graph: a conversation and the search for its next answer."""

    messages: TALK


def channels(*, delta: bool = True) -> dict[str, Any]:
    """Return the annotations of `SearchChannels`; without `delta`, every checkpoint is whole."""
    hints = get_type_hints(SearchChannels, include_extras=True)
    return hints if delta else {**hints, "search_nodes": Annotated[RecordTable, merge_records]}


def talk(*, delta: bool = True) -> Any:
    """Return the annotation of the conversation; without `delta`, every checkpoint is whole."""
    return TALK if delta else Annotated[list[AnyMessage], add_messages]


def tree_of_state(state: Mapping[str, Any]) -> SearchTree:
    """Return the search tree inside a graph's state (a result, or `get_state(config).values`).

    Raises `RecordError` if there is no search in it, or its records are damaged or not all there.
    """
    problem = state.get("search_problem")
    if not problem:
        raise RecordError("the state holds no search: its key 'search_problem' is missing or empty")
    tree = SearchTree(Problem.from_json(problem), int(state.get("search_run_seed", 0)))
    table = state.get("search_nodes") or {}
    # what became known of a node whose record is gone, or never was there, has no "id"
    whole = {n: r for n, r in table.items() if not isinstance(r, Mapping) or "id" in r}
    tree.merge(map(NodeRecord.from_json, whole.values()))
    expected = state.get("search_size", 0)
    if len(tree) < expected:
        raise RecordError(
            f"the state holds {len(tree)} of the {expected} nodes of its search: earlier "
            "checkpoints of the thread are gone, and each holds only what was new in it; keep all "
            "checkpoints of a thread, or give create_search_graph delta_checkpoints=False"
        )
    if unknown := sorted(map(str, table.keys() - whole)):
        raise RecordError(
            f"the state says something of {unknown[0][:80]!r}, which is no node of its search; go "
            "on from an earlier checkpoint, and write of nodes that are in `search_nodes`"
        )
    tree.check()
    return tree


def search_done(
    state: Mapping[str, Any] | StateSnapshot, *, messages_key: str = "messages"
) -> bool:
    """Tell whether the search in a state has ended and the last question has its answer.

    False for a search that runs, was paused, killed or cancelled, for a thread that holds none, and
    while a newer human message waits. An empty `get_state(config).next` does not mean an end: it
    leaves out a node that has run and whose checkpoint is still to be written, so a killed process
    may leave it empty after any node. Where this is False, `invoke(None, config)` goes on.

    Args:
        state: `get_state(config)`, its `values`, or what `invoke` returned; of the search graph, or
            of a graph that has it as a node and holds its answer among the messages.
        messages_key: the key of the conversation.
    """
    values = state if isinstance(state, Mapping) else state.values
    said = convert_to_messages(values.get(messages_key) or [])
    last = next((m for m in reversed(said) if m.type in ("ai", "human")), None)
    if "search_result" not in values:
        return last is not None and "vprm" in last.response_metadata
    return bool(values["search_result"]) and (last is None or last.type == "ai")


def record_table(records: Sequence[NodeRecord]) -> RecordTable:
    """Return records as the update of `search_nodes`."""
    return {record.id: record.to_json() for record in records}


def plan_to_json(plan: Plan) -> dict[str, Json]:
    """Return what is left to do of a plan whose closes are done, as plain JSON."""
    cut = {"cut": True} if plan.cut else {}
    return {"expand": [_expand_to_json(e) for e in plan.expand], "finish": plan.finish, **cut}


def _expand_to_json(expand: Expand) -> dict[str, Json]:
    data: dict[str, Json] = {"node": expand.node, "count": expand.count}
    data |= {"first_index": expand.first_index} if expand.first_index else {}
    data |= {"until": expand.until} if expand.until != "step" else {}
    data |= {"policy": expand.policy} if expand.policy else {}
    data |= {"round": expand.round} if expand.round else {}
    if expand.temperature_scale != 1:
        data["temperature_scale"] = expand.temperature_scale
    return data | ({"role": expand.role} if expand.role else {})


def plan_from_json(data: Mapping[str, Json]) -> Plan:
    """Read a plan written by `plan_to_json`, in version 0.1 too, which wrote "heat"."""
    return Plan(
        expand=tuple(
            Expand(
                NodeId(e["node"]),
                int(e["count"]),
                int(e.get("first_index", 0)),
                e.get("until", "step"),
                e.get("policy", ""),
                e.get("role", ""),
                int(e.get("round", 0)),
                float(e.get("temperature_scale", e.get("heat", 1.0))),
            )
            for e in data["expand"]
        ),
        finish=str(data["finish"]),
        cut=bool(data.get("cut", False)),
    )
