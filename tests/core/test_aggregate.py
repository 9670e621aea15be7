"""Aggregations of step scores against independent arithmetic."""

from __future__ import annotations

import math
from fractions import Fraction
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vprm_search.aggregate import AGGREGATIONS, aggregation, path_score
from vprm_search.errors import ConfigError

scores = st.lists(st.floats(0, 1), min_size=1, max_size=40)
names = st.sampled_from(sorted(AGGREGATIONS))


@given(scores)
def test_every_aggregation_is_what_its_name_says(values: list[float]) -> None:
    exact = [Fraction(value) for value in values]
    product = math.prod(exact)
    assert aggregation("mean")(values) == pytest.approx(float(sum(exact) / len(exact)), rel=1e-15)
    assert aggregation("min")(values) == sorted(values)[0]
    assert aggregation("max")(values) == sorted(values)[-1]
    assert aggregation("last")(values) == values[-1]
    assert aggregation("product")(values) == pytest.approx(float(product), rel=1e-12, abs=1e-300)
    root = aggregation("geometric_mean")(values)
    if 0 in values:
        assert root == 0.0
    else:
        logs = [math.log2(value) for value in values]
        assert root == pytest.approx(2 ** (sum(logs) / len(logs)), rel=1e-9, abs=1e-300)


@given(names, scores)
def test_a_path_score_is_a_probability_between_the_extremes(name: str, values: list[float]) -> None:
    score = path_score(name, values)
    assert score is not None
    assert 0.0 <= score <= 1.0
    if name != "product":
        slack = 1e-9 if name == "geometric_mean" else 1e-15
        assert min(values) - slack <= score <= max(values) + slack


@given(names, scores, st.randoms(use_true_random=False))
def test_only_last_depends_on_the_order(name: str, values: list[float], rng: Random) -> None:
    shuffled = list(values)
    rng.shuffle(shuffled)
    if name != "last":
        assert path_score(name, shuffled) == pytest.approx(path_score(name, values), rel=1e-12)


@given(names, scores, st.integers(0, 40))
def test_one_unknown_score_makes_the_path_unknown(
    name: str, values: list[float], position: int
) -> None:
    with_hole: list[float | None] = list(values)
    with_hole.insert(position % (len(values) + 1), None)
    assert path_score(name, with_hole) is None
    assert path_score(name, []) is None
    assert path_score(name, [None]) is None


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"unknown aggregation 'median'.*mean, last, min"):
        aggregation("median")
