"""VL-RewardBench: records in its form (made up), and its figures by plain counting."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vprm_search.bench.labelled_solutions import (
    NO_PICTURE,
    LabelledSteps,
    StepBenchmark,
    read_step_benchmark,
)
from vprm_search.bench.preferences import report_pairs, summarise_pairs
from vprm_search.errors import ConfigError, RecordError


def record(own: str, folder: str, **told: object) -> dict[str, object]:
    return {
        "id": own,
        "image_path": f"images/{folder}/{own}.jpg",
        "query": "What is on the plate?\n<image>",
        "response": ["A piece of chicken.\n\nIt is roasted.", "A slice of turkey."],
        "human_ranking": [0, 1],
        "models": ["gpt", "gpt"],
        "judge": "human",
        **told,
    }


RECORDS = (
    record("hallucination_pair-1", "povid"),
    record("RLAIF-V-2", "rlaif-v", human_ranking=[1, 0]),
    record("wildvision-battle-3", "wildvision-battle"),
    record("mmmu_pro_test_Art_35", "reasoning_tasks"),
    record("LRVInstruction-4", "vlfeedback"),
)


def read(path: Path, *records: dict[str, object]) -> StepBenchmark:
    file = path / "data.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in records))
    return read_step_benchmark(file, "vlrewardbench")


def test_the_preferred_response_comes_first_in_its_group(tmp_path: Path) -> None:
    found = read(tmp_path, *RECORDS).solutions
    assert [solution.id.rpartition("/")[2] for solution in found] == list("0110010101")
    groups = ["hallucination", "hallucination", "general", "reasoning", "general"]
    assert [solution.source for solution in found] == [name for name in groups for _ in range(2)]
    assert found[0].steps == ("A piece of chicken.", "It is roasted.")
    assert found[1].steps == ("A slice of turkey.",)
    assert found[2].steps == found[1].steps
    assert all(solution.defects == (NO_PICTURE,) for solution in found)


def test_the_group_is_told_by_the_id_where_the_picture_has_no_path(tmp_path: Path) -> None:
    bare = [{**one, "image_path": None, "image": None} for one in RECORDS]
    with_paths, without = read(tmp_path, *RECORDS), read(tmp_path, *bare)
    assert [s.source for s in with_paths.solutions] == [s.source for s in without.solutions]


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"response": ["one"]}, "row 1, column response: expected two texts"),
        ({"human_ranking": [0, 0]}, "row 1, column human_ranking: expected 0 and 1"),
        ({"query": ""}, "row 1, column query: expected a text"),
        ({"image_path": 7}, "row 1, column image_path: a picture is"),
    ],
)
def test_damaged_records_are_named(told: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=message):
        read(tmp_path, record("a-1", "povid", **told))


def pair(row: int, group: str, question: str = "q") -> list[LabelledSteps]:
    return [
        LabelledSteps(row, f"{row}/{n}", question, (f"a step {n}",), (0,), group) for n in (0, 1)
    ]


SCORE = st.sampled_from((0.1, 0.5, 0.9, None))


@given(st.lists(st.tuples(st.sampled_from("abc"), SCORE, SCORE), min_size=1, max_size=20))
def test_figures_are_those_of_plain_counting(
    drawn: list[tuple[str, float | None, float | None]],
) -> None:
    solutions = [one for row, (group, *_) in enumerate(drawn) for one in pair(row, group, str(row))]
    scores = [(value,) for _, *both in drawn for value in both]
    told = summarise_pairs(solutions, scores, resamples=20)

    def right(one: float | None, other: float | None) -> float:
        if one is None or other is None:
            return 0.0
        return (one > other) + (one == other) / 2

    rights = [(group, right(one, other)) for group, one, other in drawn]
    groups = sorted({group for group, _ in rights})
    each = [[r for group, r in rights if group == name] for name in groups]
    for found in told["measured"]:  # one step: all aggregations are alike
        assert found["groups"] == pytest.approx([sum(x) / len(x) for x in each])
        assert found["overall"] == pytest.approx(sum(r for _, r in rights) / len(rights))
        assert found["macro"] == pytest.approx(sum(sum(x) / len(x) for x in each) / len(each))
        assert found["ties"] == sum(one == other and one is not None for _, one, other in drawn)
        assert found["unscored"] == sum(None in both for _, *both in drawn)
        low, high = found["interval"]
        assert 0 <= low <= high <= 1
    assert told["groups"] == {name: len(x) for name, x in zip(groups, each, strict=True)}
    assert told["baselines"]["the longer response"]["overall"] == 0.5  # equally long, all of them


def test_a_constant_scorer_is_right_half_the_time_whoever_stands_first() -> None:
    solutions = [one for row in range(10) for one in pair(row, "general")]
    told = summarise_pairs(solutions, [(0.7,)] * 20, resamples=20)
    assert told["measured"][0]["overall"] == 0.5
    assert told["measured"][0]["ties"] == 10


def test_half_of_a_pair_is_no_pair() -> None:
    whole = pair(1, "general")
    told = summarise_pairs([*whole, pair(2, "general")[0]], [(0.9,), (0.1,), (0.5,)], resamples=20)
    assert told["pairs"] == 1
    with pytest.raises(ConfigError, match="no pair of responses"):
        summarise_pairs(whole[:1], [(0.9,)])


def test_the_report() -> None:
    solutions = pair(1, "general") + pair(2, "reasoning")
    told = summarise_pairs(solutions, [(0.9,), (0.1,), (None,), (0.5,)], resamples=20)
    text = report_pairs(
        {**told, "defects": {NO_PICTURE: 1}, "left_out": 2, "reasons": {"too long": 1}}, "mine"
    )
    assert "| prefers | general (1) | reasoning (1) | Overall | Macro | ties |" in text
    assert "| **mine**, mean of the steps | 100.0 | 0.0 | 50.0 [" in text
    assert "left out for it: 2 responses" in text
    assert "count as wrong: 1 (too long (1))" in text
