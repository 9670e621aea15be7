"""Intervals: whole groups are drawn, Wilson's is that of scipy, and few questions make it wide."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from vprm_search.compare.intervals import (
    SMALL,
    bootstrap,
    numbered,
    resampled_counts,
    resampled_means,
    share_estimate,
    wilson,
)


@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_that_of_scipy(hits: tuple[int, int]) -> None:
    right, questions = hits
    low, high = wilson(right / questions, questions)
    known = binomtest(right, questions).proportion_ci(method="wilson")
    assert low == pytest.approx(known.low, abs=1e-12)
    assert high == pytest.approx(known.high, abs=1e-12)
    assert low <= right / questions <= high


@given(
    st.lists(st.tuples(st.integers(0, 4), st.floats(-1, 1)), min_size=1, max_size=12),
    st.integers(0, 9),
)
def test_whole_groups_are_drawn(rows: list[tuple[int, float]], seed: int) -> None:
    owners = numbered([group for group, _ in rows])
    values = np.array([[value] for _, value in rows])
    found = resampled_means(values, owners, resamples=20, seed=seed)
    counts = np.concatenate(list(resampled_counts(int(owners.max()) + 1, resamples=20, seed=seed)))
    for drawn, mean in zip(counts, found[:, 0], strict=True):
        taken = [v for group, times in enumerate(drawn)
                 for v in values[owners == group, 0].tolist() * int(times)]  # fmt: skip
        assert mean == pytest.approx(np.mean(taken), abs=1e-12)


def test_samples_of_one_question_are_not_independent() -> None:
    """Three questions with the two samples 11, 00, 10: standard errors .204 and .236."""
    values, groups = np.array([[1.0], [1], [0], [0], [1], [0]]), numbered("aabbcc")
    by_row = resampled_means(values, resamples=40_000)
    by_question = resampled_means(values, groups, resamples=40_000)
    assert by_row.std() == pytest.approx(0.204, abs=0.003)
    assert by_question.std() == pytest.approx(0.236, abs=0.003)
    assert bootstrap(values[:, 0], "aabbcc").mean == 0.5


def test_few_questions_and_equal_ones_have_an_interval_with_a_width() -> None:
    means = np.array([0.9, 1.0])
    assert share_estimate(0.95, means, SMALL).low == pytest.approx(0.9025)
    assert share_estimate(0.95, means, SMALL - 1).low < 0.9
    many = share_estimate(1.0, np.ones(100), 1000)
    assert 0.99 < many.low < many.high == 1.0
