"""Searches made by hand, for the reports."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from vprm_search import ids
from vprm_search.budget import usage_of
from vprm_search.search import BestScore, conclude
from vprm_search.tree import SearchTree
from vprm_search.types import NodeRecord, Problem, SearchResult


def child(tree: SearchTree, parent: str, index: int, text: str, **fields: object) -> NodeRecord:
    """Return a proposed step of `parent`; `fields` are those of `NodeRecord`."""
    node = ids.child_id(parent, index, text)
    fields = {"seed": ids.child_seed(parent, index), "round": 1, **fields}
    return NodeRecord(id=node, parent=parent, index=index, text=text, **fields)  # type: ignore[arg-type]


def ended(tree: SearchTree, ended_by: str = "test") -> SearchResult:
    """Return the result of a search by the best mean score."""
    return conclude(tree, BestScore(), usage=usage_of(tree), ended_by=ended_by)


def written_by(texts: Sequence[str]) -> tuple[SearchTree, SearchResult]:
    """Return a search in which `texts` stand wherever a user or a model can write.

    One text after the other is the question, a step, an answer, a reason of pruning, of failing
    and of a missing score.
    """

    def text(place: int) -> str:
        return texts[place % len(texts)]

    tree = SearchTree(Problem(text(0) or "?"))
    root = tree.root_id
    good = child(tree, root, 0, text(1), score=0.9)
    weak = child(tree, root, 1, text(2), score=0.1, status="pruned", reason=text(3))
    failed = child(tree, root, 2, "", status="failed", reason=text(4))
    unknown = child(tree, root, 3, text(5) + "?", score_reason=text(6))
    tree.merge([good, weak, failed, unknown])
    final = child(tree, good.id, 0, text(7), round=2, score=0.8, status="finished", answer=text(8))
    tree.merge([final])
    return tree, ended(tree, ended_by=text(9))


def small_search() -> tuple[SearchTree, SearchResult]:
    """Return a search with a chosen path, a pruned step, merged copies and a failed call."""
    tree = SearchTree(Problem("What is red + blue?"))
    root = tree.root_id
    red = child(tree, root, 0, "red = 2.", score=0.95)
    twin = child(
        tree,
        root,
        1,
        "red = 2.",
        status="pruned",
        reason=f"duplicate of {red.id}",
        cause="duplicate",
        merged_into=red.id,
    )
    wrong = child(tree, root, 2, "red = 7.", score=0.04, status="pruned", reason=f"after {red.id}")
    tree.merge([red, twin, wrong])
    right = child(
        tree, red.id, 0, "2 + 3 = 5. Answer: 5", round=2, score=0.9, status="finished", answer="5"
    )
    lost = child(tree, red.id, 1, "", round=2, status="failed", reason="timed out")
    tree.merge([right, lost])
    return tree, ended(tree)


def large_search(
    rounds: int, *, width: int = 4, expand: int = 8
) -> tuple[SearchTree, SearchResult]:
    """Return a beam search of many rounds: most steps are pruned, the answer stands far below."""
    rng = random.Random(rounds)
    tree = SearchTree(Problem("A long one?"))
    beam = [tree.root_id]
    for number in range(1, rounds + 1):
        steps = [
            child(tree, parent, i, f"{number}.{i}", round=number, score=rng.random())
            for parent in beam
            for i in range(expand)
        ]
        steps.sort(key=lambda step: -(step.score or 0.0))
        last = number == rounds
        kept = [replace(s, status="finished", answer="5") if last else s for s in steps[:width]]
        gone = [replace(s, status="pruned", cause="outranked", reason="4") for s in steps[width:]]
        tree.merge([*kept, *gone])
        beam = [step.id for step in kept]
    return tree, ended(tree)
