"""What every picture of a search shows: its nodes in reading order, each with a place.

Terminal, HTML and PNG are drawn from the same view, so they cannot tell different stories.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from vprm_search.tree import SearchTree
from vprm_search.types import Candidate, NodeId, NodeRecord, NodeStatus, SearchResult, Usage

Rgb = tuple[int, int, int]

UNKNOWN: Rgb = (128, 128, 128)
_STOPS: tuple[Rgb, Rgb, Rgb] = ((200, 45, 45), (205, 155, 20), (30, 140, 70))


def score_rgb(score: float | None) -> Rgb:
    """Return the colour of a score in [0, 1]; scores outside are clamped."""
    if score is None:
        return UNKNOWN
    place = min(1.0, max(0.0, score)) * 2
    low = _STOPS[min(1, int(place))]
    high = _STOPS[min(1, int(place)) + 1]
    part = place - min(1, int(place))
    red, green, blue = (round(a + (b - a) * part) for a, b in zip(low, high, strict=True))
    return red, green, blue


def css(colour: Rgb) -> str:
    """Return a colour as "#rrggbb"."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


DEFAULT_MAX_NODES = 2000

_NODE_ID = re.compile(r"\b[0-9a-f]{24}\b")


@dataclass(frozen=True, slots=True)
class NodeView:
    """One step as drawn: `column` is its depth (0: first step), `row` its vertical place.

    `copies` counts the identical siblings merged into this one, itself included; `chosen` marks
    the path of the answer. Ids in `reason` are replaced by the text of their step.
    """

    id: NodeId
    parent: NodeId | None
    column: int
    row: float
    text: str
    status: NodeStatus
    reason: str
    score: float | None
    score_reason: str
    path_score: float | None
    answer: str | None
    round: int
    chosen: bool
    copies: int = 1


@dataclass(frozen=True, slots=True)
class SearchView:
    """A search as drawn: nodes in reading order (a parent before its children).

    `hidden` counts the nodes left out of a large tree (merged copies are not counted);
    `expected` is the right answer if known.
    """

    question: str
    nodes: tuple[NodeView, ...]
    hidden: int
    rows: int
    columns: int
    aggregate: str
    answer: str | None
    score: float | None
    fallback: bool
    ended_by: str
    candidates: tuple[Candidate, ...]
    usage: Usage
    title: str = "Search"
    expected: str | None = None


def view_of(
    tree: SearchTree,
    result: SearchResult,
    *,
    title: str = "Search",
    aggregate: str = "mean",
    expected: str | None = None,
    max_nodes: int = DEFAULT_MAX_NODES,
) -> SearchView:
    """Return what to draw of a search.

    Beyond `max_nodes` nodes, the answer's path and the candidates' paths are kept first, then
    earlier rounds.
    """
    chosen = set() if result.node is None else {record.id for record in tree.path(result.node)}
    copies = _copies(tree)
    originals = [record for record in tree if record.id not in copies]
    shown = _shown(tree, originals, chosen, result.candidates, max_nodes)
    nodes = _with_copies(_placed(tree, shown, chosen, aggregate), copies)
    return SearchView(
        question=tree.problem.question,
        nodes=tuple(nodes),
        hidden=len(originals) - 1 - len(nodes),
        rows=1 + int(max((node.row for node in nodes), default=0)),
        columns=1 + max((node.column for node in nodes), default=0),
        aggregate=aggregate,
        answer=result.answer,
        score=result.score,
        fallback=result.fallback,
        ended_by=result.ended_by,
        candidates=result.candidates,
        usage=result.usage,
        title=title,
        expected=expected,
    )


def _copies(tree: SearchTree) -> dict[NodeId, NodeId]:
    """Return the pruned leaves that say the same as a sibling that stayed, with that sibling."""
    copies: dict[NodeId, NodeId] = {}
    kept: dict[tuple[NodeId | None, str], NodeId] = {}
    for record in sorted(tree, key=lambda r: (r.status == "pruned", r.index)):
        first = kept.setdefault((record.parent, record.text), record.id)
        if first != record.id and record.status == "pruned" and not tree.child_count(record.id):
            copies[record.id] = first
    return copies


def _with_copies(nodes: Sequence[NodeView], copies: Mapping[NodeId, NodeId]) -> list[NodeView]:
    counts: dict[NodeId, int] = {}
    for original in copies.values():
        counts[original] = counts.get(original, 1) + 1
    return [replace(node, copies=counts.get(node.id, 1)) for node in nodes]


def _shown(
    tree: SearchTree,
    originals: Sequence[NodeRecord],
    chosen: set[NodeId],
    candidates: Sequence[Candidate],
    limit: int,
) -> Collection[NodeId]:
    """Return the ids to draw; whatever is drawn has its parent drawn too."""
    if len(originals) - 1 <= limit:
        return {record.id for record in originals}
    shown: dict[NodeId, None] = dict.fromkeys(chosen)
    rest = sorted(originals, key=lambda record: (record.round, tree.depth(record.id), record.id))
    for node in [*(candidate.node for candidate in candidates), *(record.id for record in rest)]:
        path = dict.fromkeys(record.id for record in tree.path(node))
        if len(shown | path) <= limit:
            shown |= path
    return shown


def _placed(
    tree: SearchTree, shown: Collection[NodeId], chosen: set[NodeId], aggregate: str
) -> list[NodeView]:
    """Give every leaf a row of its own and every parent the middle of its children."""
    order: list[NodeView] = []
    waiting: list[tuple[NodeRecord, int]] = [(tree[tree.root_id], -1)]
    while waiting:  # depth first without recursion: a path may be long
        record, column = waiting.pop()
        if record.parent is not None:
            order.append(_node(tree, record, column, record.id in chosen, aggregate))
        below = [child for child in tree.children(record.id) if child.id in shown]
        waiting.extend((child, column + 1) for child in reversed(below))
    rows = _rows(order)
    return [replace(node, row=rows[node.id]) for node in order]


def _rows(order: Sequence[NodeView]) -> dict[NodeId, float]:
    parents = {node.parent for node in order}
    leaves = [node.id for node in order if node.id not in parents]
    rows: dict[NodeId, float] = {node: float(place) for place, node in enumerate(leaves)}
    spans: dict[NodeId, list[float]] = {}
    for node in reversed(order):  # children come before their parents here
        if node.id in spans:
            rows[node.id] = (min(spans[node.id]) + max(spans[node.id])) / 2
        if node.parent is not None:
            spans.setdefault(node.parent, []).append(rows[node.id])
    return rows


def _node(
    tree: SearchTree, record: NodeRecord, column: int, chosen: bool, aggregate: str
) -> NodeView:
    return NodeView(
        id=record.id,
        parent=None if record.parent == tree.root_id else record.parent,
        column=column,
        row=0.0,
        text=record.text or ("(empty step)" if record.blank else ""),
        status=record.status,
        reason=_NODE_ID.sub(lambda match: _quoted(tree, match[0]), record.reason),
        score=record.score,
        score_reason=record.score_reason,
        path_score=tree.path_score(record.id, aggregate),
        answer=record.answer,
        round=record.round,
        chosen=chosen,
    )


def _quoted(tree: SearchTree, node: NodeId) -> str:
    return f'"{tree[node].text}"' if node in tree else node
