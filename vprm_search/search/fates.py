"""How every path of a search ended: finished, pruned, truncated, failed, or cut by the budget."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal, get_args

from vprm_search.tree import SearchTree
from vprm_search.types import NodeId, NodeRecord

Fate = Literal["finished", "pruned", "truncated", "failed", "cut"]

CUT_BY_BUDGET = "cut by budget"
"""How the reason of a path begins that was still open when a limit ended the search."""

NOT_NEEDED = "not needed"
"""How the reason of a path begins that was still open when the strategy was content."""


@dataclass(frozen=True, slots=True)
class End:
    """The end of one path: its last node, its fate, and why."""

    node: NodeId
    fate: Fate
    reason: str


def ends(tree: SearchTree) -> list[End]:
    """Return the end of every path of a search that is over, by node id.

    A path ends at a node that nothing living goes on from; a node whose children all failed is
    such an end, and has failed with them unless the budget came first. Lookahead nodes are no
    paths. While a search runs, what is still open counts as cut.
    """
    found = []
    for record in sorted(tree, key=lambda r: r.id):
        below = tree.children(record.id)
        if record.parent is None or record.role == "lookahead":
            continue
        if all(child.status == "failed" or child.role == "lookahead" for child in below):
            found.append(_end(record, below))
    return found


def ends_line(tree: SearchTree) -> str:
    """Return how many paths ended in which way, in words."""
    counts = Counter(end.fate for end in ends(tree))
    words = {"cut": CUT_BY_BUDGET}
    return ", ".join(
        f"{counts[fate]} {words.get(fate, fate)}" for fate in get_args(Fate) if counts[fate]
    )


def _end(record: NodeRecord, below: list[NodeRecord]) -> End:
    if record.reason.startswith(CUT_BY_BUDGET):  # a call given up at the limit is cut, too
        return End(record.id, "cut", record.reason)
    if record.status != "open":
        return End(record.id, record.status, record.reason)
    if record.reason:
        return End(record.id, "cut", record.reason)
    reasons = sorted({child.reason for child in below if child.status == "failed"})
    if reasons:
        return End(record.id, "failed", f"no step came after it: {reasons[0]}")
    return End(record.id, "cut", "the search has not ended")
