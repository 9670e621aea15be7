"""Measures and fits of calibrations against closed forms, brute force and known worlds."""

from __future__ import annotations

import math
from fractions import Fraction
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vprm_search.calibration.fit import METHODS, Method, fit, held_out, reliability
from vprm_search.calibration.maps import IsotonicMap, LogitMap
from vprm_search.errors import InputError

points = st.lists(
    st.tuples(st.integers(0, 64).map(lambda n: n / 64), st.booleans()), min_size=1, max_size=60
)


@given(points, st.integers(2, 20))
def test_measures_are_what_their_definitions_say(
    pairs: list[tuple[float, bool]], bins: int
) -> None:
    measured = reliability([p for p, _ in pairs], [right for _, right in pairs], bins)
    groups: dict[int, list[tuple[Fraction, bool]]] = {}
    for score, right in pairs:
        exact = Fraction(score)
        groups.setdefault(min(bins - 1, int(exact * bins)), []).append((exact, right))
    gap = sum(
        (abs(sum((s for s, _ in g), Fraction(0)) - sum(r for _, r in g)) for g in groups.values()),
        Fraction(0),
    )
    brier = sum(((Fraction(s) - r) ** 2 for s, r in pairs), Fraction(0))
    assert measured.ece == pytest.approx(float(gap / len(pairs)), abs=1e-12)
    assert measured.brier == pytest.approx(float(brier / len(pairs)), abs=1e-12)
    assert sum(part.count for part in measured.bins) == measured.points == len(pairs)
    assert [part.low for part in measured.bins] == [n / bins for n in sorted(groups)]
    edged = [min(1 - 1e-7, max(1e-7, s if r else 1 - s)) for s, r in pairs]
    loss = -math.fsum(map(math.log, edged)) / len(pairs)
    assert measured.log_loss == pytest.approx(loss, rel=1e-6)


def world(temperature: float, bias: float, count: int, seed: int) -> tuple[list[float], list[bool]]:
    """Draw scores whose truth is sigmoid(logit / temperature + bias)."""
    rng = Random(seed)
    scores, labels = [], []
    for _ in range(count):
        logit = rng.gauss(0, 3)
        scores.append(1 / (1 + math.exp(-logit)))
        labels.append(rng.random() < 1 / (1 + math.exp(-(logit / temperature + bias))))
    return scores, labels


@pytest.mark.parametrize(("temperature", "bias"), [(2.5, 0.0), (0.5, 0.0), (1.5, -1.0), (3.0, 0.7)])
def test_the_truth_of_a_known_world_is_found_again(temperature: float, bias: float) -> None:
    scores, labels = world(temperature, bias, 20_000, seed=3)
    found = fit("platt", scores, labels)
    assert isinstance(found, LogitMap)
    assert found.temperature == pytest.approx(temperature, rel=0.08)
    assert found.bias == pytest.approx(bias, abs=0.08)
    if bias == 0:
        scaled = fit("temperature", scores, labels)
        assert isinstance(scaled, LogitMap)
        assert scaled.bias == 0
        assert scaled.temperature == pytest.approx(temperature, rel=0.08)


@pytest.mark.parametrize("method", METHODS)
def test_a_calibration_helps_on_points_it_has_not_seen(method: Method) -> None:
    if method == "isotonic":
        pytest.importorskip("sklearn")
    found = fit(method, *world(2.5, 0.0, 4000, seed=1))
    scores, labels = world(2.5, 0.0, 4000, seed=2)
    before = reliability(scores, labels)
    after = reliability([found(score) for score in scores], labels)
    assert after.brier < before.brier
    assert after.log_loss < before.log_loss
    assert after.ece < before.ece / 3


fittable = st.lists(
    st.tuples(st.integers(0, 16).map(lambda n: n / 16), st.booleans()), min_size=50, max_size=90
).filter(lambda pairs: len({right for _, right in pairs}) == 2)


def smoothed_loss(pairs: list[tuple[float, bool]], slope: float, bias: float) -> float:
    """The negative log-likelihood under Platt's targets, written down anew."""
    many = sum(right for _, right in pairs)
    few = len(pairs) - many
    total = 0.0
    for score, right in pairs:
        inside = min(1 - 1e-7, max(1e-7, score))
        value = slope * math.log(inside / (1 - inside)) + bias
        target = (many + 1) / (many + 2) if right else 1 / (few + 2)
        total += max(value, 0) + math.log1p(math.exp(-abs(value))) - target * value
    return total


@given(fittable)
@settings(max_examples=40)
def test_no_other_temperature_or_bias_is_more_likely(pairs: list[tuple[float, bool]]) -> None:
    scores, labels = [s for s, _ in pairs], [right for _, right in pairs]
    for method in ("temperature", "platt"):
        found = fit(method, scores, labels)  # type: ignore[arg-type]
        assert isinstance(found, LogitMap)
        slope = 1 / found.temperature
        best = smoothed_loss(pairs, slope, found.bias)
        biases = [found.bias] if method == "temperature" else [found.bias + d for d in (-0.1, 0.1)]
        for other in (slope * 0.97, slope, slope * 1.03, slope + 0.01, slope - 0.01):
            if 0.01 <= other <= 100:
                for bias in biases:
                    assert best <= smoothed_loss(pairs, other, bias) + 1e-6


@given(fittable)
@settings(max_examples=40)
def test_isotonic_regression_is_the_max_of_min_averages(pairs: list[tuple[float, bool]]) -> None:
    """The closed form: at x, the largest over starts <= x of the smallest mean over ends >= x."""
    pytest.importorskip("sklearn")
    found = fit("isotonic", [s for s, _ in pairs], [right for _, right in pairs])
    assert isinstance(found, IsotonicMap)
    edge = 1 / (len(pairs) + 2)
    for x in sorted({score for score, _ in pairs}):
        starts = [a for a in {s for s, _ in pairs} if a <= x]
        ends = [b for b in {s for s, _ in pairs} if b >= x]
        means = [
            [np.mean([right for score, right in pairs if a <= score <= b]) for b in ends]
            for a in starts
        ]
        expected = min(1 - edge, max(edge, max(min(row) for row in means)))
        assert found(x) == pytest.approx(expected, abs=1e-6)


def test_separable_points_stay_finite() -> None:
    scores = [0.1] * 30 + [0.9] * 30
    labels = [False] * 30 + [True] * 30
    for method in ("temperature", "platt"):
        found = fit(method, scores, labels)  # type: ignore[arg-type]
        assert 0.5 < found(0.9) < 1
        assert 0 < found(0.1) < 0.5


@given(st.lists(st.text(max_size=6), min_size=1, max_size=40), st.integers(0, 3))
def test_whole_problems_are_held_out(problems: list[str], seed: int) -> None:
    kept = held_out(problems, 0.5, seed)
    side = dict(zip(problems, kept, strict=True))
    assert [side[p] for p in problems] == kept
    assert held_out(problems[::-1], 0.5, seed) == kept[::-1]


def test_about_the_asked_share_is_held_out() -> None:
    problems = [f"p{i}" for i in range(4000)]
    assert sum(held_out(problems, 0.3)) / 4000 == pytest.approx(0.3, abs=0.03)
    assert held_out(problems, 0.3, 1) != held_out(problems, 0.3, 2)


BAD: list[tuple[list[float], list[bool], str]] = [
    ([0.5] * 60, [True] * 60, "right and wrong"),
    ([0.5] * 4, [True, False] * 2, "at least 50"),
    ([0.5] * 60, [True, False] * 29, "one label per score"),
    ([1.5] * 60, [True, False] * 30, "not a probability"),
    ([math.nan] * 60, [True, False] * 30, "not a probability"),
    ([], [], "one label per score"),
]


@pytest.mark.parametrize(("scores", "labels", "said"), BAD)
def test_what_cannot_be_fitted_is_told(scores: list[float], labels: list[bool], said: str) -> None:
    with pytest.raises(InputError, match=said):
        fit("temperature", scores, labels)
