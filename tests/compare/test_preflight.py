"""The pre-flight check: its signals, its advice, its warnings, and what it refuses."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vprm_search import PreflightReport, preflight
from vprm_search.compare.preflight import advised, apreflight
from vprm_search.compare.signals import SIGNALS, ScoredSolution, Signal, measured_signals
from vprm_search.compare.worlds import WORLDS, SyntheticPolicy, SyntheticScorer, SyntheticWorld
from vprm_search.compare.worlds import WorldSettings as Settings
from vprm_search.errors import ConfigError, PolicyError, RecordError, ScorerError
from vprm_search.images.messages import image_message
from vprm_search.testing import ScriptedPolicy, ScriptedScorer, chance
from vprm_search.types import Policy, Problem, Proposal, ProposeRequest, ScoreRequest, StepScorer

GOOD = replace(WORLDS["hard"], p_step=0.95)
BLIND = replace(GOOD, auc=0.5, noise=0.9)
Solutions = list[list[ScoredSolution]]


def checked(
    world: Settings,
    problems: int = 20,
    *,
    policy: Policy | None = None,
    scorer: StepScorer | None = None,
    samples: int = 16,
) -> PreflightReport:
    made = SyntheticWorld(world)
    return preflight(
        policy or SyntheticPolicy(made),
        scorer or SyntheticScorer(made),
        [(Problem(made.question(number)), ()) for number in range(100, 100 + problems)],
        samples=samples,
    )


@st.composite
def solutions(draw: st.DrawFn) -> Solutions:
    """Some problems with solutions that begin alike or not, of different lengths."""
    logits = st.floats(-6, 6).map(lambda value: round(value, 3))
    problems = []
    for _ in range(draw(st.integers(2, 5))):
        found = []
        for path in range(draw(st.integers(2, 6))):
            steps = draw(st.lists(logits, min_size=1, max_size=5))
            keys = tuple(f"{path}.{place}" for place in range(len(steps)))
            answer = draw(st.none() | st.integers(0, 2))
            found.append(ScoredSolution(keys, tuple(steps), answer, draw(st.integers(1, 3))))
        problems.append(found)
    return problems


def scaled(problems: Solutions, factor: float, added: Sequence[float]) -> Solutions:
    return [
        [
            replace(s, logits=tuple(factor * v + a for v, a in zip(s.logits, added, strict=False)))
            for s in problem
        ]
        for problem in problems
    ]


def values(problems: Solutions) -> dict[str, float]:
    return {name: s.value for name, s in measured_signals(problems, resamples=20).items()}


# --- signals -------------------------------------------------------------------------------------


@given(solutions(), st.floats(0.2, 5), st.floats(-4, 4))
@settings(max_examples=60, deadline=None)
def test_no_signal_depends_on_how_sure_a_scorer_is_or_where_its_scores_lie(
    problems: Solutions, factor: float, level: float
) -> None:
    assert values(scaled(problems, factor, [level] * 5)) == pytest.approx(
        values(problems), abs=1e-5
    )


@given(solutions())
@settings(max_examples=60, deadline=None)
def test_a_contrary_scorer_prefers_the_opposite(problems: Solutions) -> None:
    ours, contrary = values(problems), values(scaled(problems, -1, [0] * 5))
    for name in ("share", "preference"):
        assert contrary[name] == pytest.approx(1 - ours[name])
    for name in ("correlation", "lasting", "likeness", "lead"):
        assert contrary[name] == pytest.approx(ours[name], abs=1e-6)


@given(solutions(), st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_the_order_of_problems_and_solutions_is_nothing(problems: Solutions, draw: object) -> None:
    mixed = [list(problem) for problem in problems]
    for some in (*mixed, mixed):
        draw.shuffle(some)  # type: ignore[attr-defined]
    assert values(mixed) == pytest.approx(values(problems), abs=1e-6)


def arrays(
    rng: np.random.Generator, problems: int, rho: float, truth: float
) -> tuple[Solutions, np.ndarray]:
    """Solutions of ten steps with answers by chance, right until a step is wrong."""
    right = (rng.random((problems, 16, 10)) < 0.85).cumprod(axis=2)
    noise = rng.standard_normal(right.shape)
    for place in range(1, 10):
        noise[:, :, place] *= math.sqrt(1 - rho * rho)
        noise[:, :, place] += rho * noise[:, :, place - 1]
    logits = truth * right + noise
    made = [
        [
            ScoredSolution(tuple(f"{n}.{i}" for i in range(10)), tuple(map(float, row)), n % 3)
            for n, row in enumerate(rows)
        ]
        for rows in logits
    ]
    return made, logits


def test_the_correlation_is_that_of_a_textbook() -> None:
    made, logits = arrays(np.random.default_rng(1), 12, 0.3, 1.0)
    centred = logits - logits.mean(axis=1, keepdims=True)
    x, y = centred[:, :, :-1].ravel(), centred[:, :, 1:].ravel()
    assert values(made)["correlation"] == pytest.approx(np.corrcoef(x, y)[0, 1], abs=0.005)


@pytest.mark.parametrize("rho", [0.0, 0.5])
def test_noise_that_is_handed_on_correlates_and_does_not_last(rho: float) -> None:
    blind = values(arrays(np.random.default_rng(2), 150, rho, 0.0)[0])
    knowing = values(arrays(np.random.default_rng(2), 150, rho, 1.5)[0])
    assert blind["correlation"] == pytest.approx(rho, abs=0.02)
    assert blind["lasting"] == pytest.approx(0, abs=0.05)
    assert knowing["lasting"] > 0.15


def test_equal_solutions_vote_together_and_are_scored_once() -> None:
    a, b, c = (ScoredSolution((f"{n}",), (float(n),), int(n > 0)) for n in range(3))
    problem = [replace(a, count=5), b, c]
    found = values([problem] * 5)
    assert found["lead"] == pytest.approx(3 / 7)
    assert found["preference"] == found["share"] == 0  # the frequent answer scores lowest
    assert values([[a, b, c]] * 5)["preference"] == 1


def test_intervals_hold_the_value_and_narrow_with_more_problems() -> None:
    made, _ = arrays(np.random.default_rng(3), 80, 0.2, 1.0)
    few, many = (measured_signals(made[:count]) for count in (10, 80))
    for name in ("correlation", "lasting", "preference"):
        for found in (few, many):
            assert found[name].low <= found[name].value <= found[name].high
        assert many[name].high - many[name].low < few[name].high - few[name].low


# --- advice --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("world", "advice"),
    [
        (WORLDS["easy"], "search"),
        (WORLDS["hard"], "search"),
        (GOOD, "search"),
        (replace(GOOD, level=4.4), "search"),
        (replace(GOOD, auc=0.8, correlation=0.6), "search"),
        (BLIND, "majority"),
        (replace(BLIND, correlation=0.6), "majority"),
        (replace(BLIND, level=4.4, early=3.0), "majority"),
        (replace(GOOD, auc=0.27), "majority"),
    ],
)
def test_the_advice_is_right_in_plain_worlds(world: Settings, advice: str) -> None:
    report = checked(world)
    assert report.advice == advice, report.signals
    assert set(report.signals) == set(SIGNALS)
    assert (report.problems, report.samples, report.failed, report.unscored) == (20, 320, 0, 0)


def test_scores_that_know_at_the_end_only_weigh_votes() -> None:
    assert checked(replace(GOOD, auc=0.9, blind=9), 40).advice == "vote"


def test_a_contrary_scorer_is_told_from_a_blind_one() -> None:
    contrary, blind = checked(replace(GOOD, auc=0.27)), checked(BLIND)
    assert contrary.signals["preference"].high < 0.5
    assert "against" in contrary.sentence
    assert "No sign" in blind.sentence


@given(value=st.floats(0.0, 1.0), below=st.floats(0.0, 0.5), above=st.floats(0.0, 0.5))
def test_what_may_be_chance_is_told_from_no_sign(value: float, below: float, above: float) -> None:
    lead = Signal(value=0.4, low=0.3, high=0.5)
    rest = dict.fromkeys(SIGNALS, lead)
    prefers = Signal(value=value, low=max(0.0, value - below), high=min(1.0, value + above))
    advice, sentence = advised({**rest, "preference": prefers})
    assert (advice == "search") == (value >= 0.6 and prefers.low > 0.5)
    if advice == "majority" and prefers.high >= 0.5:
        assert ("more problems" in sentence) == (value >= 0.6)
        assert ("No sign" in sentence) == (value < 0.6)


def test_equal_checks_are_equal_and_another_seed_draws_anew() -> None:
    assert checked(GOOD, 6) == checked(GOOD, 6)
    world = SyntheticWorld(GOOD)
    asked = [(Problem(world.question(number)), ()) for number in range(100, 106)]
    policy, scorer = SyntheticPolicy(world), SyntheticScorer(world)
    other = preflight(policy, scorer, asked, run_seed=7)
    assert other.signals != checked(GOOD, 6).signals


# --- warnings ------------------------------------------------------------------------------------


def warned(report: PreflightReport) -> str:
    return " ".join(report.warnings)


def test_the_failures_of_reward_models_are_told() -> None:
    assert not checked(GOOD).warnings
    assert "says '+' to 100 %" in warned(checked(replace(GOOD, level=4.4)))
    assert "says '-' to 100 %" in warned(checked(replace(GOOD, level=-4.4)))
    assert "Early steps score high" in warned(checked(replace(GOOD, early=5.0)))
    assert "repeats itself" in warned(checked(replace(GOOD, words=2, depth=2)))


def test_candidates_and_scores_too_alike_are_told() -> None:
    flat = checked(GOOD, scorer=ScriptedScorer(lambda request: 0.5))
    assert "cannot tell them apart" in warned(flat)
    assert flat.advice == "majority"
    assert "Nearly all solutions agree" in warned(checked(replace(GOOD, p_step=0.999)))


# --- what it is asked and what it refuses --------------------------------------------------------


def solved(request: ProposeRequest, seed: int) -> str:
    draw = chance("draw", seed)
    return f"One of {int(1000 * draw)}\n\nAnswer: {int(3 * draw)}"


def doubtful(request: ScoreRequest) -> float:
    return 0.1 + 0.8 * chance("score", request.problem.question, *request.steps)


def test_texts_and_messages_are_problems() -> None:
    policy, scorer = ScriptedPolicy(solved), ScriptedScorer(doubtful)
    with pytest.raises(ConfigError, match="2 problems with 16 solutions"):
        preflight(policy, scorer, ["a?", "b?"])
    asked = ["a?", "b?", image_message("c?"), [image_message("d?")], (Problem("e?"), ())]
    told: list[tuple[int, int]] = []
    report = preflight(policy, scorer, asked, progress=lambda *done: told.append(done))
    assert [request.problem.question for request in policy.asked] == ["a?", "b?", "c?", "d?", "e?"]
    assert report.problems == 5
    assert told[-1] == (5, 5)


def test_calls_that_fail_are_counted_and_too_many_are_no_result() -> None:
    def failing(share: float) -> ScriptedPolicy:
        def said(request: ProposeRequest, seed: int) -> str | Proposal:
            if chance("fails", seed) < share:
                return Proposal("", "error", error="HTTP 503: come back later")
            return solved(request, seed)

        return ScriptedPolicy(said)

    asked = [f"{number}?" for number in range(10)]
    report = preflight(failing(0.1), ScriptedScorer(doubtful), asked)
    assert 4 <= report.failed <= 32
    with pytest.raises(
        PolicyError, match=r"of 160 calls of the policy failed, more than 20 %.*503"
    ):
        preflight(failing(0.6), ScriptedScorer(doubtful), asked)
    assert preflight(failing(0.6), ScriptedScorer(doubtful), asked, max_failed=0.9).failed > 50


def test_steps_without_scores_are_counted_and_too_many_are_no_result() -> None:
    def failing(share: float) -> ScriptedScorer:
        def said(request: ScoreRequest) -> float | str:
            fails = chance("fails", *request.steps) < share
            return "the server is down" if fails else doubtful(request)

        return ScriptedScorer(said)

    asked = [f"{number}?" for number in range(10)]
    assert preflight(ScriptedPolicy(solved), failing(0.05), asked).unscored > 0
    with pytest.raises(ScorerError, match=r"solutions have no score.*the server is down"):
        preflight(ScriptedPolicy(solved), failing(0.5), asked)


def test_a_policy_that_says_one_thing_leaves_nothing_to_choose() -> None:
    with pytest.raises(PolicyError, match="0 of 6 problems have two different solutions"):
        preflight(
            ScriptedPolicy("Answer: 4"), ScriptedScorer(doubtful), [f"{n}?" for n in range(6)]
        )


async def test_it_runs_inside_a_loop_too() -> None:
    policy, scorer = ScriptedPolicy(solved), ScriptedScorer(doubtful)
    report = await apreflight(policy, scorer, [f"{n}?" for n in range(5)], samples=4)
    assert report.samples == 20


# --- the file ------------------------------------------------------------------------------------


def test_a_report_is_kept_as_json(tmp_path: Path) -> None:
    report, file = checked(GOOD, 6), tmp_path / "report.json"
    report.save(file)
    assert PreflightReport.load(file) == report


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": "other"}, "no report of"),
        ({"version": 2}, "version 2"),
        ({"advice": "guess"}, "advice"),
        ({"signals": {"share": {"value": "high"}}}, "signals.share"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, change: dict[str, object], said: str) -> None:
    file = tmp_path / "report.json"
    file.write_text(json.dumps({**json.loads(checked(GOOD, 6).dumps()), **change}))
    with pytest.raises(RecordError, match=said):
        PreflightReport.load(file)


def test_no_file_and_no_json_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    with pytest.raises(RecordError, match=r"report\.json cannot be read"):
        PreflightReport.load(file)
    file.write_text("{")
    with pytest.raises(RecordError, match=r"report\.json is not JSON"):
        PreflightReport.load(file)
