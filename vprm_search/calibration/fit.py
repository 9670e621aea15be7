"""How well scores can be read as probabilities, and the maps that make them so.

Everything takes scores `[points]` in [0, 1] and labels `[points]` (right or wrong). Maps are fitted
by maximum likelihood (temperature, Platt; scipy) or isotonic regression (scikit-learn): extra
`calibration`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vprm_search.calibration.maps import LOGIT_EDGE, IsotonicMap, LogitMap, Method
from vprm_search.errors import InputError, need
from vprm_search.ids import digest

METHODS: tuple[Method, ...] = ("temperature", "platt", "isotonic")
Floats = NDArray[np.float64]

MIN_POINTS = 50
_STEEPEST, _FLATTEST = 100.0, 0.01  # slope of the logit: 1 / temperature


# --- measures ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Bin:
    """The points whose score lies in one interval: their number, mean score and share right."""

    low: float
    high: float
    count: int
    mean_score: float
    right: float


@dataclass(frozen=True, slots=True)
class Reliability:
    """How scores compare with what is right.

    `ece` is the expected calibration error over equally wide bins (Naeini et al., AAAI 2015),
    `brier` the mean squared difference (Brier, 1950), `log_loss` in nats, with scores kept
    `LOGIT_EDGE` away from 0 and 1. Only non-empty bins are listed.
    """

    points: int
    right: float
    ece: float
    brier: float
    log_loss: float
    bins: tuple[Bin, ...]


def reliability(scores: ArrayLike, labels: ArrayLike, bins: int = 15) -> Reliability:
    """Measure scores against labels; 15 bins as in arXiv 1706.04599.

    Raises `InputError` if there are no points, or not one label per score.
    """
    values, right = _points(scores, labels)
    place = np.minimum((values * bins).astype(int), bins - 1)
    found = []
    for number in range(bins):
        inside = place == number
        if inside.any():
            mean, share = float(values[inside].mean()), float(right[inside].mean())
            found.append(Bin(number / bins, (number + 1) / bins, int(inside.sum()), mean, share))
    gaps = sum(b.count * abs(b.mean_score - b.right) for b in found)
    inner = np.clip(values, LOGIT_EDGE, 1 - LOGIT_EDGE)
    loss = -np.where(right > 0, np.log(inner), np.log1p(-inner))
    return Reliability(
        points=values.size,
        right=float(right.mean()),
        ece=gaps / values.size,
        brier=float(((values - right) ** 2).mean()),
        log_loss=float(loss.mean()),
        bins=tuple(found),
    )


def held_out(problems: Sequence[str], share: float, seed: int = 0) -> list[bool]:
    """Tell for each point whether it is held out, `[points]`: whole problems, about `share`.

    A problem is drawn by a hash of its id and the seed, so it is on the same side in every file.
    """
    cut = int(share * 2**32)
    drawn = {p: int.from_bytes(digest("held out", seed, p)[:4], "big") < cut for p in set(problems)}
    return [drawn[problem] for problem in problems]


# --- fits --------------------------------------------------------------------------------------


def fit(method: Method, scores: ArrayLike, labels: ArrayLike) -> LogitMap | IsotonicMap:
    """Fit a map that makes scores probabilities.

    Raises:
        InputError: fewer than `MIN_POINTS` points, or all labels are equal.
        MissingDependencyError: without scipy, or scikit-learn for isotonic regression.
    """
    values, right = _points(scores, labels)
    rights = int(right.sum())
    if values.size < MIN_POINTS or rights in (0, values.size):
        raise InputError(
            f"cannot fit a calibration on {values.size} points, {rights} of them right; it takes "
            f"at least {MIN_POINTS}, right and wrong ones"
        )
    if method == "isotonic":
        return _fit_isotonic(values, right)
    return _fit_logit(values, right, with_bias=method == "platt")


def _fit_logit(values: Floats, right: Floats, *, with_bias: bool) -> LogitMap:
    """Fit slope and bias by maximum likelihood, the slope within [1/100, 100].

    The targets are Platt's, (N+ + 1) / (N+ + 2) and 1 / (N- + 2), so that points which a threshold
    separates do not drive the slope to infinity.
    """
    inside = np.clip(values, LOGIT_EDGE, 1 - LOGIT_EDGE)
    logits = np.log(inside) - np.log1p(-inside)
    many, few = right.sum(), (1 - right).sum()
    targets = np.where(right > 0, (many + 1) / (many + 2), 1 / (few + 2))
    columns = np.stack([logits, np.ones_like(logits)][: 2 if with_bias else 1], axis=1)

    def loss(weights: Floats) -> tuple[float, Floats]:
        value = columns @ weights
        gradient = columns.T @ (_library("scipy.special").expit(value) - targets)
        return float((np.logaddexp(0, value) - targets * value).mean()), gradient / len(targets)

    found = _library("scipy.optimize").minimize(
        loss,
        np.array([1.0, 0.0][: columns.shape[1]]),
        jac=True,
        method="L-BFGS-B",
        bounds=[(_FLATTEST, _STEEPEST), (None, None)][: columns.shape[1]],
        options={"ftol": 1e-15, "gtol": 1e-10},
    )
    bias = float(found.x[1]) if with_bias else 0.0
    return LogitMap(temperature=1.0 / float(found.x[0]), bias=bias)


def _fit_isotonic(values: Floats, right: Floats) -> IsotonicMap:
    """Fit with scikit-learn; the ends stay inside Laplace's bounds, as nothing is ever certain."""
    edge = 1 / (values.size + 2)
    isotonic = _library("sklearn.isotonic").IsotonicRegression
    model = isotonic(y_min=edge, y_max=1 - edge, out_of_bounds="clip")
    model.fit(values, right)
    knots: dict[float, float] = {}
    for score, share in zip(model.X_thresholds_, model.y_thresholds_, strict=True):
        knots[float(score)] = min(1.0, max(0.0, float(share)))
    ordered = sorted(knots)
    rising = np.maximum.accumulate([knots[score] for score in ordered])
    return IsotonicMap(scores=tuple(ordered), probabilities=tuple(float(v) for v in rising))


def _library(name: str) -> Any:
    package = {"sklearn": "scikit-learn"}.get(name.partition(".")[0], "scipy")
    return need(name, "calibration", package)


def _points(scores: ArrayLike, labels: ArrayLike) -> tuple[Floats, Floats]:
    values = np.asarray(scores, dtype=np.float64)
    right = np.asarray(labels, dtype=np.float64)
    if values.ndim != 1 or values.shape != right.shape or not values.size:
        raise InputError(f"expected one label per score, got {right.shape} for {values.shape}")
    if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
        raise InputError("a score is not a probability between 0 and 1")
    if not np.isin(right, (0.0, 1.0)).all():
        raise InputError("a label is neither right nor wrong")
    return values, right
