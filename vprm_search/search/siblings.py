"""Diversity among siblings: equal steps are merged, and their slots are asked for again."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence

from vprm_search.search.plan import Close
from vprm_search.tree import SearchTree
from vprm_search.types import NodeId, NodeRecord

StepKey = Callable[[str], str]
"""From the text of a step to what makes it distinct: siblings with equal keys are merged."""

REDONE = "redone by "
"""How the reason begins of a draft that another policy does again."""

_TWIN = "duplicate of "
_NEAR_TWIN = "near-duplicate of "
# A finished twin is kept before an open one: expanding the latter would end it too. One cut by
# the token limit is kept last: it cannot be expanded.
_KEPT_FIRST = {"finished": 0, "open": 1, "truncated": 2}
_LOOSE = re.compile(r"[\s.,;:!?'\"`*_#()\[\]{}$\\]+")


def exact_step(text: str) -> str:
    """Return the text itself: only identical siblings are merged."""
    return text


def loose_step(text: str) -> str:
    """Return the text without case, white space, punctuation and mark-up; signs and digits stay.

    "So, x = 3." and "so x=3" are one step; "x = 3" and "x = -3" are two.
    """
    return _LOOSE.sub("", unicodedata.normalize("NFKC", text).casefold()) or text


def candidates(tree: SearchTree, parent: NodeId) -> list[NodeRecord]:
    """Return the children that count: no lookahead steps, no drafts that were redone."""
    return [
        child
        for child in tree.children(parent)
        if child.role != "lookahead" and not _is_redone(child)
    ]


def last_parents(tree: SearchTree) -> list[NodeId]:
    """Return the nodes expanded in the last round, by id."""
    return sorted({r.parent for r in last_steps(tree) if r.parent and r.role != "lookahead"})


def last_steps(tree: SearchTree) -> list[NodeRecord]:
    """Return the steps of the last round, in order of proposal.

    Rounds that only redid drafts or looked ahead belong to the round before them.
    """
    steps: list[NodeRecord] = []
    for number in range(tree.rounds, 0, -1):
        records = tree.round_nodes(number)
        steps = records + steps
        if any(not record.role for record in records):
            break
    return steps


def duplicates(tree: SearchTree, parents: Sequence[NodeId], key: StepKey) -> list[Close]:
    """Return the closes that merge each parent's children of equal key into one."""
    return [c for parent in parents for c in merges(candidates(tree, parent), key)]


def merges(children: Sequence[NodeRecord], key: StepKey) -> list[Close]:
    """Return the closes that merge those of equal key among some children of one node."""
    close = []
    first: dict[str, NodeRecord] = {}
    living = [child for child in children if child.status not in ("failed", "pruned")]
    for child in sorted(living, key=lambda c: (_KEPT_FIRST[c.status], c.index)):
        twin = first.setdefault(key(child.text), child)
        if twin is not child:
            word = _TWIN if twin.text == child.text else _NEAR_TWIN
            close.append(Close(child.id, f"{word}{twin.id}"))
    return close


def distinct(tree: SearchTree, parent: NodeId, key: StepKey | None) -> list[tuple[NodeRecord, int]]:
    """Return the children that stand for themselves and those merged into them, with the number.

    The same before and after the duplicates are closed; failed children are left out.
    """
    groups: dict[str, list[NodeRecord]] = {}
    for child in candidates(tree, parent):
        if child.status != "failed":
            name = child.id if key is None else key(child.text)
            groups.setdefault(name, []).append(child)
    return [(min(group, key=_before), len(group)) for group in groups.values()]


def _before(record: NodeRecord) -> tuple[bool, int, int]:
    return merged_into(record) is not None, _KEPT_FIRST.get(record.status, 1), record.index


def proposed(tree: SearchTree, parent: NodeId) -> int:
    """Return how many candidates were proposed below a node, whatever became of them."""
    if not tree.child_count(parent):
        return 0
    return sum(1 for child in tree.children(parent) if not child.role)


def merged_into(record: NodeRecord) -> NodeId | None:
    """Return the sibling that a closed duplicate was merged into, or None."""
    for word in (_TWIN, _NEAR_TWIN):
        if record.status == "pruned" and record.reason.startswith(word):
            return record.reason.removeprefix(word)
    return None


def merged_count(tree: SearchTree, record: NodeRecord) -> int:
    """Return how many siblings were merged into a node."""
    if record.parent is None:
        return 0
    return sum(1 for child in tree.children(record.parent) if merged_into(child) == record.id)


def missing(
    tree: SearchTree, parent: NodeId, target: int, *, refill: int, key: StepKey | None
) -> int:
    """Return how many of `target` children have to be asked for, at first or again.

    Slots of merged (unless `key` is None) and failed children are asked for again at most `refill`
    times.
    """
    children = candidates(tree, parent)
    tries = len({child.round for child in children})
    living = [child for child in children if child.status != "failed"]
    have = len(living) if key is None else len({key(child.text) for child in living})
    return max(0, target - have) if tries <= refill else 0


def asked_at_first(tree: SearchTree, parent: NodeId) -> int:
    """Return how many children a node was asked for when it was expanded first."""
    rounds = [child.round for child in candidates(tree, parent)]
    return rounds.count(min(rounds)) if rounds else 0


def _is_redone(record: NodeRecord) -> bool:
    return record.status == "pruned" and record.reason.startswith(REDONE)
