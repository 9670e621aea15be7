"""The statistics against slow, independent definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.tiny_models.measures import auc_interval, macro_f1
from vprm_search.bench.step_results import auc
from vprm_search.compare.intervals import bootstrap

labelled = st.lists(
    st.tuples(st.booleans(), st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.500001, 0.9, 1.0])),
    min_size=1,
    max_size=40,
)


@given(labelled)
def test_auc_is_the_share_of_pairs_ranked_right(pairs: list[tuple[bool, float]]) -> None:
    right = [s for label, s in pairs if label]
    wrong = [s for label, s in pairs if not label]
    area = auc([label for label, _ in pairs], [s for _, s in pairs])
    if not right or not wrong:
        assert math.isnan(area)
        return
    wins = sum((r > w) + 0.5 * (r == w) for r in right for w in wrong)
    assert area == pytest.approx(wins / (len(right) * len(wrong)))


@given(labelled)
def test_auc_of_negated_scores_is_the_complement(pairs: list[tuple[bool, float]]) -> None:
    labels = [label for label, _ in pairs]
    scores = [s for _, s in pairs]
    if len(set(labels)) == 2:
        assert auc(labels, scores) == pytest.approx(1 - auc(labels, [-s for s in scores]))


@given(labelled)
def test_macro_f1_from_precision_and_recall(pairs: list[tuple[bool, float]]) -> None:
    def f1(positive: bool) -> float:
        said = [(s > 0.5) == positive for _, s in pairs]
        true = [label == positive for label, _ in pairs]
        hits = sum(a and b for a, b in zip(said, true, strict=True))
        precision = hits / sum(said) if any(said) else 0.0
        recall = hits / sum(true) if any(true) else 0.0
        return 2 * precision * recall / (precision + recall) if hits else 0.0

    assert macro_f1([label for label, _ in pairs], [s for _, s in pairs]) == pytest.approx(
        (f1(True) + f1(False)) / 2
    )


def test_bootstrap_interval_matches_the_normal_one_for_many_problems() -> None:
    values = np.random.Generator(np.random.PCG64(3)).random(4000) < 0.3
    estimate = bootstrap(values)
    error = 1.96 * math.sqrt(0.3 * 0.7 / 4000)
    assert estimate.mean == pytest.approx(values.mean())
    assert estimate.high - estimate.low == pytest.approx(2 * error, rel=0.08)
    assert estimate.problems == 4000


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=30))
def test_bootstrap_interval_holds_the_mean_of_extremes(values: list[float]) -> None:
    estimate = bootstrap(values, resamples=500)
    assert min(values) - 1e-9 <= estimate.low <= estimate.high <= max(values) + 1e-9


def test_bootstrap_is_reproducible_and_refuses_nothing_to_estimate() -> None:
    assert bootstrap([0.0, 1.0, 1.0], seed=4) == bootstrap([0.0, 1.0, 1.0], seed=4)
    with pytest.raises(ValueError, match="non-empty"):
        bootstrap([])


def test_auc_interval_resamples_whole_problems() -> None:
    rng = np.random.Generator(np.random.PCG64(1))
    groups = np.repeat(np.arange(50), 10)
    labels = np.repeat(rng.random(50) < 0.5, 10)  # every problem is all right or all wrong
    scores = labels * 0.5 + np.repeat(rng.random(50), 10)
    estimate = auc_interval(labels.tolist(), scores.tolist(), groups.tolist())
    assert estimate.low < estimate.mean < estimate.high
    assert estimate.problems == 50
    alone = auc_interval(labels.tolist(), scores.tolist(), list(range(500)))
    assert alone.high - alone.low < estimate.high - estimate.low
