"""Fit the calibration of one policy on some of its problems and measure it on the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from vprm_search.calibration.fit import Method, fit, held_out, reliability
from vprm_search.calibration.maps import Calibration
from vprm_search.compare.statistics import Estimate, bootstrap
from vprm_search.errors import InputError
from vprm_search.labelling.scored_paths import ScoredPath, path_points, step_points
from vprm_search.report.reliability import Calibrated

T = TypeVar("T")


def calibrate_policy(
    paths: Sequence[ScoredPath],
    method: Method,
    aggregate: str = "",
    *,
    share: float = 0.5,
    seed: int = 0,
    bins: int = 15,
) -> tuple[Calibration, Calibrated]:
    """Return the calibration of one policy's steps (or of its paths, with an `aggregate`).

    It is fitted on whole problems and measured on the others, about a `share` of them. Raises
    `InputError`, naming the policy, if either part has too few points.
    """
    policy, scorer = paths[0].policy, paths[0].scorer
    scores, labels, problems = path_points(paths, aggregate) if aggregate else step_points(paths)
    kept = held_out(problems, share, seed)
    rest = [not out for out in kept]
    try:
        found = fit(method, _pick(scores, rest), _pick(labels, rest))
        if not any(kept):
            raise InputError("no problem is held out; give more problems or another --seed")
        before = reliability(_pick(scores, kept), _pick(labels, kept), bins)
    except InputError as error:
        raise InputError(f"policy {policy!r}: {error}") from error
    mapped = [found(score) for score in _pick(scores, kept)]
    after = reliability(mapped, _pick(labels, kept), bins)
    change = _brier_change(_pick(scores, kept), mapped, _pick(labels, kept), _pick(problems, kept))
    calibration = Calibration(
        policy=policy,
        scorer=scorer,
        target="path" if aggregate else "step",
        aggregate=aggregate,
        method=method,
        map=found,
        fitted_on=_facts(rest, problems, before.points, before.ece, after.ece),
    )
    return calibration, Calibrated(policy, method, before, after, change)


def _facts(
    rest: Sequence[bool], problems: Sequence[str], held: int, before: float, after: float
) -> dict[str, int | float]:
    return {
        "points": sum(rest),
        "problems": len(set(_pick(problems, rest))),
        "held_out_points": held,
        "held_out_ece_before": before,
        "held_out_ece_after": after,
    }


def _brier_change(
    scores: Sequence[float], mapped: Sequence[float], labels: Sequence[bool], owners: Sequence[str]
) -> Estimate:
    """Return the change of the Brier score per problem, with a bootstrap over problems."""
    truth = np.asarray(labels, dtype=np.float64)
    change = (np.asarray(mapped) - truth) ** 2 - (np.asarray(scores) - truth) ** 2
    _, place = np.unique(np.asarray(owners), return_inverse=True)
    per_problem = np.bincount(place, weights=change) / np.bincount(place)
    return bootstrap(per_problem, resamples=2000)


def _pick(items: Sequence[T], chosen: Sequence[bool]) -> list[T]:
    return [item for item, wanted in zip(items, chosen, strict=True) if wanted]
