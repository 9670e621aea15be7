"""From a finished tree to the result a user gets."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from vprm_search.errors import NoAnswerError
from vprm_search.search.selectors import MajorityVote, Selection, Selector
from vprm_search.steps import join_steps
from vprm_search.tree import SearchTree
from vprm_search.types import Candidate, NodeId, NodeRecord, SearchResult, Usage

OnNoAnswer = Literal["best_truncated", "error"]


def conclude(
    tree: SearchTree,
    selector: Selector,
    *,
    usage: Usage,
    ended_by: str,
    on_no_answer: OnNoAnswer = "best_truncated",
) -> SearchResult:
    """Choose the answer of a search.

    Only finished paths are candidates. If none of them has a score, for a selector that needs one,
    the most frequent answer is taken, and the result warns. If there is none, "best_truncated"
    takes the best path that was cut short (by the token limit, the depth or the budget) and sets
    `fallback`; "error" raises `NoAnswerError`, which says what was in the way.
    """
    finished = tree.finished()
    selection = selector.select(tree, finished)
    by_majority = selection.node is None and bool(finished)
    if by_majority:
        selection = MajorityVote(aggregate=selector.aggregate).select(tree, finished)
    fallback = selection.node is None
    if fallback:
        selection = _fallback(tree, selector, on_no_answer, ended_by)
    shown = finished if selection.node is None or not fallback else [tree[selection.node]]
    candidates = tuple(_candidate(tree, record, selector, selection) for record in shown)
    ordered = sorted(
        candidates, key=lambda c: (-c.votes, 1.0 if c.score is None else -c.score, c.node)
    )
    warning = _warning(tree, ended_by, selection, fallback=fallback)
    if by_majority and not fallback:
        lack = "no finished path has a score, so the most frequent answer was taken"
        warning = f"{lack} ({_in_the_way(tree, ended_by)})" + (f"; {warning}" if warning else "")
    if selection.node is None:
        return SearchResult(None, "", None, None, ended_by, True, tuple(ordered), usage, warning)
    winner = tree[selection.node]
    return SearchResult(
        answer=winner.answer,
        text=join_steps(list(tree.steps(winner.id))),
        score=tree.path_score(winner.id, selector.aggregate),
        node=winner.id,
        ended_by=ended_by,
        fallback=fallback,
        candidates=tuple(ordered),
        usage=usage,
        warning=warning,
    )


def _fallback(
    tree: SearchTree, selector: Selector, on_no_answer: OnNoAnswer, ended_by: str
) -> Selection:
    if on_no_answer == "error":
        raise NoAnswerError(
            f"no path finished with a score ({ended_by}; {_in_the_way(tree, ended_by)}); "
            "on_no_answer='best_truncated' accepts the best unfinished path"
        )
    cut = [record for record in tree.ended() if record.status == "truncated"]
    cut += [record for record in tree if record.parent is not None and _is_stuck(tree, record)]
    return selector.select(tree, cut)


def _is_stuck(tree: SearchTree, record: NodeRecord) -> bool:
    """Whether a path was still open when the search ended: no step behind it came about."""
    below = tree.children(record.id)
    return record.status == "open" and all(child.status == "failed" for child in below)


def _candidate(
    tree: SearchTree, record: NodeRecord, selector: Selector, selection: Selection
) -> Candidate:
    return Candidate(
        node=record.id,
        steps=tree.steps(record.id),
        step_scores=tree.step_scores(record.id),
        status=record.status,
        answer=record.answer,
        score=tree.path_score(record.id, selector.aggregate),
        votes=selection.votes.get(record.id, 0.0),
    )


# --- what a user has to hear -------------------------------------------------------------------

BUDGET = "budget: "
"""Begins `ended_by` where a limit ended the search; what follows names it."""

_VARYING = re.compile(r"[0-9a-f]{8,}(?:-[0-9a-f]+)*|[0-9]+", re.IGNORECASE)


def _warning(tree: SearchTree, ended_by: str, selection: Selection, *, fallback: bool) -> str:
    """Return what a user has to know before trusting the answer, "" if all went well."""
    if fallback:
        shown = "" if selection.node is None else "; this is the best unfinished path"
        return f"no path finished ({ended_by}){shown}: {_in_the_way(tree, ended_by)}"
    if ended_by.startswith(BUDGET):
        return (
            f"the budget cut the search ({ended_by.removeprefix(BUDGET)}): this is the best of the "
            "finished paths so far"
        )
    failed, all_failed = _failures(tree), tree.totals.candidates
    return _most(failed, all_failed, "candidates failed") if 2 * len(failed) > all_failed else ""


def _in_the_way(tree: SearchTree, ended_by: str) -> str:
    """Return what kept paths from finishing, and what to do about each of it."""
    found, records = [], list(tree)
    if failed := _failures(tree):
        found.append(_most(failed, tree.totals.candidates, "candidates failed"))
    unscored = [r.score_reason for r in records if r.is_step and r.score is None and r.score_reason]
    if unscored and (tree.finished() or any(r.cause == "unscored" for r in records)):
        found.append(_most(unscored, sum(r.is_step for r in records), "steps have no score"))
    cut = Counter(r.cause for r in records if r.status == "truncated")
    if cut["max_depth"]:
        found.append(f"{cut['max_depth']} paths reached max_depth: raise it")
    if cut[""]:
        found.append(f"{cut['']} steps were cut by the policy's token limit: raise it")
    if ended_by.startswith(BUDGET):
        found.append("raise the limit")
    return "; ".join(found) or f"{sum(r.is_step for r in records)} steps proposed"


def _failures(tree: SearchTree) -> list[str]:
    return [r.reason for r in tree if r.status == "failed" and r.cause != "budget"]


def _most(reasons: Sequence[str], total: int, what: str) -> str:
    """Return how many there are and the most frequent reason; numbers and ids in it may differ."""
    kinds = Counter(map(kind_of, reasons))
    kind, count = min(kinds.items(), key=lambda item: (-item[1], item[0]))
    shown = min(reason for reason in reasons if kind_of(reason) == kind)
    return f"{len(reasons)} of {total} {what}, most often ({count} times): {shown}"


def kind_of(reason: str) -> str:
    """Return a reason without its numbers and ids, to count those that differ in them only."""
    return _VARYING.sub("#", reason)


# --- how every path ended ----------------------------------------------------------------------

Fate = Literal["finished", "pruned", "truncated", "failed", "cut"]

CUT_BY_BUDGET = "cut by budget"
"""What is said of a path that was still open when a limit ended the search."""

NOT_NEEDED = "not needed"
"""What is said of a path that was still open when the strategy was content."""


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
        if all(_goes_nowhere(child, record) for child in below):
            found.append(_end(record, below))
    return found


def _goes_nowhere(child: NodeRecord, above: NodeRecord) -> bool:
    return child.status == "failed" or (child.is_aside and child.role != above.role)


def ends_line(tree: SearchTree) -> str:
    """Return how many paths ended in which way, in words."""
    counts = Counter(end.fate for end in ends(tree))
    words = {"cut": CUT_BY_BUDGET}
    return ", ".join(
        f"{counts[fate]} {words.get(fate, fate)}" for fate in get_args(Fate) if counts[fate]
    )


def _end(record: NodeRecord, below: list[NodeRecord]) -> End:
    if record.cause == "budget":  # a call given up at the limit is cut, too
        return End(record.id, "cut", record.reason)
    if record.status != "open":
        return End(record.id, record.status, record.reason)
    if record.reason:
        return End(record.id, "cut", record.reason)
    reasons = sorted({child.reason for child in below if child.status == "failed"})
    if reasons:
        return End(record.id, "failed", f"no step came after it: {reasons[0]}")
    return End(record.id, "cut", "the search has not ended")
