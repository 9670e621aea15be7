"""Records go to JSON and back unchanged; damage is a typed error."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vprm_search.errors import MissingDependencyError, RecordError
from vprm_search.types import Candidate, Problem, ScoreResult, SearchResult, Usage

problems = st.builds(Problem, st.text(), st.lists(st.text(max_size=4)).map(tuple), st.text())
scores = st.none() | st.floats(0, 1)
candidates = st.builds(
    Candidate,
    node=st.text(max_size=3),
    steps=st.lists(st.text(max_size=3), max_size=3).map(tuple),
    step_scores=st.lists(scores, max_size=3).map(tuple),
    status=st.sampled_from(["finished", "truncated"]),
    answer=st.none() | st.text(max_size=3),
    score=scores,
    votes=st.floats(0, 9),
)
usages = st.builds(Usage, candidates=st.integers(0, 9), seconds=st.floats(0, 9))
results = st.builds(
    SearchResult,
    answer=st.none() | st.text(max_size=3),
    text=st.text(max_size=3),
    score=scores,
    node=st.none() | st.text(max_size=3),
    ended_by=st.text(max_size=3),
    fallback=st.booleans(),
    candidates=st.lists(candidates, max_size=2).map(tuple),
    usage=usages,
)


@given(problems | candidates | usages | results)
def test_a_record_comes_back_unchanged(record: Problem | Candidate | Usage | SearchResult) -> None:
    data = json.loads(json.dumps(record.to_json()))
    assert type(record).from_json(data) == record


@pytest.mark.parametrize("kind", [Problem, Candidate, SearchResult, Usage])
def test_another_shape_is_refused(
    kind: type[Problem] | type[Candidate] | type[SearchResult] | type[Usage],
) -> None:
    shapes: list[Any] = [
        {"colour": 1},
        [],
        7,
        None,
        "text",
        {"steps": 5, "images": 5, "candidates": 5},
    ]
    for data in shapes:
        with pytest.raises(RecordError):
            kind.from_json(data)


def test_a_failed_result_says_why_for_every_step() -> None:
    result = ScoreResult.failed(3, "nan")
    assert [(s.value, s.reason) for s in result.scores] == [(None, "nan")] * 3
    assert result.step_tokens == (0, 0, 0)


def test_a_missing_package_says_how_to_get_it() -> None:
    error = MissingDependencyError("torch", "local")
    assert (error.package, error.extra) == ("torch", "local")
    assert "pip install 'vprm-search[local]'" in str(error)
