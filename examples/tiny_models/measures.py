"""How well step scores tell right from wrong: AUC with an interval over problems, and F1.

Samples of one problem are not independent, so intervals are made by resampling whole problems.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vprm_search.bench.step_results import auc
from vprm_search.compare.intervals import Estimate, numbered, resampled_counts


def macro_f1(labels: ArrayLike, scores: ArrayLike, threshold: float = 0.5) -> float:
    """Return the mean of the F1 of right steps and the F1 of wrong steps at `threshold`."""
    right = np.asarray(labels, dtype=bool)
    said = np.asarray(scores, dtype=np.float64) > threshold
    return (_f1(right, said) + _f1(~right, ~said)) / 2


def _f1(truth: NDArray[np.bool_], said: NDArray[np.bool_]) -> float:
    hits = int((truth & said).sum())
    total = int(truth.sum()) + int(said.sum())
    return 2 * hits / total if total else 0.0


def auc_interval(
    labels: Sequence[int], scores: Sequence[float], groups: Sequence[int], *, seed: int = 0
) -> Estimate:
    """Return the AUC with a 95 % interval from resampling whole groups (problems), 200 times."""
    right, values = np.asarray(labels, dtype=bool), np.asarray(scores, dtype=np.float64)
    owner = numbered(groups)
    problems = int(owner.max()) + 1
    areas = []
    for counts in resampled_counts(problems, resamples=200, seed=seed):
        for times in counts[:, owner]:
            areas.append(auc(np.repeat(right, times), np.repeat(values, times)))
    low, high = np.nanquantile(areas, [0.025, 0.975])
    return Estimate(auc(right, values), float(low), float(high), problems)
