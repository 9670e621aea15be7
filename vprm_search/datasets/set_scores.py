"""From right and wrong answers to the figures that a set publishes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from vprm_search.datasets.known import SetName
from vprm_search.datasets.problem_set import Item
from vprm_search.errors import InputError

Graded = Sequence[tuple[Item, bool]]

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


def set_scores(name: SetName, graded: Graded) -> dict[str, float]:
    """Return the published figures of a set, shares from 0 to 1 and counts, the headline first.

    Args:
        name: which set it is; "" has its accuracy alone.
        graded: its problems, and whether each was answered right.

    Raises:
        InputError: nothing was graded, or no problem of We-Math has all its steps.
    """
    if not graded:
        raise InputError("no problem with a published answer was graded")
    accuracy = sum(right for _, right in graded) / len(graded)
    if name == "dynamath":
        return {**worst_case(graded), "accuracy": accuracy}
    if name == "wemath":
        return {**we_math(graded), "accuracy": accuracy}
    return {"accuracy": accuracy, "problems": len(graded)}


def worst_case(graded: Graded) -> dict[str, float]:
    """Return DynaMath's two figures: seeds whose variants are all right, and the mean over seeds.

    "average" is the mean of the variants' accuracies within a seed, over seeds (Zou et al., 2024).
    """
    seeds: dict[str, list[bool]] = defaultdict(list)
    for item, right in graded:
        seeds[item.group].append(right)
    count = len(seeds)
    return {
        "worst case": sum(all(rights) for rights in seeds.values()) / count,
        "average": sum(sum(rights) / len(rights) for rights in seeds.values()) / count,
        "seeds": count,
    }


def we_math(graded: Graded) -> dict[str, float]:
    """Return We-Math's scores over its problems of two and three steps (Qiao et al., 2024).

    With the steps of a problem asked one by one and all together ("multi"): insufficient knowledge
    (IK): some step and the whole are wrong; inadequate generalisation (IG): all steps are right
    and the whole is wrong; rote memorisation (RM): the whole is right, and some step (strict) or
    every step (loose) is wrong. Score = (units - .5 IG - RM - IK) / units. Units whose rows are
    not all there are left out and counted as "incomplete".
    """
    units: dict[tuple[str, str], dict[str, bool]] = defaultdict(dict)
    for item, right in graded:
        kind, _, step = item.variant.partition("_")
        units[item.group, kind][step] = right
    whole = {key: steps for key, steps in units.items() if set(steps) == _needed(key[1])}
    if not whole:
        raise InputError(
            "no problem of We-Math has all its steps: give the whole set (1,740 rows), for its "
            "score is over problems and not over rows"
        )
    counts = {"IK": 0, "IG": 0, "RM strict": 0, "RM loose": 0}
    for steps in whole.values():
        parts = [right for step, right in steps.items() if step != "multi"]
        if not steps["multi"]:
            counts["IG" if all(parts) else "IK"] += 1
        else:
            counts["RM strict"] += not all(parts)
            counts["RM loose"] += not any(parts)
    lost = 0.5 * counts["IG"] + counts["IK"]
    scores = {
        f"score ({rule})": (len(whole) - lost - counts[f"RM {rule}"]) / len(whole)
        for rule in ("strict", "loose")
    }
    return {**scores, **counts, "units": len(whole), "incomplete": len(units) - len(whole)}


def _needed(kind: str) -> set[str]:
    steps = {"2steps": 2, "3steps": 3}.get(kind, 0)
    return {*(str(step) for step in range(1, steps + 1)), "multi"} if steps else set()


def by_category(graded: Iterable[tuple[Item, bool]]) -> Mapping[str, tuple[int, int]]:
    """Return right answers and problems by category, in alphabetical order."""
    counts: dict[str, list[bool]] = defaultdict(list)
    for item, right in graded:
        counts[item.category].append(right)
    return {name: (sum(rights), len(rights)) for name, rights in sorted(counts.items())}
