"""From right and wrong answers to the figures that a set publishes.

"Right" may be a chance from 0 to 1 everywhere: the figures are then what is to be expected of rows
that are right or wrong independently of one another.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

from vprm_search.datasets.known import SetName
from vprm_search.errors import InputError


class Grouped(Protocol):
    """What the scores need of a problem (`Item` has it): its group, its variant, its category."""

    @property
    def group(self) -> str:
        """What is scored together with it."""
        ...

    @property
    def variant(self) -> str:
        """Which part of the group it is."""
        ...

    @property
    def category(self) -> str:
        """Its category, "" if it has none."""
        ...


Graded = Sequence[tuple[Grouped, float]]
"""Problems, and whether each was answered right (or the chance that it was)."""

PAPER_TEXT_SETS: tuple[SetName, ...] = ("gsm8k", "math500", "gpqa")
PAPER_TEXT_ROWS: Mapping[str, tuple[tuple[float, float], ...]] = MappingProxyType(
    {
        "Qwen2.5-7B": ((91.6, 94.5), (75.5, 81.6), (36.4, 41.4)),
        "Qwen2.5-32B": ((95.9, 96.1), (83.1, 85.4), (49.5, 53.5)),
        "Qwen2.5-72B": ((95.8, 96.5), (83.1, 85.2), (49.0, 55.6)),
        "InternVL2.5-8B": ((81.9, 82.9), (56.8, 66.2), (29.3, 34.3)),
        "InternVL2.5-38B": ((94.6, 95.6), (75.4, 80.0), (44.4, 52.5)),
        "InternVL2.5-78B": ((93.6, 94.5), (70.4, 77.8), (47.5, 51.0)),
    }
)
"""Accuracy in % on these sets, alone and as the best of 8 by VisualPRM-8B, as the paper gives it
(arXiv 2503.10291, table 5). Of GPQA it is the Diamond part, 198 problems."""


@dataclass(frozen=True, slots=True)
class Unit:
    """What one unit of a set (a problem, a seed, a problem with its steps) adds to its figures.

    Args:
        group: what it belongs to; units of one group are not independent.
        scores: by figure; a figure of the set is the mean over its units.
        counts: by the name of what is counted.
    """

    group: str
    scores: Mapping[str, float]
    counts: Mapping[str, float]


def set_scores(name: SetName, graded: Graded) -> dict[str, float]:
    """Return the published figures of a set, shares from 0 to 1 and counts, the headline first.

    Args:
        name: which set it is; "" has its accuracy alone.
        graded: its problems, and whether each was answered right.

    Raises:
        InputError: nothing was graded, or no problem of We-Math has all its steps.
    """
    units = unit_scores(name, graded)
    accuracy = sum(right for _, right in graded) / len(graded)
    means = {figure: sum(unit.scores[figure] for unit in units) / len(units)
             for figure in units[0].scores}  # fmt: skip
    counts = {what: sum(unit.counts[what] for unit in units) for what in units[0].counts}
    told = {**means, **counts}
    if name == "wemath":
        return {
            **told,
            "units": len(units),
            "incomplete": _incomplete(graded),
            "accuracy": accuracy,
        }
    if name == "dynamath":
        return {**told, "seeds": len(units), "accuracy": accuracy}
    return {**told, "problems": len(graded)}


def unit_scores(name: SetName, graded: Graded) -> list[Unit]:
    """Return the units that the figures of a set are means over, the headline's figure first.

    Raises what `set_scores` raises.
    """
    if not graded:
        raise InputError("no problem with a published answer was graded")
    if name == "dynamath":
        return _seeds(graded)
    if name == "wemath":
        return _problems_with_steps(graded)
    return [Unit(item.group, {"accuracy": right}, {}) for item, right in graded]


def _seeds(graded: Graded) -> list[Unit]:
    """Return DynaMath's seeds: "worst case" is that all variants are right (Zou et al., 2024).

    "average" is the mean of the variants' accuracies within a seed.
    """
    seeds: dict[str, list[float]] = defaultdict(list)
    for item, right in graded:
        seeds[item.group].append(right)
    return [
        Unit(seed, {"worst case": math.prod(rights), "average": sum(rights) / len(rights)}, {})
        for seed, rights in seeds.items()
    ]


def _problems_with_steps(graded: Graded) -> list[Unit]:
    """Return We-Math's problems of two and three steps (Qiao et al., 2024).

    With the steps of a problem asked one by one and all together ("multi"): insufficient knowledge
    (IK): some step and the whole are wrong; inadequate generalisation (IG): all steps are right
    and the whole is wrong; rote memorisation (RM): the whole is right, and some step (strict) or
    every step (loose) is wrong. Score = (units - .5 IG - RM - IK) / units. Units whose rows are
    not all there are left out.
    """
    units = []
    for (group, _), steps in _whole(graded).items():
        parts = [right for step, right in steps.items() if step != "multi"]
        together, every = steps["multi"], math.prod(parts)
        none = math.prod(1 - right for right in parts)
        counts = {
            "IK": (1 - every) * (1 - together),
            "IG": every * (1 - together),
            "RM strict": (1 - every) * together,
            "RM loose": none * together,
        }
        scores = {
            f"score ({rule})": 1 - 0.5 * counts["IG"] - counts["IK"] - counts[f"RM {rule}"]
            for rule in ("strict", "loose")
        }
        units.append(Unit(group, scores, counts))
    if not units:
        raise InputError(
            "no problem of We-Math has all its steps: give the whole set (1,740 rows), for its "
            "score is over problems and not over rows"
        )
    return units


def _by_unit(graded: Graded) -> dict[tuple[str, str], dict[str, float]]:
    units: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    for item, right in graded:
        kind, _, step = item.variant.partition("_")
        units[item.group, kind][step] = right
    return units


def _whole(graded: Graded) -> dict[tuple[str, str], dict[str, float]]:
    return {key: steps for key, steps in _by_unit(graded).items() if set(steps) == _needed(key[1])}


def _incomplete(graded: Graded) -> int:
    return len(_by_unit(graded)) - len(_whole(graded))


def _needed(kind: str) -> set[str]:
    steps = {"2steps": 2, "3steps": 3}.get(kind, 0)
    return {*(str(step) for step in range(1, steps + 1)), "multi"} if steps else set()


def by_category(graded: Iterable[tuple[Grouped, float]]) -> Mapping[str, tuple[float, int]]:
    """Return right answers and problems by category, in alphabetical order."""
    counts: dict[str, list[float]] = defaultdict(list)
    for item, right in graded:
        counts[item.category].append(right)
    return {name: (sum(rights), len(rights)) for name, rights in sorted(counts.items())}
