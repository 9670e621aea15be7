"""What is lost when more than 12 steps are merged into 12, as VisualPRM's data and selection do?"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from examples.tiny_models.corruption import corrupt
from examples.tiny_models.measures import auc_interval
from examples.tiny_models.paper_figures import (
    FIRST_INDEX,
    THRESHOLD,
    Counts,
    Figure,
    estimate,
    reward_model,
    share,
    share_of,
    shown,
    step_scores,
    table,
)
from vprm_search.bench.step_results import macro
from vprm_search.compare.intervals import Estimate
from vprm_search.steps import REFERENCE_MAX_STEPS, merge_steps
from vprm_search.tiny.world import OPERATORS, TinyProblem, apply_operator, generate, in_range
from vprm_search.types import StepScorer

LENGTHS = (11, 13, 17, 23)
"""Steps of a solution; the reward model was trained on 5 to 11."""
WAYS = ("as given", "lowest of the group", "merged")
_RIGHT_RIGHT, _RIGHT_WRONG, _WRONG_RIGHT, _WRONG_WRONG, _ERRED, _STEP, _GROUP, _CLEAN, _PASSED = (
    range(9)
)


def longer(problem: TinyProblem, steps: int) -> TinyProblem:
    """Return the problem with as many operations as `steps` (odd) need, all results writable."""
    rng = random.Random(f"longer|{problem.id}|{steps}")
    value_of = dict(zip(problem.names, problem.values, strict=True))
    wanted = (steps - 1) // 2
    operands, operators = list(problem.operands[: wanted + 1]), list(problem.operators[:wanted])
    running = value_of[operands[0]]
    for operator, name in zip(operators, operands[1:], strict=True):
        running = apply_operator(running, operator, value_of[name])
    while len(operators) < wanted:
        name = rng.choice(problem.names)
        fits = [op for op in OPERATORS if in_range(apply_operator(running, op, value_of[name]))]
        operators.append(rng.choice(fits))
        operands.append(name)
        running = apply_operator(running, operators[-1], value_of[name])
    return replace(problem, operands=tuple(operands), operators=tuple(operators))


def merging(problems: int = 200, scorer: StepScorer | None = None) -> str:
    """Measure what merging steps loses, on rule-made solutions whose every step's truth is known.

    A step is right while it and all before it are. Groups are those of `merge_steps`; a group is
    right if all its steps are. "lowest of the group" reads the steps one by one and gives a group
    the lowest of their scores: what it loses is the grain alone. "merged" shows the group to the
    reward model as one step, as VisualPRM's data and selection do.

    Args:
        problems: of each length.
        scorer: a reward model of the world. Default: the packaged one.
    """
    scorer = scorer or reward_model()
    rows, losses = [], []
    for length in LENGTHS:
        most = REFERENCE_MAX_STEPS if length > REFERENCE_MAX_STEPS else (length + 1) // 2
        counts, areas, groups = _merged_counts(scorer, length, most, problems)
        for way in WAYS:
            own = counts[way]
            found = [estimate(own, _macro), share_of(own, _STEP, _ERRED),
                     share_of(own, _GROUP, _ERRED), share_of(own, _PASSED, _CLEAN)]  # fmt: skip
            area = areas[way]
            told = f"{area.mean:.3f} [{area.low:.3f}, {area.high:.3f}]"
            units = length if way == "as given" else groups
            rows.append([str(length), way, str(units), told, *map(shown, found)])
        for way in WAYS[1:]:
            both = np.concatenate([counts[WAYS[0]], counts[way]], axis=1)
            losses.append([str(length), way, *(shown(estimate(both, _less(figure)), "+")
                          for figure in (_macro, share(_STEP, _ERRED)))])  # fmt: skip
    return "\n\n".join(
        [
            f"{problems} solutions of each length; t = {THRESHOLD:g}.",
            table(
                ["steps", "read", "verdicts", "AUROC", "macro F1 of steps", "first wrong step",
                 "its group", "right ones passed"], rows,
            ),
            "Less than as given (paired):",
            table(["steps", "read", "macro F1 of steps", "first wrong step"], losses),
        ]
    )  # fmt: skip


def _macro(sums: Counts) -> Counts:
    return macro(sums[..., : _WRONG_WRONG + 1])


def _less(figure: Figure) -> Figure:
    """Return the difference of a figure between the second half of the columns and the first."""

    def difference(sums: Counts) -> Counts:
        half = sums.shape[-1] // 2
        less: Counts = figure(sums[..., half:]) - figure(sums[..., :half])
        return less

    return difference


def _merged_counts(
    scorer: StepScorer, length: int, most: int, problems: int
) -> tuple[dict[str, Counts], dict[str, Estimate], int]:
    """Return per way what is counted of each solution and its AUROC, and how many groups it has."""
    drawn = []
    for index in range(FIRST_INDEX, FIRST_INDEX + problems):
        problem = longer(generate("tiles-long", "test", index), length)
        steps, truth = corrupt(problem, random.Random(f"paper|{problem.id}|{length}"))
        drawn.append((problem, steps, truth))
    ends = np.cumsum([text.count("x") for text in merge_steps(["x"] * length, most)]).tolist()
    spans = [range(start, end) for start, end in zip([0, *ends], ends, strict=False)]
    fine = step_scores(scorer, [(problem, steps) for problem, steps, _ in drawn])
    coarse = step_scores(
        scorer, [(problem, merge_steps(steps, most)) for problem, steps, _ in drawn]
    )
    counts: dict[str, list[list[float]]] = {way: [] for way in WAYS}
    ranked: dict[str, list[tuple[bool, float, int]]] = {way: [] for way in WAYS}
    single = [range(place, place + 1) for place in range(length)]
    for number, (_, _, truth) in enumerate(drawn):
        lowest = [min(fine[number][place] for place in span) for span in spans]
        for way, units, scores in (
            (WAYS[0], single, fine[number]),
            (WAYS[1], spans, lowest),
            (WAYS[2], spans, coarse[number]),
        ):
            counts[way].append(solution_counts(truth, units, scores, spans))
            ranked[way] += [
                (all(truth[place] for place in unit), score, number)
                for unit, score in zip(units, scores, strict=True)
            ]
    areas = {way: auc_interval(*map(list, zip(*rows, strict=True))) for way, rows in ranked.items()}
    return {way: np.array(rows) for way, rows in counts.items()}, areas, len(spans)


def solution_counts(
    truth: Sequence[bool],
    units: Sequence[range],
    scores: Sequence[float],
    groups: Sequence[range],
) -> list[float]:
    """Return what is counted of one solution.

    Args:
        truth: `[steps]` whether the path is right up to a step.
        units: the steps that each score is about; its verdict is that of all of them.
        scores: `[units]`.
        groups: the groups that the first error's group is sought in.

    Returns:
        The steps' confusion (right said right, right said wrong, wrong said right, wrong said
        wrong); whether there is an error, its step is found (one guessed within a unit of several),
        its group is found; whether there is none, and none is said.
    """
    cells = [0.0] * 4
    for unit, score in zip(units, scores, strict=True):
        for place in unit:
            cells[2 * (not truth[place]) + (score <= THRESHOLD)] += 1
    said = next((unit for unit, s in zip(units, scores, strict=True) if s <= THRESHOLD), None)
    if all(truth):
        return [*cells, 0.0, 0.0, 0.0, 1.0, float(said is None)]
    first = truth.index(False)
    exact = 1 / len(said) if said is not None and first in said else 0.0
    group = next(group for group in groups if first in group)
    return [*cells, 1.0, exact, float(said is not None and said[0] in group), 0.0, 0.0]
