"""What the sampled solutions of a cell give under every rule of choice, problem by problem."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vprm_search.compare.lockstep import unscored_copy
from vprm_search.compare.statistics import auc, auc_interval, macro_f1
from vprm_search.graph.search_run import SearchRun
from vprm_search.search import BestScore, MajorityVote, Selector, WeightedVote
from vprm_search.tiny.problem import TinyProblem, exact_labels
from vprm_search.tiny.scored import sample_leaves
from vprm_search.tree import SearchTree
from vprm_search.types import ImageData, NodeRecord, Problem

Outcomes = dict[str, list[float]]
"""Per method, one number per problem: 1 right, 0 wrong, or a share or a count."""


@dataclass(frozen=True, slots=True)
class Cell:
    """The problems of one cell, rendered."""

    family: str
    temperature: float
    problems: tuple[TinyProblem, ...]
    tasks: tuple[tuple[Problem, tuple[ImageData, ...]], ...]

    @property
    def name(self) -> str:
        """The file name of the cell's results."""
        return f"{self.family}-T{self.temperature:g}"


def finished_samples(tree: SearchTree, count: int) -> list[NodeRecord]:
    """Return the ends of the first `count` samples that the policy ended itself."""
    return [leaf for leaf in sample_leaves(tree)[:count] if leaf.status == "finished"]


def is_correct(problem: TinyProblem, tree: SearchTree, node: str | None) -> float:
    """Return 1.0 if the chosen node gives the problem's answer, else 0.0."""
    return float(node is not None and tree[node].answer == problem.answer)


def sample_outcomes(
    cell: Cell, runs: Sequence[SearchRun], sizes: Sequence[int], outcomes: Outcomes
) -> None:
    """Write what needs no scores: pass@1, pass@N, tokens and self-consistency."""
    for size in sizes:
        right = [
            [float(leaf.answer == problem.answer) for leaf in sample_leaves(run.tree)[:size]]
            for problem, run in zip(cell.problems, runs, strict=True)
        ]
        outcomes[f"pass@1 of {size}"] = [sum(row) / size for row in right]
        outcomes[f"pass@{size} (any right)"] = [max(row) for row in right]
        outcomes[f"tokens best-of-{size}"] = [
            float(sum(c.generated_tokens for c in run.tree.children(run.tree.root_id)[:size]))
            for run in runs
        ]
        # ties between answers are broken by node id, a hash: the scores must not help here
        outcomes[f"self-consistency@{size}"] = [
            choose(problem, unscored_copy(run.tree, task[1]), MajorityVote(), size)
            for problem, run, task in zip(cell.problems, runs, cell.tasks, strict=True)
        ]


def choose(problem: TinyProblem, tree: SearchTree, selector: Selector, size: int) -> float:
    """Return whether `selector` takes a right answer among the first `size` samples."""
    return is_correct(problem, tree, selector.select(tree, finished_samples(tree, size)).node)


def selector_outcomes(
    cell: Cell,
    name: str,
    trees: Sequence[SearchTree],
    aggregates: Sequence[str],
    sizes: Sequence[int],
    outcomes: Outcomes,
) -> None:
    """Write best-of-N and the weighted vote of one scorer, per aggregation and N."""
    for size in sizes:
        for aggregate in aggregates:
            selectors: dict[str, Selector] = {
                f"{name} best-of-{size} ({aggregate})": BestScore(aggregate=aggregate),
                f"{name} weighted vote@{size} ({aggregate})": WeightedVote(aggregate=aggregate),
            }
            for label, selector in selectors.items():
                outcomes[label] = [
                    choose(problem, tree, selector, size)
                    for problem, tree in zip(cell.problems, trees, strict=True)
                ]


def step_metrics(cell: Cell, trees: Sequence[SearchTree], samples: int = 8) -> dict[str, Any]:
    """Return how well step scores match exact prefix-correctness, over `samples` per problem."""
    labels: list[int] = []
    scores: list[float] = []
    owners: list[int] = []
    places: list[int] = []
    for owner, (problem, tree) in enumerate(zip(cell.problems, trees, strict=True)):
        for leaf in sample_leaves(tree)[:samples]:
            values = tree.step_scores(leaf.id)
            truth = exact_labels(problem, tree.steps(leaf.id))
            for place, (value, label) in enumerate(zip(values, truth, strict=True)):
                if value is not None:
                    labels.append(int(label))
                    scores.append(value)
                    owners.append(owner)
                    places.append(-place)
    return {
        "auc": auc_interval(labels, scores, owners).to_json(),
        "macro_f1": macro_f1(labels, scores),
        "position_only_auc": auc(labels, places),
        "steps": len(labels),
        "right": sum(labels) / max(1, len(labels)),
    }
