"""The records of a comparison: trees in few bytes, files cut anywhere, several writers."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.core.trees import record_lists, tree_from
from vprm_search.compare.entrants import ENTRANTS, SEARCH_CHOICES
from vprm_search.compare.worlds import WORLDS, SyntheticProblems, WorldSettings
from vprm_search.errors import RecordError
from vprm_search.evaluate.cells import cell_path
from vprm_search.evaluate.folder import write_atomically
from vprm_search.evaluate.search_records import (
    Choice,
    Failures,
    Record,
    RecordFile,
    chosen,
    pack,
    unpack,
)
from vprm_search.graph.loop import Job
from vprm_search.graph.parts import SearchRules
from vprm_search.graph.run import SearchRun, run_jobs
from vprm_search.ids import child_id, child_seed
from vprm_search.search import BestScore
from vprm_search.tree import SearchTree
from vprm_search.types import NodeRecord, Problem, Usage

WORLD = SyntheticProblems(WorldSettings(depth=4, p_step=0.8, auc=0.85, words=6), 3)


def searched(name: str, size: int, world: SyntheticProblems = WORLD) -> list[SearchRun]:
    loaded = world.load(0, world.problems)
    jobs = [Job(SearchTree(task.problem, 7)) for task in loaded.tasks]
    rules = SearchRules(ENTRANTS[name].make(size), BestScore())
    return asyncio.run(run_jobs(jobs, loaded.policy, loaded.new_scorer(), rules))


def bare(tree: SearchTree) -> str:
    """A tree without what a packed one leaves out: path scores, which follow from the scores."""
    copy = SearchTree(tree.problem, tree.run_seed)
    copy.merge(replace(record, path_scores={}) for record in tree)
    return copy.dumps()


# --- packed trees --------------------------------------------------------------------------------


@pytest.mark.slow
@given(record_lists)
@settings(max_examples=150, deadline=None)
def test_a_packed_tree_is_the_tree(records: list[NodeRecord]) -> None:
    tree = tree_from(records)
    try:
        tree.check()
    except RecordError:
        return  # such as no search leaves behind
    assert bare(unpack(pack(tree))) == bare(tree)


@pytest.mark.parametrize("name", ENTRANTS)
def test_every_strategy_s_tree_is_packed_small_and_whole(name: str) -> None:
    for run in searched(name, 8):
        text = pack(run.tree)
        again = unpack(text)
        assert bare(again) == bare(run.tree)
        assert len(text) < len(run.tree.dumps()) / 3
        for choice in (*SEARCH_CHOICES, "majority", "hybrid:product", "knockout:product"):
            assert chosen(again, choice, "1") == chosen(run.tree, choice, "1")
        for record in run.tree:
            for aggregate, score in record.path_scores.items():
                assert again.path_score(record.id, aggregate) == score


@pytest.mark.parametrize("text", ["", "?", "AAAA", "eJw=", pack(SearchTree(Problem("?")))[:-8]])
def test_a_damaged_packed_tree_is_named(text: str) -> None:
    with pytest.raises(RecordError, match="not a packed tree"):
        unpack(text)


# --- the file ------------------------------------------------------------------------------------


def record_of(run: SearchRun, problem: int, name: str = "beam", size: int = 4) -> Record:
    tree = run.tree
    return Record(
        problem=problem,
        name=name,
        size=size,
        strategy={"strategy": "BeamSearch"},
        root=tree.root_id,
        expected="ä | 1",
        budget=320,
        ended_by=run.result.ended_by,
        finished=len(tree.finished()),
        seconds=0.25,
        usage=tree.totals,
        failures=Failures.of(tree),
        choices={"majority": chosen(tree, "majority", "1")},
    )


RUNS = searched("beam", 4)


def written(out: Path, problems: Sequence[int]) -> list[Record]:
    file, records = RecordFile(out), []
    for problem in problems:
        run = RUNS[problem % len(RUNS)]
        records.append(record_of(run, problem))
        file.append(records[-1], run.tree)
    return records


def test_records_are_read_as_they_were_written_in_any_order(tmp_path: Path) -> None:
    records = written(tmp_path, [5, 0, 3])
    for file in (RecordFile(tmp_path), RecordFile(tmp_path)):
        assert list(file) == records
        for record in records:
            tree = file.tree(record)
            assert tree is not None
            assert bare(tree) == bare(RUNS[record.problem % len(RUNS)].tree)
            assert file.choice(record, "majority") == record.choices["majority"]
            assert file.choice(record, "best-score:min") == chosen(tree, "best-score:min", "ä | 1")
    lines = (tmp_path / "records.jsonl").read_text().splitlines()
    assert [json.loads(line)["problem"] for line in lines] == [5, 0, 3]


@given(cut=st.integers(0, 10**6))
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@example(cut=0)
def test_a_file_cut_anywhere_keeps_its_whole_lines(
    cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    out = tmp_path_factory.mktemp("cut")
    records = written(out, [0, 1, 2, 3])
    path = out / "records.jsonl"
    data = path.read_bytes()
    path.write_bytes(data[: cut % (len(data) + 1)])
    whole = path.read_bytes().count(b"\n")
    assert list(RecordFile(out)) == records[:whole]
    more = written(out, [7, 8])
    file = RecordFile(out)
    assert list(file) == [*records[:whole], *more]
    assert all(file.tree(record) is not None for record in file)


def test_the_last_line_of_a_search_counts(tmp_path: Path) -> None:
    file = RecordFile(tmp_path)
    record = record_of(RUNS[0], 0)
    lost = replace(record, failures=Failures(4, 4, 0, 0, {"HTTP 500": 4}, 1.0))
    file.append(lost, RUNS[1].tree)
    assert file.failures("beam", 4).share == 1
    file.append(record, RUNS[0].tree)
    for known in (file, RecordFile(tmp_path)):
        assert list(known) == [record]
        tree = known.tree(record)
        assert tree is not None
        assert bare(tree) == bare(RUNS[0].tree)


def _append_many(out: Path, first: int) -> None:
    written(out, range(first, first + 40))


@pytest.mark.slow
def test_several_processes_append_to_one_file(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_append_many, args=(tmp_path, 100 * k)) for k in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    file = RecordFile(tmp_path)
    wanted = {100 * k + place for k in range(3) for place in range(40)}
    assert {record.problem for record in file} == wanted
    assert all(file.tree(record) is not None for record in file)


# --- cells ---------------------------------------------------------------------------------------


def cell(problems: int, right: int) -> dict[str, Any]:
    counts = (
        "budget",
        "generated_tokens",
        "scored_tokens",
        "computed_tokens",
        "rounds",
        "finished",
    )
    row: dict[str, Any] = {name: [place + 10 for place in range(problems)] for name in counts}
    facts = {"name": "beam", "size": 4, "strategy": {"strategy": "BeamSearch"}, "seconds": 2.0}
    return (
        facts | row | {"cut": [0, 1] * (problems // 2), "right": {"majority": [right] * problems}}
    )


def test_cells_are_records_without_trees_and_a_record_is_newer(tmp_path: Path) -> None:
    write_atomically(cell_path(tmp_path, 6, 10, "beam", 4), json.dumps(cell(4, 0)))
    file = RecordFile(tmp_path)
    assert [record.problem for record in file] == [6, 7, 8, 9]
    old = file.get(7, "beam", 4)
    assert old is not None
    assert (old.cost["budget"], old.cost["cut"], old.seconds) == (11, True, 0.5)
    assert old.choices == {"majority": Choice(right=False)}
    assert file.tree(old) is None
    assert file.choice(old, "best-score:mean") is None
    record = record_of(RUNS[0], 7)
    file.append(record, RUNS[0].tree)
    assert RecordFile(tmp_path).get(7, "beam", 4) == record
    assert len(list(RecordFile(tmp_path))) == 4


# --- failed calls --------------------------------------------------------------------------------


def tree_with(*records: NodeRecord) -> SearchTree:
    tree = SearchTree(Problem("?"))
    for index, record in enumerate(records):
        node = child_id(tree.root_id, index, record.text)
        seed = child_seed(tree.root_id, index)
        tree.merge([replace(record, id=node, parent=tree.root_id, index=index, seed=seed)])
    return tree


def failed(reason: str, cause: Any = "failed") -> NodeRecord:
    return NodeRecord("", None, 0, status="failed", reason=reason, cause=cause)


def step(text: str, score: float | None, reason: str = "") -> NodeRecord:
    return NodeRecord("", None, 0, text, score=score, score_reason=reason)


def test_failed_calls_are_those_without_a_reply_and_steps_without_a_score() -> None:
    found = Failures.of(
        tree_with(
            failed("HTTP 500: id 17"),
            failed("HTTP 500: id 18"),
            failed("TimeoutError: no reply"),
            failed("empty step", "unusable"),
            failed("cut by budget: 3 s", "budget"),
            step("a", 0.5),
            step("b", None, "no_server: gone"),
            step("c", None, "no_server: gone"),
        )
    )
    assert (found.lost, found.candidates) == (3, 7)
    assert (found.unscored, found.steps) == (2, 3)
    assert found.share == pytest.approx(2 / 3)
    assert found.errors == {
        "HTTP 500: id 17": 2,
        "no_server: gone; check that the scoring server runs, and its address": 2,
        "TimeoutError: no reply": 1,
    }
    assert found.most_frequent == "HTTP 500: id 17"
    assert str(found) == "3 of 7 calls to the policy failed and 2 of 3 steps got no score"
    assert str(Failures()) == "no call failed"
    assert Failures.sum([]).share == 0


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=6))
def test_failures_add_up(parts: list[tuple[int, int]]) -> None:
    each = [Failures(lost + more, lost, 9, 0, {f"HTTP {lost}": lost}) for lost, more in parts]
    total = Failures.sum(each)
    assert total.lost == sum(lost for lost, _ in parts)
    assert total.candidates == sum(sum(part) for part in parts)
    assert sum(total.errors.values()) == total.lost  # they differ in a number only


def test_the_share_of_many_searches_is_their_mean() -> None:
    few = Failures.of(tree_with(failed("gone")))
    many = Failures.of(tree_with(*[step(str(place), 0.5) for place in range(9)]))
    assert (few.share, many.share) == (1.0, 0.0)
    assert Failures.sum([few, many]).share == 0.5  # though one of ten calls failed


def test_a_search_that_went_well_has_no_failures() -> None:
    for name in ("best-of-n", "rebase", "lookahead-beam", "mcts", "cascade-beam"):
        for run in searched(name, 8, SyntheticProblems(WORLDS["easy"], 2)):
            found = Failures.of(run.tree)
            assert (found.lost, found.unscored) == (0, 0)
            assert found.candidates == run.tree.totals.candidates
            assert found.steps > 0


def test_usage_is_kept_to_the_token(tmp_path: Path) -> None:
    (record,) = written(tmp_path, [0])
    assert isinstance(record.usage, Usage)
    (again,) = RecordFile(tmp_path)
    assert again.usage == RUNS[0].tree.totals
