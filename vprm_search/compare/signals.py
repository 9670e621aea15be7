"""What the scores of whole solutions have to do with one another and with the answers.

The signals of the pre-flight check (`compare/preflight.py`), with intervals over problems.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from itertools import combinations
from statistics import fmean

from pydantic import BaseModel, ConfigDict

RESAMPLES = 1000

SIGNALS: Mapping[str, str] = {
    "correlation": "correlation of successive logits along a path",
    "lasting": "what of it lasts; noise that is handed from step to step fades",
    "share": "problems in which the frequent answer's paths score higher on average",
    "preference": "chance that a path with the frequent answer scores above another",
    "likeness": "how alike paths of one answer score before it (intraclass correlation)",
    "lead": "share of the frequent answer less that of the next one",
}
"""The signals by name, and what they are.

Of a blind scorer, `share` and `preference` are .5 and the others 0, but for `lead`, which is the
policy's alone.
"""


@dataclass(frozen=True, slots=True)
class ScoredSolution:
    """A distinct solution of a problem: a key and a logit per step, and the class of its answer.

    Two solutions have the same keys as far as they begin alike. `count` samples were this solution;
    `answer` is None if it gives none, or was cut.
    """

    keys: tuple[str, ...]
    logits: tuple[float, ...]
    answer: int | None
    count: int = 1


@dataclass(frozen=True, slots=True)
class _Sums:
    """What one problem adds to the signals; the sums of several problems are added up."""

    one_xy: float = 0.0  # of logits of successive steps, less their level's mean
    one_xx: float = 0.0
    one_yy: float = 0.0
    two_xy: float = 0.0  # two steps apart
    two_xx: float = 0.0
    two_yy: float = 0.0
    squares: float = 0.0  # of paths' mean logits before the answer, less their mean
    freedom: float = 0.0
    same: float = 0.0  # products of those of two paths with one answer
    same_pairs: float = 0.0
    other: float = 0.0  # with two answers
    other_pairs: float = 0.0
    higher: float = 0.0
    above: float = 0.0
    compared: float = 0.0
    lead: float = 0.0
    answered: float = 0.0


_NAMES = tuple(entry.name for entry in fields(_Sums))


def _sums(solutions: Sequence[ScoredSolution]) -> _Sums:
    """Return what one problem adds to the signals."""
    found: dict[str, float] = dict.fromkeys(_NAMES, 0.0)
    levels = centred_levels(solutions)
    for name, apart in (("one", 1), ("two", 2)):
        pairs = {
            s.keys[end]: (levels[end - apart][s.keys[end - apart]], levels[end][s.keys[end]])
            for s in solutions
            for end in range(apart, len(s.keys))
        }  # a step that several solutions share counts once
        _add(found, f"{name}_xy", (x * y for x, y in pairs.values()))
        _add(found, f"{name}_xx", (x * x for x, _ in pairs.values()))
        _add(found, f"{name}_yy", (y * y for _, y in pairs.values()))
    answered = [s for s in solutions if s.answer is not None]
    if answered:
        _add_answers(found, answered)
    return _Sums(**found)


def _add(found: dict[str, float], name: str, values: Iterable[float]) -> None:
    found[name] += math.fsum(values)


def centred_levels(solutions: Sequence[ScoredSolution]) -> list[dict[str, float]]:
    """Return by level the logit of each distinct step less the mean of the level."""
    levels = []
    for place in range(max((len(s.keys) for s in solutions), default=0)):
        level = {s.keys[place]: s.logits[place] for s in solutions if place < len(s.keys)}
        mean = fmean(level.values())
        levels.append({key: value - mean for key, value in level.items()})
    return levels


def _add_answers(found: dict[str, float], answered: Sequence[ScoredSolution]) -> None:
    """Add what scores and answers have to do with one another."""
    votes = Counter[int]()
    for solution in answered:
        votes[solution.answer or 0] += solution.count
    frequent, most = min(votes.items(), key=lambda pair: (-pair[1], pair[0]))
    next_most = max((count for answer, count in votes.items() if answer != frequent), default=0)
    _add(found, "lead", [(most - next_most) / sum(votes.values())])
    _add(found, "answered", [1])
    ways = _centred([(s.answer, fmean(s.logits[:-1] or s.logits)) for s in answered])
    _add(found, "squares", (value * value for _, value in ways))
    _add(found, "freedom", [len(ways) - 1])
    for name, alike in (("same", True), ("other", False)):
        products = [x * y for (a, x), (b, y) in combinations(ways, 2) if (a == b) is alike]
        _add(found, name, products)
        _add(found, f"{name}_pairs", [len(products)])
    ours = [s.logits[-1] for s in answered if s.answer == frequent]
    others = [s.logits[-1] for s in answered if s.answer != frequent]
    if most > 1 and others:
        _add(found, "higher", [_above(fmean(ours), fmean(others))])
        _add(found, "above", [fmean(_above(x, y) for x in ours for y in others)])
        _add(found, "compared", [1])


def _above(x: float, y: float) -> float:
    return 0.5 if x == y else float(x > y)


def _centred(values: Sequence[tuple[int | None, float]]) -> list[tuple[int | None, float]]:
    mean = fmean(value for _, value in values)
    return [(answer, value - mean) for answer, value in values]


def _signals(sums: Mapping[str, float]) -> dict[str, float]:
    """Return the signals that sums over problems make; where nothing can be told, a blind one's.

    If noise is handed from step to step by a factor rho, its correlation two steps apart is rho
    squared: `lasting` is what is above that, as a share of what the noise leaves.
    """
    one, two = (
        _ratio(sums[f"{name}_xy"], math.sqrt(sums[f"{name}_xx"] * sums[f"{name}_yy"]))
        for name in ("one", "two")
    )
    alike = _ratio(sums["same"], sums["same_pairs"]) - _ratio(sums["other"], sums["other_pairs"])
    return {
        "correlation": one,
        "lasting": (two - one * one) / max(0.1, 1 - one) ** 2,
        "share": _ratio(sums["higher"], sums["compared"], 0.5),
        "preference": _ratio(sums["above"], sums["compared"], 0.5),
        "likeness": _ratio(alike, _ratio(sums["squares"], sums["freedom"])),
        "lead": _ratio(sums["lead"], sums["answered"]),
    }


def _ratio(above: float, below: float, otherwise: float = 0.0) -> float:
    return above / below if below > 1e-9 else otherwise


class Signal(BaseModel):
    """A signal with its 95 % interval: a percentile bootstrap over problems."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    value: float
    low: float
    high: float


def measured_signals(
    problems: Sequence[Sequence[ScoredSolution]], resamples: int = RESAMPLES
) -> dict[str, Signal]:
    """Return the signals of solutions `[problems][solutions]`, with their intervals.

    Efron & Tibshirani, An Introduction to the Bootstrap (1993), ch. 13. Equal solutions give equal
    intervals.
    """
    parts = [astuple(_sums(solutions)) for solutions in problems]

    def of(chosen: Sequence[tuple[float, ...]]) -> dict[str, float]:
        sums = (math.fsum(column) for column in zip(*chosen, strict=True))
        return _signals(dict(zip(_NAMES, sums, strict=True)))

    draw = random.Random(0)
    again = [of(draw.choices(parts, k=len(parts))) for _ in range(resamples)]
    found, edge = {}, round(0.025 * (resamples - 1))
    for name, value in of(parts).items():
        ordered = sorted(one[name] for one in again)
        found[name] = Signal(value=value, low=ordered[edge], high=ordered[-1 - edge])
    return found
