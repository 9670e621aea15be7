"""A calibration reaches every threshold: the verifier's, pruning, and one's own aggregation."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage

from tests.graph.flaky import FlakyPolicy, FlakyScorer
from vprm_search.aggregate import register_aggregation
from vprm_search.calibration.maps import Calibration, LogitMap
from vprm_search.graph import create_verifier_node, run_search
from vprm_search.scoring.wrappers import CalibratedScorer
from vprm_search.search import BeamSearch, BestOfN, BestScore, Pruning
from vprm_search.types import Problem

DOUBT = Calibration(policy="p", map=LogitMap(temperature=1.0, bias=-2.0))
CERTAIN = Calibration(policy="p", target="path", aggregate="min", map=LogitMap(bias=3.0))


def judged(scorer: Any, **options: Any) -> dict[str, Any]:
    messages = [HumanMessage("q?"), AIMessage("one\n\ntwo\n\nthree", id="a")]
    node = create_verifier_node(scorer, **options)
    return dict(node.invoke({"messages": messages, "vprm": None})["vprm"])


def test_the_verifier_weighs_calibrated_scores() -> None:
    raw = judged(FlakyScorer())
    calibrated = judged(CalibratedScorer(FlakyScorer(), DOUBT))
    values = [step["score"] for step in raw["steps"]]
    mapped = [DOUBT.apply(value) for value in values]
    assert [step["score"] for step in calibrated["steps"]] == mapped
    assert calibrated["score"] == pytest.approx(sum(mapped) / 3)
    between = (raw["score"] + calibrated["score"]) / 2
    assert judged(FlakyScorer(), threshold=between)["outcome"] == "passed"
    doubted = judged(CalibratedScorer(FlakyScorer(), DOUBT), threshold=between)
    assert doubted["outcome"] == "failed"


def test_a_calibrated_path_score_can_be_the_threshold() -> None:
    register_aggregation("right_answer_of_tests", CERTAIN.as_aggregation())
    raw = judged(FlakyScorer(), aggregate="min")
    verdict = judged(FlakyScorer(), aggregate="right_answer_of_tests", threshold=0.5)
    assert verdict["score"] == pytest.approx(CERTAIN.apply(raw["score"]))


def test_pruning_compares_calibrated_scores() -> None:
    beam = BeamSearch(
        width=8, expand=2, pruning=Pruning(below=0.3, keep_at_least=0), refill=0, stop=None
    )
    options: dict[str, Any] = {"policy": FlakyPolicy(), "strategy": beam}
    plain = run_search(Problem("q"), scorer=FlakyScorer(), **options).tree
    strict = run_search(Problem("q"), scorer=CalibratedScorer(FlakyScorer(), DOUBT), **options).tree
    first = {r.id: r for r in plain.round_nodes(1)}
    both = [r for r in strict.round_nodes(1) if r.id in first]
    assert both
    for record in both:
        assert record.score == DOUBT.apply(first[record.id].score or 0.0)

    def below(tree: Any) -> set[str]:
        return {r.id for r in tree.round_nodes(1) if r.reason.startswith("prune_below")}

    assert below(plain) < below(strict)


def test_an_adaptive_number_of_samples_believes_calibrated_scores() -> None:
    """Samples stop at the first path that is good enough: sooner for those who trust more."""
    trust = Calibration(policy="p", map=LogitMap(temperature=1.0, bias=2.0))
    counts = []
    for calibration in (DOUBT, None, trust):
        judge: Any = FlakyScorer()
        run = run_search(
            Problem("q"),
            policy=FlakyPolicy(),
            scorer=judge if calibration is None else CalibratedScorer(judge, calibration),
            strategy=BestOfN(24, good_enough=0.7, min_n=1, wave=1),
        )
        counts.append(run.result.usage.candidates)
    doubting, plain, trusting = counts
    assert trusting < plain < doubting


def test_names_of_ones_own_are_stored_with_the_records() -> None:
    register_aggregation("right_answer_of_tests", CERTAIN.as_aggregation())
    run = run_search(
        Problem("q"),
        policy=FlakyPolicy(),
        scorer=FlakyScorer(),
        strategy=BestOfN(4),
        selector=BestScore(aggregate="right_answer_of_tests"),
    )
    stored = [r.path_scores["right_answer_of_tests"] for r in run.tree.finished()]
    assert stored
    assert run.result.score == max(stored)
    lows = [
        min(s for s in run.tree.step_scores(r.id) if s is not None) for r in run.tree.finished()
    ]
    assert stored == [CERTAIN.apply(low) for low in lows]
