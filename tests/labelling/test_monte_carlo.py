"""The labelling recipe on a policy whose true step values are known."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.labelling.scripted import LENGTH, SlippingPolicy, is_right, task
from vprm_search.errors import InputError, RecordError
from vprm_search.labelling.monte_carlo import LabelConfig, label_problems
from vprm_search.labelling.records import ProblemRecord, read_records
from vprm_search.testing import ScriptedPolicy
from vprm_search.types import Proposal, ProposeRequest

CONFIG = LabelConfig(solutions=4, continuations=16, seed=3)


async def labelled(path: Path, policy: SlippingPolicy, count: int = 5, **changes: object) -> None:
    tasks = [task(i) for i in range(count)]
    config = CONFIG.model_copy(update=changes)
    await label_problems(tasks, policy, is_right, path, config, batch_size=2)


async def test_scores_have_the_known_mean(tmp_path: Path) -> None:
    slip = 0.2
    await labelled(tmp_path / "r.jsonl", SlippingPolicy(slip), count=60)
    by_depth: dict[int, list[float]] = {}
    for record in read_records(tmp_path / "r.jsonl"):
        for solution in record.solutions:
            for depth, label in enumerate(solution.steps, start=1):
                slipped = any("slip" in s.step for s in solution.steps[:depth])
                if slipped:
                    assert label.score == 0.0
                elif depth < LENGTH:
                    assert label.total == 16
                    assert label.score == label.correct / 16
                    by_depth.setdefault(depth, []).append(label.correct / 16)
                else:
                    assert label.score == 1.0
    for depth, scores in by_depth.items():
        chance = (1 - slip) ** (LENGTH - depth)
        # Distinct solutions of a problem share prefixes, so count problems, not solutions: 60.
        error = 5 * (chance * (1 - chance) / (16 * 60)) ** 0.5
        assert sum(scores) / len(scores) == pytest.approx(chance, abs=error + 0.02)


async def test_each_distinct_prefix_is_continued_once(tmp_path: Path) -> None:
    policy = SlippingPolicy(0.3)
    await labelled(tmp_path / "r.jsonl", policy, count=6)
    asked = [(r.problem.question, r.steps) for r in policy.asked]
    assert len(asked) == len(set(asked))
    wanted = {
        (record.question, tuple(label.step for label in solution.steps[:depth]))
        for record in read_records(tmp_path / "r.jsonl")
        for solution in record.solutions
        for depth in range(1, LENGTH)  # the end of an ended solution is its own label
    }
    assert set(asked) == wanted | {(f"question {i}", ()) for i in range(6)}
    assert all(len(r.seeds) == (16 if r.steps else 4) for r in policy.asked)
    assert all(r.until == "end" for r in policy.asked)


async def test_a_cut_solution_is_continued_to_its_last_step(tmp_path: Path) -> None:
    solver, finisher = SlippingPolicy(0.0, cut=True), SlippingPolicy(0.0)
    await label_problems(
        [task(0)], solver, is_right, tmp_path / "r.jsonl", CONFIG, continuation_policy=finisher
    )
    (record,) = read_records(tmp_path / "r.jsonl")
    (solution,) = record.solutions
    assert (solution.finish, solution.correct, solution.copies) == ("length", False, 4)
    assert [label.score for label in solution.steps] == [1.0, 1.0, 1.0]
    assert len(finisher.asked) == 3


async def test_early_stop_asks_nothing_after_a_dead_step(tmp_path: Path) -> None:
    policy = SlippingPolicy(0.4)
    await labelled(tmp_path / "r.jsonl", policy, count=20, early_stop=True)
    assert not [r for r in policy.asked if any("slip" in s for s in r.steps[:-1])]
    for record in read_records(tmp_path / "r.jsonl"):
        for solution in record.solutions:
            dead = False
            for label in solution.steps:
                if dead:
                    assert (label.score, label.total) == (0.0, 0)
                dead = dead or label.score == 0.0


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    """The file of a run that was never cut, and that of its settings."""
    folder = tmp_path_factory.mktemp("whole")
    asyncio.run(labelled(folder / "whole.jsonl", SlippingPolicy(0.3)))
    names = ("whole.jsonl", "whole.settings.json")
    return tuple((folder / name).read_bytes() for name in names)  # type: ignore[return-value]


@given(cut=st.integers(min_value=0, max_value=4000))
@settings(max_examples=60)
async def test_a_cut_run_continues_to_the_same_file(
    cut: int, whole_run: tuple[bytes, bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("resume")
    whole, told = whole_run
    (folder / "cut.jsonl").write_bytes(whole[: cut % (len(whole) + 1)])
    (folder / "cut.settings.json").write_bytes(told)
    await labelled(folder / "cut.jsonl", SlippingPolicy(0.3))
    assert (folder / "cut.jsonl").read_bytes() == whole


async def test_a_finished_run_asks_nothing(tmp_path: Path) -> None:
    await labelled(tmp_path / "r.jsonl", SlippingPolicy(0.3))
    idle = SlippingPolicy(0.3)
    await labelled(tmp_path / "r.jsonl", idle)
    assert idle.asked == []


async def test_a_crash_loses_only_the_running_batch(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with pytest.raises(ConnectionError):
        await labelled(path, SlippingPolicy(0.3, dead_after=25))
    ids = [record.id for record in read_records(path)]
    assert 0 < len(ids) < 5
    await labelled(path, SlippingPolicy(0.3))
    assert [record.id for record in read_records(path)] == [f"p{i}" for i in range(5)]


async def test_the_batch_size_changes_nothing(tmp_path: Path) -> None:
    tasks = [task(i) for i in range(7)]
    for size in (1, 3, 7):
        out = tmp_path / f"{size}.jsonl"
        await label_problems(tasks, SlippingPolicy(0.3), is_right, out, CONFIG, batch_size=size)
    assert (tmp_path / "1.jsonl").read_bytes() == (tmp_path / "7.jsonl").read_bytes()
    assert (tmp_path / "1.jsonl").read_bytes() == (tmp_path / "3.jsonl").read_bytes()


async def test_other_settings_are_refused(tmp_path: Path) -> None:
    await labelled(tmp_path / "r.jsonl", SlippingPolicy(0.3))
    with pytest.raises(RecordError, match="other settings"):
        await labelled(tmp_path / "r.jsonl", SlippingPolicy(0.3), continuations=8)


async def test_two_tasks_with_one_id_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="p1"):
        await label_problems(
            [task(1), task(1)], SlippingPolicy(0.3), is_right, tmp_path / "r.jsonl", CONFIG
        )


def loses(request: ProposeRequest, seed: int) -> Proposal:
    """Lose every second child, and every continuation of "s2"."""
    if request.seeds.index(seed) % 2 or len(request.steps) == 2:
        return Proposal("", "error", error="gone")
    return SlippingPolicy(0.0).proposal(request, seed)


async def test_lost_samples_are_counted_and_never_become_a_score(tmp_path: Path) -> None:
    await label_problems([task(0)], ScriptedPolicy(loses), is_right, tmp_path / "r.jsonl", CONFIG)
    (record,) = read_records(tmp_path / "r.jsonl")
    assert record.failed == 2
    (solution,) = record.solutions
    assert [(s.score, s.total) for s in solution.steps] == [(1.0, 8), (None, 0), (1.0, 8), (1.0, 0)]


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps({"id": "x"}) + "\n")
    with pytest.raises(RecordError, match="line 1"):
        list(read_records(path))


def test_record_lines_hold_any_text() -> None:
    line = ProblemRecord("a", "q\u2028\x85\n", ("d",), "é", 4, (), 1).to_line()
    assert line.count("\n") == 1
    assert ProblemRecord.from_line(line).question == "q\u2028\x85\n"
