"""A search as a coloured tree, and the scores of a solution as a table, for a terminal.

Colours carry no information alone: every score is also a number and every status a word.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from vprm_search.report.printable import printable, shortened
from vprm_search.report.view import NodeView, SearchView, css, score_rgb
from vprm_search.types import NodeId, StepScore

_MARKS = {"open": "·", "finished": "●", "truncated": "…", "pruned": "✂", "failed": "✗"}


def score_text(score: float | None) -> Text:
    """Return P('+') as a coloured number, "  – " if there is none."""
    shown = "  – " if score is None else f"{score:.2f}"
    return Text.assemble((shown, f"bold {css(score_rgb(score))}"))


def tree_view(view: SearchView, *, width: int = 100) -> Tree:
    """Return a search as a rich tree; `width` is the characters shown of a step."""
    root = Tree(Text(shortened(view.question, 1000), style="bold"), guide_style="dim")
    branches: dict[NodeId, Tree] = {}
    for node in view.nodes:
        above = root if node.parent is None else branches[node.parent]
        branches[node.id] = above.add(_line(node, width))
    if view.hidden:
        root.add(Text(f"{view.hidden} more steps are not shown", style="dim italic"))
    return root


def _line(node: NodeView, width: int) -> Text:
    line = score_text(node.score)
    copies = f" ×{node.copies}" if node.copies > 1 else ""
    style = "dim" if node.status in ("pruned", "failed") else "bold" if node.chosen else ""
    line.append(f" {_MARKS[node.status]} ", style=style)
    line.append(shortened(node.text, width) or "(end)", style=style)
    line.append(copies, style="dim")
    if node.status == "finished" and node.path_score is not None:
        line.append(f"  path {node.path_score:.2f}", style="dim")
    if node.reason and node.status != "open":
        line.append(f"  {node.status}: {shortened(node.reason, width)}", style="dim italic")
    elif node.score is None and node.score_reason:
        line.append(f"  no score: {shortened(node.score_reason, width)}", style="dim italic")
    if node.chosen and node.status in ("finished", "truncated"):
        line.append("  ← answer", style="bold")
    return line


def answer_line(view: SearchView) -> Text:
    """Return the outcome of a search in one line: answer, score, why it ended, what it cost."""
    line = Text.assemble(("Answer: ", "bold"))
    line.append(shortened(view.answer, 200) if view.answer is not None else "none", style="bold")
    if view.expected is not None:
        right = view.answer == view.expected
        word = "right" if right else f"wrong, it is {printable(view.expected)}"
        line.append(f" ({word})", style="green" if right else "red")
    if view.score is not None:
        line.append("  path score ").append_text(score_text(view.score))
    if view.fallback and view.answer is not None:
        line.append("  from an unfinished path", style="yellow")
    spent = view.usage
    line.append(
        f"  [{printable(view.ended_by)}; {spent.rounds} rounds, {spent.candidates} candidates, "
        f"{spent.generated_tokens} tokens generated, {spent.scored_tokens} scored"
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
