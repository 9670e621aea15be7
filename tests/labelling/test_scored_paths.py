"""Scored paths: lines that come back, bad lines that are told, and paths made of label records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vprm_search.errors import RecordError
from vprm_search.labelling.records import (
    LabelledSolution,
    ProblemRecord,
    ScoredPath,
    ScoredStep,
    StepLabel,
    by_policy,
    path_points,
    read_scored_paths,
    score_records,
    step_points,
    write_scored_paths,
)
from vprm_search.testing import ScriptedScorer
from vprm_search.types import ImageData

words = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
labels = st.none() | st.booleans()
scored = st.builds(
    ScoredPath,
    words,
    words,
    words,
    st.lists(st.builds(ScoredStep, words, st.none() | st.floats(0, 1), labels), max_size=4).map(
        tuple
    ),
    labels,
)


@given(st.lists(scored, max_size=5))
def test_paths_come_back_from_their_file(
    tmp_path_factory: pytest.TempPathFactory, paths: list[ScoredPath]
) -> None:
    file = tmp_path_factory.mktemp("paths") / "paths.jsonl"
    assert write_scored_paths(file, paths) == len(paths)
    assert list(read_scored_paths(file)) == paths
    assert [p.name for p in file.parent.iterdir()] == ["paths.jsonl"]


GOOD: dict[str, Any] = {
    "problem": "p",
    "policy": "m",
    "scorer": "s",
    "steps": [{"step": "a", "score": 0.5, "label": True}],
    "correct": None,
}
STEP = GOOD["steps"][0]
BAD = ["", "[]", "{}", "[" * 50_000, json.dumps({**GOOD, "steps": None})]
BAD += [json.dumps({**GOOD, "steps": [{**STEP, **bad}]}) for bad in (
    {"score": 1.5}, {"score": "1"}, {"score": True}, {"label": 1}, {"label": "+"}, {"step": 3}
)]  # fmt: skip
BAD += [json.dumps({**GOOD, "problem": 7}), json.dumps({**GOOD, "correct": 1})]
BAD += [json.dumps(GOOD).replace("0.5", "NaN")]


@pytest.mark.parametrize("line", BAD, ids=range(len(BAD)))
def test_a_bad_line_is_told_with_its_number(line: str, tmp_path: Path) -> None:
    file = tmp_path / "paths.jsonl"
    file.write_text(json.dumps(GOOD) + "\n" + line + "\n")
    with pytest.raises(RecordError, match=r"paths\.jsonl line 2"):
        list(read_scored_paths(file))
    with pytest.raises(RecordError, match="cannot be read"):
        list(read_scored_paths(tmp_path / "none.jsonl"))


def test_only_points_with_a_score_and_a_label_count() -> None:
    steps = (
        ScoredStep("a", 0.5, True),
        ScoredStep("b", None, True),
        ScoredStep("c", 0.25, None),
        ScoredStep("d", 0.75, False),
    )
    whole = ScoredPath("p", "m", "s", (steps[0], steps[3], steps[0]), True)
    paths = [ScoredPath("q", "m", "s", steps, True), whole]
    assert step_points(paths) == (
        [0.5, 0.75, 0.5, 0.75, 0.5],
        [True, False, True, False, True],
        ["q", "q", "p", "p", "p"],
    )
    # a repeated step counts once; a path with an unscored step has no path score
    assert path_points(paths, "product") == ([0.375], [True], ["p"])


async def test_label_records_become_scored_paths() -> None:
    image = ImageData("sha256-" + "0" * 64, b"")
    right = LabelledSolution(
        "aa\n\nbbb",
        (StepLabel("aa", 3 / 16, 3, 16), StepLabel("bbb", 1.0)),
        "stop",
        correct=True,
        copies=2,
    )
    lost = (StepLabel("c", 0.0, 0, 16), StepLabel("dd", None))
    cut = LabelledSolution("c\n\ndd", lost, "length", correct=False)
    records = [ProblemRecord(f"p{n}", "q?", (image.digest,), "7", 16, (right, cut)) for n in "ab"]
    scorer = ScriptedScorer(lambda r: len(r.steps[-1]) / 10, identity="length")
    found = score_records(records, scorer, lambda record: (image,), policy="tiny")
    paths = [path async for path in found]
    first = ScoredPath(
        "pa", "tiny", "length", (ScoredStep("aa", 0.2, True), ScoredStep("bbb", 0.3, True)), True
    )
    assert paths[:2] == [first, first]  # two samples had this text
    assert paths[2].steps == (ScoredStep("c", 0.1, False), ScoredStep("dd", 0.2, None))
    assert paths[2].correct is None
    assert [p.problem for p in paths] == ["pa"] * 3 + ["pb"] * 3
    assert all(r.images == (image,) and r.problem.question == "q?" for r in scorer.asked)
    strict = score_records(records, scorer, lambda r: (image,), policy="t", threshold=0.5)
    assert (await anext(strict)).steps[0].label is False


def test_one_policy_has_one_scorer() -> None:
    paths = [ScoredPath("p", name, scorer, ()) for name, scorer in ("as", "bt", "as")]
    assert {name: len(group) for name, group in by_policy(paths).items()} == {"a": 2, "b": 1}
    with pytest.raises(RecordError, match="two scorers"):
        by_policy([*paths, ScoredPath("p", "a", "t", ())])
