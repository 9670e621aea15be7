"""What every picture of a search shows, and the plainest picture: a coloured tree in a terminal.

Terminal, HTML and PNG are drawn from the same view, so they cannot tell different stories. All text
of users and models is made printable first. Colours carry no information alone: every score is also
a number and every status a word.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from vprm_search.answers import AnswerReading, choices_of, read_answer
from vprm_search.tree import SearchTree
from vprm_search.types import (
    NO_SCORER,
    Candidate,
    NodeId,
    NodeRecord,
    NodeStatus,
    SearchResult,
    StepScore,
    Usage,
    shown_answer,
)

Rgb = tuple[int, int, int]

# --- text made safe to show

_KEPT_FORMAT = frozenset("\u200c\u200d")  # joiners: Persian, Indic scripts and emoji need them
_HIDDEN = frozenset({"Cc", "Cf", "Cs"})


def printable(text: str, *, lines: bool = False) -> str:
    """Return `text` without control, format (bidirectional overrides) and surrogate characters.

    Line breaks, tabs and runs of spaces become one space; with `lines` line breaks are kept.
    """
    if lines:
        return "\n".join(printable(line) for line in text.splitlines())
    spaced = "".join(_visible(character) for character in text)
    return " ".join(spaced.split())


def shortened(text: str, limit: int) -> str:
    """Return `text` on one line, cut to `limit` characters with an ellipsis."""
    line = printable(text)
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"


def _visible(character: str) -> str:
    if character.isspace():
        return " "
    if character in _KEPT_FORMAT or unicodedata.category(character) not in _HIDDEN:
        return character
    return ""


# --- colours of scores

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
    the path of the answer, and `said` names its end so (`shown_answer`). `reading` says where in
    the text the path's answer was read; None where the step does not hold it, or the search read
    it by a rule of its own. `policy` names who proposed it where there are several ("person": a
    person wrote it). Ids in `reason` are replaced by the text of their step.
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
    said: str = ""
    copies: int = 1
    reading: AnswerReading | None = None
    policy: str = ""

    @property
    def parts(self) -> tuple[str, str, str]:
        """The text before the answer that was read in it, the answer, and the text behind it."""
        start, end = (0, 0) if self.reading is None else self.reading.span
        return self.text[:start], self.text[start:end], self.text[end:]


@dataclass(frozen=True, slots=True)
class SearchView:
    """A search as drawn: nodes in reading order (a parent before its children).

    `hidden` counts the nodes left out of a large tree (merged copies are not counted);
    `said` is the answer as it is shown (`shown_answer`), `expected` the right one if known.
    """

    question: str
    nodes: tuple[NodeView, ...]
    hidden: int
    rows: int
    columns: int
    aggregate: str
    answer: str | None
    score: float | None
    said: str
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
        said=result.said,
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
    end = max((node for node in order if node.chosen), key=lambda n: n.column, default=None)
    said = shown_answer("answer", unfinished=end is None or end.status != "finished")
    placed = [replace(n, row=rows[n.id], said=said if n is end else "") for n in order]
    if any(node.score_reason == NO_SCORER for node in placed):  # not worth a word at every step
        return [replace(node, score_reason="") for node in placed]
    return placed


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
    choices = choices_of(tree.problem)
    reading = None if record.answer is None else read_answer(record.text, choices=choices)
    return NodeView(
        id=record.id,
        parent=None if record.parent == tree.root_id else record.parent,
        column=column,
        row=0.0,
        text=record.text or ("(empty step)" if record.blank else ""),
        status=record.status,
        reason=_NODE_ID.sub(lambda match: _quoted(tree, match[0]), record.reason),
        score=record.score,
        score_reason="" if record.score is not None else record.score_reason,
        path_score=tree.path_score(record.id, aggregate),
        answer=record.answer,
        round=record.round,
        chosen=chosen,
        policy=printable(record.policy),
        reading=reading if reading is not None and reading.text == record.answer else None,
    )


def _quoted(tree: SearchTree, node: NodeId) -> str:
    return f'"{tree[node].text}"' if node in tree else node


# --- in a terminal

_MARKS = {"open": "·", "finished": "●", "truncated": "…", "pruned": "✂", "failed": "✗"}


def score_text(score: float | None) -> Text:
    """Return P('+') as a coloured number, "  – " if there is none."""
    shown = "  – " if score is None else f"{score:.2f}"
    return Text.assemble((shown, f"bold {css(score_rgb(score))}"))


def tree_view(view: SearchView, *, width: int = 100) -> Tree:
    """Return a search as a rich tree; `width` is the characters shown of a step.

    Equal failures are one line, where the first of them happened, with their number.
    """
    root = Tree(Text(shortened(view.question, 1000), style="bold"), guide_style="dim")
    failures = Counter(map(_failure, view.nodes))
    branches: dict[NodeId, Tree] = {}
    for node in view.nodes:
        if failure := _failure(node):
            node = replace(node, copies=failures.pop(failure, 0))
            if not node.copies:
                continue
        above = root if node.parent is None else branches[node.parent]
        branches[node.id] = above.add(_line(node, width))
    if view.hidden:
        root.add(Text(f"{view.hidden} more steps are not shown", style="dim italic"))
    return root


def _failure(node: NodeView) -> str:
    """Return why a step failed that has no text, without the numbers of one call; "" for others."""
    if node.status != "failed" or node.text:
        return ""
    return re.sub(r"\b(?=\w*\d)[\w-]{8,}|\d+", "#", node.reason) or "failed"


def _line(node: NodeView, width: int) -> Text:
    line = score_text(node.score)
    copies = f" ×{node.copies}" if node.copies > 1 else ""
    style = "dim" if node.status in ("pruned", "failed") else "bold" if node.chosen else ""
    line.append(f" {_MARKS[node.status]} ", style=style)
    nothing = "(no step)" if node.status == "failed" else "(end)"
    if node.reading is None:
        line.append(shortened(node.text, width) or nothing, style=style)
    else:
        line.append_text(_read_text(node, width, style))
    line.append(copies, style="dim")
    if node.policy:
        line.append(f"  by {node.policy}", style="dim")
    if node.status == "finished" and node.path_score is not None:
        line.append(f"  path {node.path_score:.2f}", style="dim")
    if node.reason and node.status != "open":
        line.append(f"  {node.status}: {shortened(node.reason, width)}", style="dim italic")
    elif node.score is None and node.score_reason:
        line.append(f"  no score: {shortened(node.score_reason, width)}", style="dim italic")
    if node.said:
        line.append(f"  ← {node.said}", style="bold")
    return line


def _read_text(node: NodeView, width: int, style: str) -> Text:
    """Return the text of a step, shortened in front of ‹the answer› that was read in it."""
    before, read, after = node.parts
    read, rest = shortened(read, width), shortened(after, width)
    room = max(width - len(printable(before + read + after)) + len(printable(before)), width // 3)
    head = shortened(before, room)
    if room < width:
        rest = shortened(after, max(1, width - len(head) - len(read))) if after.strip() else ""
    line = Text(head + " " * before[-1:].isspace(), style=style)
    line.append(f"‹{read}›", style=f"{style} underline")
    line.append(" " * after[:1].isspace() + rest, style=style)
    if node.status == "truncated":
        line.append("  [unfinished]", style="dim")
    return line


def answer_line(view: SearchView) -> Text:
    """Return the outcome of a search in one line: answer, score, why it ended, what it cost."""
    line = Text.assemble(("Answer: ", "bold"))
    line.append(shortened(view.said, 200), style="bold")
    if view.expected is not None:
        right = view.answer == view.expected
        word = "right" if right else f"wrong, it is {printable(view.expected)}"
        line.append(f" ({word})", style="green" if right else "red")
    if view.score is not None:
        line.append("  path score ").append_text(score_text(view.score))
    spent = view.usage
    line.append(
        f"  [{printable(view.ended_by)}; {spent.rounds} rounds, {spent.candidates} candidates, "
        f"{spent.generated_tokens} tokens generated, {spent.scored_tokens} scored"
        + (f", {spent.cached_tokens} of the prompts' remembered" if spent.cached_tokens else "")
        + (f"; {spent.work()}]" if spent.work() else "]"),
        style="dim",
    )
    return line


def step_table(steps: Sequence[str], scores: Sequence[StepScore]) -> Table:
    """Return the steps of one solution with P('+') each, and why one has none."""
    table = Table(show_lines=False, header_style="bold")
    table.add_column("#", justify="right", style="dim")
    table.add_column("P('+')", justify="right")
    table.add_column("Step")
    for place, (step, score) in enumerate(zip(steps, scores, strict=True), start=1):
        text = Text(printable(step, lines=True))
        if score.value is None:
            text.append(f"\nno score: {printable(score.reason)}", style="dim italic")
        table.add_row(str(place), score_text(score.value), text)
    return table
