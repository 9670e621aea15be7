"""The figures of a benchmark of steps, against published counts and independent computations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score, precision_score, recall_score, roc_auc_score

from vprm_search.bench.labelled_solutions import LabelledSteps
from vprm_search.bench.step_report import PAPER_SOURCES, report
from vprm_search.bench.step_results import (
    StepTable,
    baselines,
    best_threshold,
    figures,
    first_errors,
    intervals,
    macro,
    summarise,
)
from vprm_search.errors import ConfigError


def solution(labels: Sequence[int], source: str = "A", question: str = "q") -> LabelledSteps:
    steps = tuple(f"step {n}" for n in range(len(labels)))
    return LabelledSteps(1, "1", question, steps, tuple(labels), source)


A, B = solution((1, 1, 1, -1, 0), "A", "a"), solution((1, -1, -1, 1, 1), "B", "b")
SCORES = ((0.9, 0.9, 0.1, 0.1, 0.99), (0.95, 0.7, 0.3, 0.4, 0.6))


def test_the_worked_example() -> None:
    at_half, at_eight = summarise([A, B], SCORES, thresholds=(0.5, 0.8), resamples=10)["thresholds"]
    assert at_half["sources"] == pytest.approx([0.7333, 0.5833], abs=1e-4)
    assert at_half["pooled"] == pytest.approx(0.6494, abs=1e-4)
    assert at_half["mean"] == pytest.approx(0.6583, abs=1e-4)
    assert at_half["weighted"] == pytest.approx(0.65, abs=1e-4)
    assert at_eight["pooled"] == pytest.approx(2 / 3)
    assert (at_half["f1_right"], at_half["f1_wrong"]) == pytest.approx((0.7273, 0.5714), abs=1e-4)


def test_a_score_at_the_threshold_is_a_minus_and_one_that_lacks_is_wrong() -> None:
    table = StepTable.of([solution((1, -1, 1, -1))], [(0.5, 0.5, None, None)])
    assert table.said_right(0.5).tolist() == [False, False, False, True]


LABELLED = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "c"]),
        st.lists(st.tuples(st.sampled_from([1, 0, -1]), st.sampled_from([0.1, 0.5, 0.7, 0.9])),
                 min_size=1, max_size=6),
    ),
    min_size=1, max_size=12,
)  # fmt: skip


@settings(max_examples=30)
@given(LABELLED, st.sampled_from([0.3, 0.5, 0.8]))
def test_figures_are_those_of_scikit_learn(
    drawn: list[tuple[str, list[tuple[int, float]]]], threshold: float
) -> None:
    solutions = [solution([x for x, _ in pairs], source) for source, pairs in drawn]
    table = StepTable.of(solutions, [[s for _, s in pairs] for _, pairs in drawn])
    kept = [(source, x > 0, s > threshold) for source, pairs in drawn for x, s in pairs if x]
    if not kept:
        return
    found = figures(table.counts(table.said_right(threshold)))
    true, said = [t for _, t, _ in kept], [s for _, _, s in kept]
    options = {"labels": [True, False], "average": None, "zero_division": 0}
    right, wrong = f1_score(true, said, **options)
    assert (found["f1_right"], found["f1_wrong"]) == pytest.approx((right, wrong))
    assert found["pooled"] == pytest.approx((right + wrong) / 2)
    for kind, place in (("right", 0), ("wrong", 1)):
        assert found[f"precision_{kind}"] == pytest.approx(
            precision_score(true, said, **options)[place]
        )
        assert found[f"recall_{kind}"] == pytest.approx(recall_score(true, said, **options)[place])
    for place, source in enumerate(table.sources):
        own = [(t, s) for name, t, s in kept if name == source]
        each = np.mean(f1_score([t for t, _ in own], [s for _, s in own], **options)) if own else 0
        assert found["sources"][place] == pytest.approx(each)


PUBLISHED = {  # VisualProcessBench: right, wrong (the whole file)
    "MMMU_DEV_VAL": (1698, 708),
    "MathVision_MINI": (3875, 2350),
    "MathVerse_MINI_Vision_Only": (5767, 2960),
    "DynaMath": (3469, 1091),
    "WeMath": (1776, 582),
}
TRIVIAL = {  # % per source, then pooled, then the mean, computed from these counts
    "always '+'": (41.37, 38.37, 39.79, 43.21, 42.96, 40.59, 41.14),
    "always '-'": (22.74, 27.41, 25.33, 19.31, 19.80, 24.06, 22.92),
    "fair coin": (47.79, 49.24, 48.67, 46.35, 46.58, 48.26, 47.73),
}


def test_trivial_scorers_on_the_published_counts() -> None:
    solutions = [
        solution((1,) * right + (-1,) * wrong, name, name)
        for name, (right, wrong) in PUBLISHED.items()
    ]
    table = StepTable.of(solutions, [[0.5] * len(s.steps) for s in solutions])
    found = baselines(table)
    for name, row in TRIVIAL.items():
        told = (*found[name]["sources"], found[name]["pooled"], found[name]["mean"])
        assert [100 * value for value in told] == pytest.approx(row, abs=0.006)
    coin = found["coin at the source's rate"]
    assert coin["sources"] == pytest.approx([0.5] * 5)
    assert coin["mean"] == pytest.approx(0.5)
    sizes = [(right + wrong, right / (right + wrong)) for right, wrong in PUBLISHED.values()]
    f1_right = sum(n * r * r for n, r in sizes) / sum(n * r for n, r in sizes)
    f1_wrong = sum(n * (1 - r) ** 2 for n, r in sizes) / sum(n * (1 - r) for n, r in sizes)
    assert coin["pooled"] == pytest.approx((f1_right + f1_wrong) / 2)  # .5064, above each source


def test_position_alone_does_not_look_at_its_own_question() -> None:
    same = [solution((1, -1), question=str(n)) for n in range(20)]
    found = baselines(StepTable.of(same, [(0.5, 0.5)] * 20))["position only"]
    assert found["auroc"] == 1.0
    assert found["pooled"] == 1.0
    alone = baselines(StepTable.of([solution((1, -1))], [(0.5, 0.5)]))["position only"]
    assert alone["auroc"] == 0.5  # nothing is known of other questions


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [([(-1, -1), (-1, 2), (2, 2), (3, 1), (0, 0), (1, -1)], (0.5, 0.5, 0.5))],
)
def test_the_first_error_as_processbench_counts_it(
    pairs: list[tuple[int, int]], expected: tuple[float, float, float]
) -> None:
    solutions, scores = [], []
    for gold, said in pairs:
        right = 4 if gold == -1 else gold
        solutions.append(solution((1,) * right + ((-1,) if gold >= 0 else ())))
        scores.append(tuple(0.1 if n == said else 0.9 for n in range(len(solutions[-1].steps))))
    found = first_errors(solutions, scores, 0.5)
    assert (found["erroneous"], found["correct"], found["f1"]) == pytest.approx(expected)


def test_neutral_steps_are_passed_over_when_the_first_error_is_sought() -> None:
    found = first_errors([solution((1, 0, -1))], [(0.9, 0.1, 0.1)], 0.5)
    assert found["erroneous"] == 1.0


def test_intervals_come_from_whole_questions() -> None:
    def width(questions: int) -> float:
        some = [solution((1, -1), question=str(n % questions)) for n in range(40)]
        values = [(0.9, 0.1) if (n % questions) % 2 else (0.1, 0.9) for n in range(40)]
        table = StepTable.of(some, values)
        low, high = intervals(table.counts(table.said_right(0.5)))["pooled"]
        return float(high - low)

    assert width(4) > 1.5 * width(40)


def test_a_threshold_is_tuned_on_one_source_and_measured_on_others() -> None:
    tuned = [solution((1, -1), "dev", str(n)) for n in range(5)]
    others = [solution((1, -1), "test", f"t{n}") for n in range(5)]
    scores = [(0.4, 0.2)] * 5 + [(0.4, 0.35)] * 5
    threshold, left = best_threshold(StepTable.of(tuned + others, scores), "dev")
    assert threshold == pytest.approx(0.3)
    assert set(np.unique(left.source)) == {1}
    assert float(macro(left.counts(left.said_right(threshold)).sum(axis=(0, 1)))) < 0.4
    with pytest.raises(ConfigError, match="no source 'nowhere'"):
        best_threshold(StepTable.of(tuned + others, scores), "nowhere")


def test_auroc_is_that_of_scikit_learn() -> None:
    told = summarise([A, B], SCORES, resamples=10)["auroc"]["pooled"]
    assert told == pytest.approx(
        roc_auc_score([1, 1, 1, 0, 1, 0, 0, 1, 1], [*SCORES[0][:4], *SCORES[1]])
    )


def test_the_report_has_the_papers_columns_and_rows() -> None:
    solutions = [solution((1, -1, 0), name, name) for name in reversed(PUBLISHED)]
    summary = summarise(solutions, [(0.9, 0.6, None)] * 5, resamples=20)
    text = report(
        {**summary, "defects": {"an empty step": 1}, "left_out": 0, "reasons": {}}, "mine"
    )
    assert "| scorer | " + " | ".join(PAPER_SOURCES.values()) + " | Overall |" in text
    assert "| VisualPRM-8B * | 58.5 | 62.1 | 61.0 | 62.7 | 61.8 | 62.0 |" in text
    assert "**mine**, t = 0.8 | 100.0" in text
    assert "an empty step: 1" in text
    plain = summarise([A, B], SCORES, resamples=20)
    assert "VisualPRM-8B" not in report({**plain, "reasons": {}}, "mine")


def test_nothing_to_measure() -> None:
    with pytest.raises(ConfigError, match="no step has a label"):
        summarise([solution((0, 0))], [(0.5, 0.5)])
