"""The three formats, what is wrong with records, and runs that are cut."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from vprm_search.bench.labelled_solutions import (
    EMPTY_STEP,
    NO_PICTURE,
    PAST_END,
    UNEVEN,
    StepBenchmark,
    read_step_benchmark,
)
from vprm_search.bench.scoring_run import ScoreFile, score_benchmark
from vprm_search.errors import ImageError, RecordError, ScorerError
from vprm_search.testing import ScriptedScorer
from vprm_search.tiny.world import generate, render


def visual(steps: list[str], labels: list[int], **others: Any) -> dict[str, Any]:
    return {
        "image": [], "question": "q", "answer": "1", "policy_model": "p", "data_source": "s",
        "response": {"steps": steps, "process_correctness": labels}, **others,
    }  # fmt: skip


def lines(path: Path, *records: dict[str, Any]) -> Path:
    file = path / "test.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


def test_steps_are_taken_as_they_are_given(tmp_path: Path) -> None:
    steps = [f"{n}\n\nwith a blank line" for n in range(20)]
    file = lines(tmp_path, visual(steps, [1, 0, -1, 1] * 5, question="see <image 1>"))
    benchmark = read_step_benchmark(file, "visualprocessbench")
    benchmark.check()
    (read,) = benchmark.solutions
    assert benchmark.request(read).steps == tuple(steps)
    assert benchmark.request(read).problem.question == "see <image 1>"
    assert read.first_error == 2
    assert (read.source, read.policy) == ("s", "p")


def test_defects_are_named_and_counted(tmp_path: Path) -> None:
    file = lines(
        tmp_path,
        visual(["a", " "], [1, 1]),
        visual(["a"], [1, -1]),
        visual(["a"], [1], image=["images/s/1.png"]),
        visual(["a"], [1]),
    )
    benchmark = read_step_benchmark(file, "visualprocessbench")
    assert benchmark.defects == Counter({EMPTY_STEP: 1, UNEVEN: 1, NO_PICTURE: 1})
    assert [solution.usable for solution in benchmark.solutions] == [True, False, False, True]
    with pytest.raises(RecordError, match=r"2 of 4 cannot be measured .* the first in row 2 \(oth"):
        benchmark.check()
    root = tmp_path / "elsewhere"
    (root / "images" / "s").mkdir(parents=True)
    render(generate("tiles", "test", 0)).save(root / "images" / "s" / "1.png")
    found = read_step_benchmark(file, "visualprocessbench", image_root=root)
    assert found.defects[NO_PICTURE] == 0
    assert len(found.request(found.solutions[2]).images) == 1


@pytest.mark.parametrize(
    ("name", "record", "message"),
    [
        ("visualprocessbench", {"question": "q"}, "row 1, column response: expected an object"),
        ("visualprocessbench", visual(["a"], ["yes"]), "process_correctness: expected 1, 0 and -1"),  # type: ignore[list-item]
        ("visualprocessbench", visual(["a"], [2]), "expected 1, 0 and -1"),
        ("visualprocessbench", visual("ab", [1]), "response.steps: expected a list"),  # type: ignore[arg-type]
        ("processbench", {"problem": "q", "steps": ["a"]}, "column label: expected the place"),
        ("processbench", {"steps": ["a"], "label": -1}, "column problem: expected a text"),
        ("prmbench", {"error_steps": [0]}, "column error_steps: expected numbers of steps"),
    ],
)
def test_a_record_of_another_kind(
    name: Any, record: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(RecordError, match=message):
        read_step_benchmark(lines(tmp_path, record), name)


def test_processbench_counts_from_0_and_prmbench_from_1(tmp_path: Path) -> None:
    process = {"id": "gsm8k-7", "problem": "q", "steps": ["a", "b", "c"], "generator": "g"}
    file = lines(
        tmp_path, {**process, "label": 1}, {**process, "label": -1}, {**process, "label": 3}
    )
    first, none, past = read_step_benchmark(file, "processbench").solutions
    assert (first.labels, first.source, first.policy) == ((1, -1, 0), "gsm8k", "g")
    assert none.labels == (1, 1, 1)
    assert past.defects == (PAST_END,)
    modified = {"modified_question": "q", "modified_process": ["a", "b", "c"], "idx": "x"}
    file = lines(
        tmp_path,
        {**modified, "error_steps": [2, 3], "classification": "domain_inconsistency"},
        {**modified, "error_steps": [4], "classification": "domain_inconsistency"},
        {
            **modified, "error_steps": [2], "classification": "redundency",
            "original_process": ["a", "c"], "original_question": "q",
        },
    )  # fmt: skip
    wrong, past, redundant, original = read_step_benchmark(file, "prmbench").solutions
    assert wrong.labels == (1, -1, -1)
    assert past.defects == (PAST_END,)
    assert (redundant.labels, original.labels) == ((1, -1, 1), (1, 1))
    assert len(read_step_benchmark(file, "prmbench", limit=1).solutions) == 1


def test_nothing_is_fetched_and_a_missing_folder_is_told(tmp_path: Path) -> None:
    file = lines(tmp_path, visual(["a"], [1], image=["https://example.org/a.png"]))
    with pytest.raises(ImageError, match="looks like a URL"):
        read_step_benchmark(file, "visualprocessbench")
    with pytest.raises(ImageError, match="no such folder"):
        read_step_benchmark(file, "visualprocessbench", image_root=tmp_path / "nowhere")


def test_the_published_records(shared_data: Path, tmp_path: Path) -> None:
    packed = gzip.decompress((shared_data / "visualprocessbench_dev.jsonl.gz").read_bytes())
    (tmp_path / "test.jsonl").write_bytes(packed)
    found = read_step_benchmark(tmp_path / "test.jsonl", "visualprocessbench").solutions
    labels = Counter(label for solution in found for label in solution.labels)
    assert (len(found), labels) == (10, Counter({1: 65, 0: 12, -1: 19}))
    assert all(solution.defects == (NO_PICTURE,) for solution in found)
    assert any("\n\n" in step for solution in found for step in solution.steps)
    wrong = [s.labels for s in found if -1 in s.labels]
    assert sum(1 in labels[labels.index(-1) :] for labels in wrong) == 3  # labels are of the step
    prm = read_step_benchmark(shared_data / "samples" / "prmbench.jsonl", "prmbench").solutions
    assert sum(PAST_END in solution.defects for solution in prm) == 4
    assert all(1 in s.labels and -1 not in s.labels for s in prm if s.source == "multi_solutions")


# --- runs that are cut ---------------------------------------------------------------------------


def told(request: Any) -> float:
    return 0.9 if request.steps[-1] == "good" else 0.2


def some(path: Path) -> StepBenchmark:
    records = [visual(["good", "bad"][: 1 + n % 2], [1, -1][: 1 + n % 2], question=f"q{n}")
               for n in range(7)]  # fmt: skip
    return read_step_benchmark(lines(path, *records), "visualprocessbench")


async def test_a_killed_run_goes_on_where_it_was(tmp_path: Path) -> None:
    benchmark = some(tmp_path)
    path = tmp_path / "scores.jsonl"
    whole = await score_benchmark(
        benchmark, benchmark.solutions, ScriptedScorer(told), ScoreFile(path, "s"), batch=2
    )
    assert whole[1] == (0.9, 0.2)
    data = path.read_bytes()
    for cut in (0, 1, len(data) // 3, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:cut])
        kept = data[:cut].count(b"\n")
        scorer = ScriptedScorer(told)
        again = await score_benchmark(
            benchmark, benchmark.solutions, scorer, ScoreFile(path, "s"), batch=2
        )
        assert again == whole
        assert len(scorer.asked) == len(benchmark.solutions) - kept
        assert len(path.read_bytes().splitlines()) == len(benchmark.solutions)


async def test_what_was_scored_before_an_error_is_kept(tmp_path: Path) -> None:
    benchmark = some(tmp_path)
    file = ScoreFile(tmp_path / "scores.jsonl", "s")
    dying = ScriptedScorer(told, rounds={3: ScorerError("gone")})
    with pytest.raises(ScorerError):
        await score_benchmark(benchmark, benchmark.solutions, dying, file, batch=2)
    assert len(ScoreFile(tmp_path / "scores.jsonl", "s").known) == 4


async def test_unscored_steps_are_kept_with_their_reason(tmp_path: Path) -> None:
    benchmark = some(tmp_path)
    file = ScoreFile(tmp_path / "scores.jsonl", "s")
    failing = ScriptedScorer(told, rounds={1: "too long"})
    scores = await score_benchmark(benchmark, benchmark.solutions, failing, file, batch=7)
    assert scores[0] == (None,)
    assert file.reasons == {"too long": 7}


def test_scores_of_another_scorer_and_damaged_lines_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    path.write_text('{"key": "a", "scorer": "one", "scores": [], "reasons": []}\n')
    with pytest.raises(RecordError, match=r"line 1: scores of another scorer \(one\)"):
        ScoreFile(path, "two")
    path.write_text("[]\n")
    with pytest.raises(RecordError, match="line 1: not scores"):
        ScoreFile(path, "two")
