"""Accuracy of every selector with every aggregation on scored paths of the tiny world.

    vprm-search calibrate tiny --out paths.jsonl --problems 100 --samples 8 --first 200
    python -m tests.benchmarks.selection paths.jsonl

All selectors choose among the same finished paths of a problem, so differences are paired.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from vprm_search.compare.intervals import bootstrap
from vprm_search.ids import child_id
from vprm_search.labelling.records import ScoredPath, read_scored_paths
from vprm_search.search import (
    BestScore,
    HybridVote,
    Knockout,
    MajorityVote,
    Selector,
    WeightedVote,
)
from vprm_search.tiny.scored import problem_of
from vprm_search.tiny.world import parse_answer
from vprm_search.tree import SearchTree
from vprm_search.types import NodeRecord, Problem

AGGREGATES = ("mean", "last", "min", "product", "length_product:0.5", "prior_mean:0.5,2", "max")


def selectors() -> dict[str, list[Selector]]:
    """Return the lines of the table: one selector per aggregation, or a single one."""
    return {
        "`MajorityVote`": [MajorityVote()],
        "`BestScore`": [BestScore(aggregate=a) for a in AGGREGATES],
        "`WeightedVote`": [WeightedVote(aggregate=a) for a in AGGREGATES],
        '`WeightedVote(weigh="mean")`': [
            WeightedVote(aggregate=a, weigh="mean") for a in AGGREGATES
        ],
        "`HybridVote`": [HybridVote(aggregate=a) for a in AGGREGATES],
        "`HybridVote(agreement=0.25)`": [
            HybridVote(aggregate=a, agreement=0.25) for a in AGGREGATES
        ],
        "`Knockout`": [Knockout()],
        '`Knockout(jury=("product", "last", "min"))`': [
            Knockout(aggregate="product", jury=("product", "last", "min"))
        ],
    }


def tree_of(problem: str, paths: Sequence[ScoredPath]) -> SearchTree:
    """Return the paths of one problem as the tree that best-of-N would have left."""
    tree = SearchTree(Problem(problem))
    for index, path in enumerate(paths):
        parent, at = tree.root_id, index
        for place, step in enumerate(path.steps):
            last = place == len(path.steps) - 1
            ended = "finished" if path.correct is not None else "truncated"
            node = child_id(parent, at, step.text)
            record = NodeRecord(
                node,
                parent,
                at,
                step.text,
                ended if last else "open",  # type: ignore[arg-type]
                score=step.score,
                score_reason="" if step.score is not None else "none",
                answer=parse_answer(step.text) if last else None,
            )
            tree.merge([record])
            parent, at = node, 0
    return tree


def right(selector: Selector, trees: Sequence[tuple[str, SearchTree]]) -> list[float]:
    """Return 1.0 per problem whose right answer is chosen."""
    chosen = [(answer, t, selector.select(t, t.finished()).node) for answer, t in trees]
    return [float(n is not None and t[n].answer == answer) for answer, t, n in chosen]


def table(file: Path) -> Iterator[str]:
    """Yield the lines of a Markdown table."""
    groups: dict[str, list[ScoredPath]] = {}
    for path in read_scored_paths(file):
        groups.setdefault(path.problem, []).append(path)
    trees = [(problem_of(name).answer, tree_of(name, paths)) for name, paths in groups.items()]
    most = max(len(paths) for paths in groups.values())
    base = right(BestScore(), trees)
    whole = bootstrap(base)
    yield (
        f"{len(trees)} problems, N = {most}, accuracy in %; `BestScore` with `mean` has "
        f"{100 * whole.mean:.1f} [{100 * whole.low:.1f}, {100 * whole.high:.1f}]. An arrow: better "
        "or worse than that beyond the 95 % interval of the paired difference."
    )
    yield ""
    yield "| Selector | " + " | ".join(f"`{a}`" for a in AGGREGATES) + " |"
    yield "| --- " * (len(AGGREGATES) + 1) + "|"
    for name, line in selectors().items():
        cells = [_cell(right(selector, trees), base) for selector in line]
        yield f"| {name} | " + " | ".join(cells + [""] * (len(AGGREGATES) - len(cells))) + " |"


def _cell(found: Sequence[float], base: Sequence[float]) -> str:
    change = bootstrap([a - b for a, b in zip(found, base, strict=True)], resamples=2000)
    arrow = " ↑" if change.low > 0 else " ↓" if change.high < 0 else ""
    return f"{100 * sum(found) / len(found):.1f}{arrow}"


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        print("\n".join(table(Path(argument))), "\n")
