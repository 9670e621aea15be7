"""Estimates with 95 % intervals: one bootstrap over whole questions, and Wilson's for few of them.

What belongs to one question (samples of it, variants, rows that repeat it) is not independent, so
questions are resampled and never rows (Efron & Tibshirani, An Introduction to the Bootstrap, 1993,
ch. 13; Field & Welsh, 2007, for clusters).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 10_000
SMALL = 50
"""With fewer questions a share has Wilson's interval: a bootstrap would be too narrow."""

_Z = 1.959963984540054  # the normal quantile of .975
_AT_ONCE = 500_000  # numbers in one piece of the resamples


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over problems with its 95 % interval."""

    mean: float
    low: float
    high: float
    problems: int

    def to_json(self) -> dict[str, float]:
        """Return the estimate as plain JSON."""
        return {"mean": self.mean, "low": self.low, "high": self.high, "problems": self.problems}


def numbered(groups: Sequence[Hashable]) -> NDArray[np.int64]:
    """Return the number of each one's group, 0, 1, … in the order of first appearance."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(group, len(numbers)) for group in groups], dtype=np.int64)


def resampled_counts(
    groups: int, *, resamples: int = RESAMPLES, seed: int = 0
) -> Iterator[NDArray[np.int64]]:
    """Yield how often each group is drawn, `[some resamples, groups]`, until all were yielded.

    Args:
        groups: how many there are; each resample draws as many, with replacement.
        resamples: in all.
        seed: equal seeds give equal draws, whatever is then computed of them.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    size = max(1, min(500, _AT_ONCE // max(1, groups)))
    for start in range(0, resamples, size):
        yield rng.multinomial(groups, np.full(groups, 1 / groups), min(size, resamples - start))


def resampled_means(
    columns: NDArray[np.float64],
    groups: NDArray[np.int64] | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Return the means `[resamples, columns]` of `columns` `[rows, columns]` over resamples.

    All columns see the same resamples, so that the difference of two columns of the result is the
    paired bootstrap of their difference.

    Args:
        columns: the values.
        groups: `[rows]` the number of each row's group (`numbered`); whole groups are drawn.
            Default: every row is one.
        resamples: how many.
        seed: of the draws.
    """
    sums, sizes = columns, np.ones(len(columns))
    if groups is not None and len(groups) and int(groups.max()) + 1 < len(groups):
        sums = np.zeros((int(groups.max()) + 1, columns.shape[1]))
        np.add.at(sums, groups, columns)
        sizes = np.bincount(groups).astype(np.float64)
    parts = [
        (counts @ sums) / (counts @ sizes)[:, None]
        for counts in resampled_counts(len(sums), resamples=resamples, seed=seed)
    ]
    means: NDArray[np.float64] = np.concatenate(parts)
    return means


def bootstrap(
    values: ArrayLike,
    groups: Sequence[Hashable] | None = None,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Estimate:
    """Estimate the mean of `values` `[rows]` with a percentile bootstrap over groups of rows.

    For a paired comparison pass the differences. `groups` `[rows]` says what is drawn together;
    by default every row is a group of its own.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not array.size:
        raise ValueError(f"expected a non-empty list of numbers, got shape {array.shape}")
    owners = None if groups is None else numbered(groups)
    means = resampled_means(array[:, None], owners, resamples=resamples, seed=seed)
    return percentiles(float(array.mean()), means[:, 0], array.size)


def percentiles(mean: float, means: NDArray[np.float64], problems: int) -> Estimate:
    """Return a mean with the 95 % percentile interval of its resampled means."""
    low, high = np.quantile(means, [0.025, 0.975])
    return Estimate(mean, float(low), float(high), problems)


def wilson(share: float, questions: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share of `questions` independent ones.

    Wilson, JASA 22 (1927); Brown, Cai & DasGupta, Statistical Science 16 (2001), recommend it for
    few. It holds the share, lies in [0, 1], and has a width at shares of 0 and 1, too. For means of
    values in [0, 1] it is wider than need be, for their variance is largest where all are 0 or 1.
    """
    square = _Z * _Z
    middle = (share + square / (2 * questions)) / (1 + square / questions)
    spread = share * (1 - share) / questions + square / (4 * questions * questions)
    half = _Z * math.sqrt(spread) / (1 + square / questions)
    return max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))


def share_estimate(mean: float, means: NDArray[np.float64], questions: int) -> Estimate:
    """Return a share with its 95 % interval: by resampled means, or Wilson's.

    Wilson's is for fewer than `SMALL` questions, and where all questions say the same, of which
    resamples tell nothing.

    Args:
        mean: the share.
        means: `[resamples]` its resampled means.
        questions: how many questions were resampled.
    """
    if questions >= SMALL and means.min() < means.max():
        return percentiles(mean, means, questions)
    return Estimate(mean, *wilson(mean, questions), questions)
