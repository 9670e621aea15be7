"""Aggregations of step scores against independent arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vprm_search.aggregate import (
    AGGREGATIONS,
    LENGTH_AWARE,
    ScoresAbove,
    aggregated,
    aggregation,
    counted_scores,
    path_score,
    register_aggregation,
)
from vprm_search.errors import ConfigError

scores = st.lists(st.floats(0, 1), min_size=1, max_size=40)
alphas = st.integers(0, 10).map(lambda tenths: tenths / 10)
length_aware = alphas.map("length_product:{}".format) | st.tuples(alphas, st.integers(0, 9)).map(
    lambda pair: f"prior_mean:{pair[0]},{pair[1]}"
)
names = st.sampled_from(sorted(AGGREGATIONS)) | length_aware


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
    if "product" not in name and "prior" not in name:
        slack = 1e-9 if name == "geometric_mean" else 1e-15
        assert min(values) - slack <= score <= max(values) + slack


@given(names, scores, st.randoms(use_true_random=False))
def test_only_last_depends_on_the_order(name: str, values: list[float], rng: Random) -> None:
    shuffled = list(values)
    rng.shuffle(shuffled)
    if name != "last":
        expected = path_score(name, values)
        assert path_score(name, shuffled) == pytest.approx(expected, rel=1e-12)


@given(names, scores, st.integers(0, 40))
def test_one_unknown_score_makes_the_path_unknown(
    name: str, values: list[float], position: int
) -> None:
    with_hole: list[float | None] = list(values)
    with_hole.insert(position % (len(values) + 1), None)
    assert path_score(name, with_hole) is None
    assert path_score(name, []) is None
    assert path_score(name, [None]) is None


@given(alphas, scores)
def test_the_length_product_lies_between_product_and_geometric_mean(
    alpha: float, values: list[float]
) -> None:
    score = aggregation(f"length_product:{alpha}")(values)
    if 0 in values:
        assert score == 0
        return
    logs = math.fsum(math.log2(value) for value in values)
    assert score == pytest.approx(2 ** (logs / len(values) ** alpha), rel=1e-9, abs=1e-300)
    assert math.prod(values) <= score * (1 + 1e-9) + 1e-300
    assert score <= aggregation("geometric_mean")(values) * (1 + 1e-9) + 1e-300


@given(alphas, st.integers(0, 9), scores)
def test_the_prior_mean_is_the_mean_with_further_steps(
    prior: float, weight: int, values: list[float]
) -> None:
    score = aggregation(f"prior_mean:{prior},{weight}")(values)
    exact = [Fraction(value) for value in values] + [Fraction(prior)] * weight
    assert score == pytest.approx(float(sum(exact) / len(exact)), rel=1e-12, abs=1e-15)


@given(st.integers(1, 9), st.integers(1, 30), st.floats(0.01, 1))
def test_a_longer_path_of_equal_steps_earns_more_than_its_prior(
    weight: int, steps: int, above: float
) -> None:
    name = f"prior_mean:0,{weight}"
    short, long = path_score(name, [above] * steps), path_score(name, [above] * (steps + 1))
    assert short is not None
    assert long is not None
    assert short < long < above + 1e-12


@given(names, scores, st.integers(0, 40), st.floats(0, 1))
def test_no_aggregation_rises_when_a_score_falls(
    name: str, values: list[float], place: int, lower: float
) -> None:
    fallen = list(values)
    fallen[place % len(values)] = min(lower, fallen[place % len(values)])
    before, after = path_score(name, values), path_score(name, fallen)
    assert before is not None
    assert after is not None
    assert after <= before * (1 + 1e-12)


@given(names, scores, st.data())
def test_a_repeated_step_never_raises_a_path(
    name: str, values: list[float], data: st.DataObject
) -> None:
    texts = [f"step {place}" for place in range(len(values))]
    again = data.draw(st.sampled_from(texts))
    longer = counted_scores([*texts, again], [*values, data.draw(st.floats(0, 1))])
    before, after = path_score(name, values), path_score(name, longer)
    assert before is not None
    assert after is not None
    assert after <= before * (1 + 1e-12)


WRONG_NAMES = ["median", "", "Mean", "length_product", "length_product:x", "prior_mean:0.5"]
WRONG_NAMES += ["length_product:1.5", "prior_mean:2,1", "length_product:-1", "prior_mean:0.5,1,1"]
WRONG_NAMES += ["length_product:٠", "length_product:1e-3", "prior_mean:0.5,nan"]


@pytest.mark.parametrize("name", WRONG_NAMES)
def test_an_unknown_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigError):
        aggregation(name)


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"unknown aggregation 'median'.*mean, last, min") as told:
        aggregation("median")
    assert all(form in str(told.value) for form in LENGTH_AWARE)
    assert "register_aggregation" in str(told.value)


# --- one's own ---------------------------------------------------------------------------------


def second_lowest(values: Sequence[float]) -> float:
    return sorted(values)[min(1, len(values) - 1)]


def test_an_aggregation_of_ones_own_goes_by_its_name() -> None:
    assert register_aggregation("second_lowest_of_tests", second_lowest) is second_lowest
    register_aggregation("second_lowest_of_tests", second_lowest)  # once more changes nothing
    assert path_score("second_lowest_of_tests", [0.5, 0.25, 0.75]) == 0.5
    assert path_score("second_lowest_of_tests", [0.5, None]) is None


@pytest.mark.parametrize("name", ["mean", "length_product", "second_lowest_of_tests", "A b", "x:1"])
def test_a_name_means_one_function(name: str) -> None:
    register_aggregation("second_lowest_of_tests", second_lowest)
    with pytest.raises(ConfigError, match=r"is there already|cannot name"):
        register_aggregation(name, lambda values: values[0])


@pytest.mark.parametrize("value", [1.5, -0.1, math.nan, math.inf])
def test_an_aggregation_that_makes_no_probability_is_told(value: float) -> None:
    name = f"wrong_of_tests_{str(value).replace('.', '_').replace('-', 'minus')}"
    register_aggregation(name, lambda values: value)
    with pytest.raises(ConfigError, match=f"{name}.*must be between 0 and 1"):
        path_score(name, [0.5])


@given(above=st.lists(st.floats(0, 1), max_size=40), last=st.floats(0, 1), name=names)
def test_one_more_step_makes_to_the_bit_what_all_scores_make(
    above: list[float], last: float, name: str
) -> None:
    known = ScoresAbove(above)
    for score in (last, 0.5, last):  # siblings
        assert known.then(name, score).hex() == aggregated(name, [*above, score]).hex()
