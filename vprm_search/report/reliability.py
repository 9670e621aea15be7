"""Fit the calibration of a policy on some problems, measure it on the others, and show it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from rich.table import Table

from vprm_search.calibration.fit import Reliability, fit, held_out, reliability
from vprm_search.calibration.maps import Calibration, Method
from vprm_search.compare.intervals import Estimate, bootstrap
from vprm_search.compare.report import new_figure, png_of
from vprm_search.errors import ConfigError, InputError
from vprm_search.labelling.records import ScoredPath, path_points, step_points
from vprm_search.report.view import printable, score_rgb, shortened

T = TypeVar("T")

MAX_ROWS = 20


@dataclass(frozen=True, slots=True)
class Calibrated:
    """One policy's scores on held-out problems, before and after the calibration.

    `brier_change` is after minus before, with an interval over problems: below 0 is better.
    """

    policy: str
    method: str
    before: Reliability
    after: Reliability
    brier_change: Estimate


_MEASURES = {"ECE": "ece", "Brier score": "brier", "log loss": "log_loss"}


def calibration_table(rows: Sequence[Calibrated]) -> Table:
    """Return the measures before and after, four lines per policy."""
    table = Table(header_style="bold")
    table.add_column("policy, method")
    table.add_column("on held-out problems")
    table.add_column("before", justify="right")
    table.add_column("after", justify="right")
    for row in rows:
        facts = f"{row.before.points} points, {row.before.right:.1%} right"
        table.add_row(f"{printable(row.policy)}, {row.method}", facts, style="bold")
        for name, measure in _MEASURES.items():
            old, new = getattr(row.before, measure), getattr(row.after, measure)
            table.add_row("", name, f"{old:.4f}", f"{new:.4f}")
        change = row.brier_change
        table.add_row("", "change of Brier per problem", "", f"{change.mean:+.4f}")
        interval = f"{change.low:+.4f} … {change.high:+.4f}"
        table.add_row("", "its 95 % interval", "", interval, end_section=True)
    return table


def png_reliability(rows: Sequence[Calibrated]) -> bytes:
    """Return `reliability_figure` as a PNG; it raises the same."""
    return png_of(reliability_figure(rows))


def reliability_figure(rows: Sequence[Calibrated]) -> Any:
    """Return a matplotlib figure: per policy one diagram before and one after the calibration.

    A bar stands over each interval of scores and is as high as the share of right points in it; the
    dot marks their mean score on the diagonal, where a calibrated score lies. The strip below shows
    how many points lie where. Raises `ConfigError` for no policy, or for more than `MAX_ROWS`,
    `MissingDependencyError` without matplotlib (extra `plots`).
    """
    if not 1 <= len(rows) <= MAX_ROWS:
        raise ConfigError(
            f"{len(rows)} policies cannot be drawn; draw 1 to {MAX_ROWS} in a picture"
        )
    figure = new_figure(figsize=(8, 4.6 * len(rows)), layout="constrained")
    for part, row in zip(figure.subfigures(len(rows), 1, squeeze=False)[:, 0], rows, strict=True):
        head = f"{shortened(row.policy, 60)} ({row.method}, held-out problems)"
        part.suptitle(head, parse_math=False)
        axes = part.subplots(2, 2, sharex=True, height_ratios=(5, 1))
        _diagram(axes[:, 0], row.before, "before")
        _diagram(axes[:, 1], row.after, "after")
    return figure


def _diagram(axes: Sequence[Any], measured: Reliability, title: str) -> None:
    above, below = axes
    lows = [part.low for part in measured.bins]
    widths = [part.high - part.low for part in measured.bins]
    right = [part.right for part in measured.bins]
    means = [part.mean_score for part in measured.bins]
    colours = ["#{:02x}{:02x}{:02x}".format(*score_rgb(share)) for share in right]
    above.bar(lows, right, widths, align="edge", color=colours, edgecolor="white")
    above.plot([0, 1], [0, 1], color="#1d2329", linewidth=1.5)
    above.plot(means, means, "o", color="white", markeredgecolor="#1d2329", markersize=5)
    above.set(xlim=(0, 1), ylim=(0, 1), ylabel="share right")
    above.set_title(f"{title}: ECE {measured.ece:.3f}, Brier {measured.brier:.3f}", fontsize=10)
    counts = [part.count for part in measured.bins]
    below.bar(lows, counts, widths, align="edge", color="#6e7882", edgecolor="white")
    below.set(xlabel=f"score; {measured.points} points, {measured.right:.2f} of them right")


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
