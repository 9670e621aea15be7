"""Dividing slots by weight, against exact arithmetic."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vprm_search.search.particle_filter import effective_sample_size, systematic_counts
from vprm_search.search.rebase import even_shares, largest_remainders, softmax

weights = st.lists(st.integers(0, 1000).map(float), min_size=1, max_size=12)


@given(weights)
def test_the_effective_sample_size_is_between_one_and_the_number(values: list[float]) -> None:
    size = effective_sample_size(values)
    if not any(values):
        assert size == 0.0
        return
    exact = Fraction(sum(map(int, values))) ** 2 / sum(Fraction(int(v)) ** 2 for v in values)
    assert size == pytest.approx(float(exact))
    assert 1.0 - 1e-9 <= size <= sum(v > 0 for v in values) + 1e-9


@given(weights, st.lists(st.integers(1, 4), min_size=12, max_size=12))
def test_counts_stand_for_repeated_weights(values: list[float], counts: list[int]) -> None:
    many = counts[: len(values)]
    spread = [v for v, c in zip(values, many, strict=True) for _ in range(c)]
    assert effective_sample_size(values, many) == pytest.approx(effective_sample_size(spread))


@given(weights, st.integers(1, 64), st.floats(0, 1, exclude_max=True))
def test_systematic_counts_are_within_one_of_their_share(
    values: list[float], slots: int, u: float
) -> None:
    counts = systematic_counts(values, slots, u)
    total = sum(values)
    assert sum(counts) == (slots if total else 0)
    for count, value in zip(counts, values, strict=True):
        if total:
            assert abs(count - slots * value / total) < 1 + 1e-9
        if not value:
            assert count == 0


def test_systematic_counts_are_right_on_average() -> None:
    values, slots, draws = [5.0, 1.0, 0.0, 3.0, 0.5], 7, 4000
    sums = [0] * len(values)
    for draw in range(draws):
        for place, count in enumerate(systematic_counts(values, slots, (draw + 0.5) / draws)):
            sums[place] += count
    for total, value in zip(sums, values, strict=True):
        assert total / draws == pytest.approx(slots * value / sum(values), abs=2e-3)


@given(weights, st.integers(0, 64))
def test_shares_by_largest_remainder_sum_exactly_and_are_within_one(
    values: list[float], slots: int
) -> None:
    counts = largest_remainders(values, slots)
    assert sum(counts) == slots
    total = sum(values)
    for count, value in zip(counts, values, strict=True):
        share = slots * value / total if total else slots / len(values)
        assert abs(count - share) < 1 + 1e-9
    for (a, x), (b, y) in itertools.combinations(zip(values, counts, strict=True), 2):
        assert x >= y or a <= b  # more weight, never fewer slots


@given(st.integers(0, 99), st.integers(1, 20))
def test_even_shares(slots: int, parts: int) -> None:
    shares = even_shares(slots, parts)
    assert sum(shares) == slots
    assert max(shares) - min(shares) <= 1


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9), st.floats(0.01, 10))
def test_softmax(scores: list[float], temperature: float) -> None:
    shares = softmax(scores, temperature)
    assert math.fsum(shares) == pytest.approx(1.0)
    for (a, x), (b, y) in itertools.combinations(zip(scores, shares, strict=True), 2):
        if x > 1e-200 and y > 1e-200:
            assert math.log(x / y) == pytest.approx((a - b) / temperature, abs=1e-6)
