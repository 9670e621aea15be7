"""Outcome mode of every family: the answer so far as one step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.families.oracle import FamilyOracle
from tests.families.test_oracle import PICTURES, WORDS, load
from tests.families.tiny_tokenizers import TOKENIZERS
from tests.scoring.test_oracle import as_request
from vprm_search.errors import ConfigError
from vprm_search.scoring import TransformersScorer
from vprm_search.scoring.families import FAMILIES
from vprm_search.scoring.wrappers import OutcomeScorer, step_results, whole_answers
from vprm_search.testing import ScriptedScorer
from vprm_search.types import Problem, ScoreRequest, ScoreResult, StepScore

Pair = tuple[TransformersScorer, FamilyOracle, Path]
paths = st.lists(st.sampled_from(WORDS), min_size=1, max_size=3).map(tuple)


@pytest.fixture(scope="module", params=sorted(TOKENIZERS))
def pair(request: pytest.FixtureRequest, folder_of: Callable[[str], Path]) -> Pair:
    name = request.param
    path = folder_of(name)
    return load(path, name, orm=True), FamilyOracle(path, name), path


@given(path=paths)
@settings(max_examples=4)
def test_the_answer_so_far_is_scored_as_one_step(pair: Pair, path: tuple[str, ...]) -> None:
    scorer, oracle, _ = pair
    images = PICTURES[:1] if FAMILIES[oracle.name].images else ()
    [result] = scorer.score_sync([as_request("What is x?", images, path)])
    pngs = [image.png for image in images]
    for number, score in enumerate(result.scores, start=1):
        [expected] = oracle.score("What is x?", ["\n\n".join(path[:number])], pngs)
        assert score.value == pytest.approx(expected, abs=1e-5)
    assert len(result.scores) == len(result.step_tokens) == len(path)


async def test_wrapping_any_scorer_gives_the_same(pair: Pair) -> None:
    scorer, oracle, path = pair
    plain = load(path, oracle.name)
    wrapped = OutcomeScorer(plain)
    requests = [as_request("What is x?", (), WORDS[:3]), as_request("What is x?", (), WORDS[:1])]
    for ours, theirs in zip(
        await scorer.score(requests), await wrapped.score(requests), strict=True
    ):
        for a, b in zip(ours.scores, theirs.scores, strict=True):
            assert a.value == pytest.approx(b.value, abs=1e-5)
    assert len({scorer.identity, plain.identity, wrapped.identity}) == 3
    # of two steps the first alone is an answer of one step
    assert (await plain.score(requests))[0].scores[0].value == pytest.approx(
        (await wrapped.score(requests))[0].scores[0].value, abs=1e-5
    )


def by_length(request: ScoreRequest) -> float | str:
    """A text's length is its score, and an empty one has none."""
    return len(request.steps[-1]) / 100 or "empty"


async def test_costs_add_up_and_failures_stay_values() -> None:
    scorer = OutcomeScorer(ScriptedScorer(by_length))
    problem = Problem("How many are there now?")
    results = await scorer.score([ScoreRequest(problem, ("ab", "c")), ScoreRequest(problem, ("",))])
    assert [s.value for s in results[0].scores] == [0.02, 0.05]
    assert results[0].prefix_tokens == 5
    assert results[0].step_tokens == (2, 1)
    assert results[1].scores == (StepScore(None, "empty"),)


@given(st.lists(st.lists(st.text(max_size=3), max_size=4).map(tuple), max_size=4))
def test_expanding_and_collecting_keep_order_and_number(asked: list[tuple[str, ...]]) -> None:
    requests = [ScoreRequest(Problem(str(n)), path) for n, path in enumerate(asked)]
    wide = whole_answers(requests)
    assert [r.problem.question for r in wide] == [
        r.problem.question for r in requests for _ in r.steps
    ]
    results = [ScoreResult((StepScore(0.5),), 1, (len(r.steps[0]),)) for r in wide]
    together = step_results(requests, results)
    assert [len(r.scores) for r in together] == [len(r.steps) for r in requests]


def test_a_scorer_without_a_name_needs_one() -> None:
    nameless = ScriptedScorer(by_length, identity="")
    with pytest.raises(ConfigError, match="identity"):
        OutcomeScorer(nameless)
    assert OutcomeScorer(nameless, identity="mine").identity == "mine/orm"
