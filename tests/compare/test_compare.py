"""Comparisons on the synthetic world: equal tokens, shared samples, resumed, honest statistics."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vprm_search.budget import Budget
from vprm_search.compare.entrants import (
    ENTRANTS,
    REFERENCE,
    choice_of,
    described,
    entrants_of,
)
from vprm_search.compare.intervals import bootstrap, resampled_means
from vprm_search.compare.report import points
from vprm_search.compare.worlds import (
    LoadedWorld,
    SyntheticPolicy,
    SyntheticProblems,
    SyntheticScorer,
    SyntheticWorld,
    WorldSettings,
    is_right,
)
from vprm_search.errors import ConfigError, RecordError
from vprm_search.evaluate.cells import cell_path
from vprm_search.evaluate.folder import RunFolder, write_atomically
from vprm_search.evaluate.search_records import CUT, Key, RecordFile
from vprm_search.evaluate.search_summary import read_cells, summarise
from vprm_search.evaluate.searches import Comparison, run_comparison
from vprm_search.graph.parts import SearchRules
from vprm_search.graph.run import SearchRun, search_many
from vprm_search.search import BestScore, Strategy
from vprm_search.tree import SearchTree
from vprm_search.types import Problem, ProposeRequest, ScoreRequest, ScoreResult

SMALL = WorldSettings(depth=4, p_step=0.8, auc=0.85, words=40)
PROBLEMS = SyntheticProblems(SMALL, 6)
QUICK = Comparison(("beam", "rebase"), (4, 8), batch=4, shard=6)


def measured(
    out: Path, comparison: Comparison = QUICK, world: Any = PROBLEMS
) -> tuple[list[str], dict[Key, Any]]:
    """Run a comparison; return its progress lines and what is recorded, without times."""
    lines: list[str] = []
    run_comparison(comparison, world, out, report=lines.append)
    return lines, recorded(out)


def recorded(out: Path) -> dict[Key, Any]:
    """Return all records with their trees, without the times and what others' work changes."""
    file, found = RecordFile(out), {}
    for record in file:
        usage = replace(record.usage, seconds=0.0, rounds=0, tokens_sent=0, tokens_computed=0)
        tree = file.tree(record)
        nodes = () if tree is None else tuple(shape(tree))
        found[record.key] = (replace(record, seconds=0.0, cpu_seconds=0.0, usage=usage), nodes)
    return found


def shape(tree: SearchTree) -> Iterator[tuple[object, ...]]:
    """Yield every node with its text, score, fate and cost, but not when and how it was made."""
    for r in sorted(tree, key=lambda r: r.id):
        yield r.id, r.text, r.score, r.status, r.answer, r.seed, r.generated_tokens


# --- equal tokens ------------------------------------------------------------------------------


def searched(
    strategy: Strategy, world: SyntheticWorld, budget: int, problems: int
) -> list[SearchRun]:
    tasks = [(Problem(world.question(number)), ()) for number in range(problems)]
    rules = SearchRules(strategy, BestScore(), Budget(generated_tokens=budget))
    policy, scorer = SyntheticPolicy(world), SyntheticScorer(world)
    return asyncio.run(search_many(tasks, policy, scorer, rules))


@pytest.mark.parametrize("name", ENTRANTS)
@pytest.mark.parametrize("words", [3, 1000])
def test_no_strategy_generates_more_than_its_budget(name: str, words: int) -> None:
    world = SyntheticWorld(replace(SMALL, words=words, depth=5))
    budget = 8 * 5 * 40  # steps of one length: the estimate is exact, so is the limit
    for run in searched(ENTRANTS[name].make(8), world, budget, 4):
        assert run.tree.totals.generated_tokens <= budget
        run.tree.check()


@given(st.integers(1, 4000), st.sampled_from(sorted(ENTRANTS)))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_budget_ends_a_search_and_is_kept(budget: int, name: str) -> None:
    world = SyntheticWorld(SMALL)
    (run,) = searched(ENTRANTS[name].make(4), world, budget, 1)
    assert run.tree.totals.generated_tokens <= budget  # the policy keeps to its `max_tokens`
    if run.result.ended_by.startswith(CUT):
        assert run.tree.totals.generated_tokens > budget - 5 * 40  # room for less than one child


def test_a_budget_with_room_changes_nothing() -> None:
    world = SyntheticWorld(SMALL)
    for name in ("beam", "rebase", "dvts", "mcts"):
        free = searched(ENTRANTS[name].make(8), world, 10**9, 3)
        rules = SearchRules(ENTRANTS[name].make(8), BestScore())
        tasks = [(Problem(world.question(number)), ()) for number in range(3)]
        plain = asyncio.run(
            search_many(tasks, SyntheticPolicy(world), SyntheticScorer(world), rules)
        )
        for one, other in zip(free, plain, strict=True):  # but for a first round of one step
            assert one.tree.rounds == other.tree.rounds + 1
            assert {r.id: r.status for r in one.tree} == {r.id: r.status for r in other.tree}


# --- what is recorded --------------------------------------------------------------------------


def lines_of(out: Path) -> list[bytes]:
    return (out / "records.jsonl").read_bytes().splitlines(keepends=True)


def test_every_search_is_made_once_and_taken_up_again(tmp_path: Path) -> None:
    lines, records = measured(tmp_path)
    assert len(lines) == 6
    assert len(records) == len(lines_of(tmp_path)) == 6 * PROBLEMS.size
    assert lines[-1].startswith("[6/6]")
    again, same = measured(tmp_path)
    assert (again, same) == ([], records)
    kept = [line for line in lines_of(tmp_path) if b'"problem": 3, "name": "rebase", ' not in line]
    (tmp_path / "records.jsonl").write_bytes(b"".join(kept))
    lines, same = measured(tmp_path)
    assert len(lines_of(tmp_path)) == len(kept) + 2  # rebase at both sizes, on one problem
    assert len(lines) == 2
    assert all("rebase" in line for line in lines)
    assert same == records


def test_the_pool_of_a_size_is_the_start_of_the_pool_of_the_next(tmp_path: Path) -> None:
    _, grown = measured(tmp_path / "grown")
    _, alone = measured(tmp_path / "alone", replace(QUICK, sizes=(8,)))
    for key, record in alone.items():
        assert grown[key] == record  # though 8 came in two waves
    for problem in range(PROBLEMS.size):
        small, large = (set(grown[problem, REFERENCE, size][1]) for size in (4, 8))
        assert small < large


@pytest.mark.parametrize("first", [4, 8])
def test_sizes_and_strategies_may_be_added(tmp_path: Path, first: int) -> None:
    measured(tmp_path, replace(QUICK, entrants=("beam",), sizes=(first,)))
    before = len(lines_of(tmp_path))
    lines, records = measured(tmp_path)
    _, fresh = measured(tmp_path / "fresh")
    assert records == fresh
    # 4 after 8 makes the pool of 8 anew, so that it begins with that of 4; 8 after 4 goes on
    searches = {4: ["best-of-n@8", "rebase@4", "beam@8", "rebase@8"]}
    searches[8] = ["best-of-n@4", "best-of-n@8", "beam@4", "rebase@4", "rebase@8"]
    assert [line.split()[3] for line in lines] == searches[first]
    assert len(lines_of(tmp_path)) == before + len(lines) * PROBLEMS.size


class Counted(SyntheticProblems):
    """As 0.1 named it: with the number of its problems."""

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "problems": self.problems}


@pytest.mark.parametrize("kind", [SyntheticProblems, Counted])
@pytest.mark.parametrize("count", [2, 4])  # a part of a shard, and more than one
def test_problems_may_be_added(tmp_path: Path, count: int, kind: type[SyntheticProblems]) -> None:
    by_threes = replace(QUICK, shard=3)
    few, _ = measured(tmp_path, by_threes, kind(SMALL, count))
    assert few
    before = len(lines_of(tmp_path))
    _, records = measured(tmp_path, by_threes)
    _, fresh = measured(tmp_path / "fresh", by_threes)
    assert records == fresh
    assert len(lines_of(tmp_path)) == before + (6 - count) * len(by_threes.cells)
    alone = tmp_path / "alone"
    measured(alone, by_threes, SyntheticProblems(SMALL, count))
    for part, whole in zip(read_cells(alone), read_cells(tmp_path, problems=count), strict=True):
        assert (part.name, part.size, part.problems) == (whole.name, whole.size, whole.problems)
        for choice, right in part.right.items():
            assert right.tolist() == whole.right[choice].tolist()
    lines, _ = measured(tmp_path, by_threes, SyntheticProblems(SMALL, count))  # and fewer again
    assert not lines


def test_a_pool_goes_on_from_its_recorded_tree(tmp_path: Path) -> None:
    asked: list[int] = []

    @dataclass(frozen=True)
    class Counted(Failing):
        def load(self, start: int, stop: int) -> LoadedWorld:
            ground = PROBLEMS.load(start, stop)

            class Counting:
                async def propose(self, requests: Sequence[ProposeRequest]) -> Any:
                    asked.extend(len(request.seeds) for request in requests)
                    return await ground.policy.propose(requests)

            return replace(ground, policy=Counting())

    only = replace(QUICK, entrants=(REFERENCE,))
    measured(tmp_path, replace(only, sizes=(4,)), Counted(0))
    assert sum(asked) == 4 * PROBLEMS.size
    measured(tmp_path, replace(only, sizes=(16,)), Counted(0))
    assert sum(asked) == 16 * PROBLEMS.size


@dataclass(frozen=True)
class Failing:
    """A world whose scorer breaks down after `calls` calls."""

    calls: int
    asked: list[int] = field(default_factory=list)

    @property
    def size(self) -> int:
        return PROBLEMS.size

    def identity(self) -> dict[str, Any]:
        return PROBLEMS.identity()

    def load(self, start: int, stop: int) -> LoadedWorld:
        ground = PROBLEMS.load(start, stop)
        asked, calls = self.asked, self.calls

        @dataclass
        class Breaking:
            inner: Any

            async def score(self, requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
                asked.append(1)
                if len(asked) > calls:
                    raise OSError("the scorer is gone")
                result: list[ScoreResult] = await self.inner.score(requests)
                return result

        return replace(ground, new_scorer=lambda: Breaking(ground.new_scorer()))


@pytest.mark.parametrize("calls", [0, 1, 9, 20])
@pytest.mark.parametrize("batch", [1, 4])
def test_a_run_that_broke_down_goes_on_where_it_was(tmp_path: Path, calls: int, batch: int) -> None:
    comparison = replace(QUICK, batch=batch)
    with pytest.raises(OSError, match="the scorer is gone"):
        measured(tmp_path / "broken", comparison, Failing(calls))
    before = recorded(tmp_path / "broken")
    _, records = measured(tmp_path / "broken", comparison)
    _, whole = measured(tmp_path / "whole", comparison)
    assert records == whole
    assert before.items() <= records.items()  # nothing was made twice
    assert len(lines_of(tmp_path / "broken")) == len(records)
    assert bool(before) == (calls > 0)


def test_processes_measure_the_same(tmp_path: Path) -> None:
    comparison = replace(QUICK, sizes=(4,), shard=3)
    _, one = measured(tmp_path / "one", comparison)
    run_comparison(comparison, PROBLEMS, tmp_path / "two", jobs=2, report=print)
    _, two = measured(tmp_path / "two", comparison)
    assert one == two


def test_another_comparison_does_not_mix_in(tmp_path: Path) -> None:
    measured(tmp_path)
    with pytest.raises(ConfigError, match="made with other settings"):
        measured(tmp_path, replace(QUICK, run_seed=1))
    with pytest.raises(ConfigError, match="made with other settings"):
        measured(tmp_path, world=SyntheticProblems(replace(SMALL, seed=1), 6))
    text = (tmp_path / "records.jsonl").read_text()
    (tmp_path / "records.jsonl").write_text(text.replace('"width": 2,', '"width": 77,'))
    with pytest.raises(ConfigError, match="other options"):
        measured(tmp_path)


def test_what_is_long_is_shown_in_part(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.settle("candidates", {"prompt": {"name": "en", "text": "Look. " * 400}, "seed": 1})
    with pytest.raises(ConfigError) as raised:
        folder.settle("candidates", {"prompt": {"name": "en", "text": "Say. " * 400}, "seed": 1})
    assert "prompt.text 'Look. Look." in str(raised.value)
    assert "seed" not in str(raised.value)
    assert len(str(raised.value)) < 400 + len(str(tmp_path))


def test_what_differs_is_named(tmp_path: Path) -> None:
    measured(tmp_path)
    with pytest.raises(ConfigError, match=r"world\.settings\.auc 0\.85, not 0\.6\)"):
        measured(tmp_path, world=SyntheticProblems(replace(SMALL, auc=0.6), 6))
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    del manifest["searches"]["world"]["settings"]["seed"]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ConfigError, match=r"world\.settings\.seed unknown, not 0\)"):
        measured(tmp_path)
    (tmp_path / "manifest.json").write_text("[")
    with pytest.raises(ConfigError, match="cannot be read"):
        measured(tmp_path)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("[]", "Input should be an object"),
        ("{}", "version: Field required"),
        ('{"version": 99}', "version: Input should be 1"),
        ('{"version": 1, "problem": "x"}', "problem: "),
    ],
)
def test_a_line_that_is_no_record_is_named(tmp_path: Path, line: str, said: str) -> None:
    measured(tmp_path)
    with (tmp_path / "records.jsonl").open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(RecordError, match=f"line {6 * PROBLEMS.size + 1}: .*{said}"):
        measured(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"right": {}}', "null"])
def test_a_damaged_cell_is_named(tmp_path: Path, text: str) -> None:
    measured(tmp_path)
    write_atomically(cell_path(tmp_path, 0, 6, "beam", 4), text)
    with pytest.raises(RecordError, match=r"beam@4\.json"):
        measured(tmp_path)


def test_what_cannot_be_measured_is_refused() -> None:
    for wrong in (
        lambda: Comparison(("bream",)),
        lambda: Comparison(sizes=()),
        lambda: Comparison(sizes=(1,)),
        lambda: Comparison(batch=0),
        lambda: Comparison(choices=("weighted-vote:sideways",)),
        lambda: choice_of("loudest"),
    ):
        with pytest.raises(ConfigError):
            wrong()
    assert entrants_of(["beam", "beam"])[0].name == REFERENCE


def test_every_entrant_and_choice_can_be_made_and_described() -> None:
    for entrant in ENTRANTS.values():
        for size in (2, 4, 5, 16, 64, 256):
            text = json.dumps(described(entrant.make(size)))
            assert json.loads(text)["strategy"]
        assert all(choice_of(choice) for choice in entrant.choices)


def test_answers_are_compared_as_the_votes_compare_them() -> None:
    assert is_right("1/2", "1/2")
    assert is_right("1/2", "0.5")
    assert not is_right("1/2", "2")
    assert not is_right("1/2", None)


# --- summary -----------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(*[st.sampled_from([0.0, 1.0])] * 3), min_size=2, max_size=30),
)
@settings(max_examples=20, deadline=None)
def test_resampled_means_are_a_paired_bootstrap(rows: list[tuple[float, float, float]]) -> None:
    columns = np.array(rows)
    means = resampled_means(columns, resamples=2000)
    exact = bootstrap(columns[:, 0] - columns[:, 1], resamples=2000)
    low, high = np.quantile(means[:, 0] - means[:, 1], [0.025, 0.975])
    slack = 1.5 / len(columns) + 0.02
    assert abs(low - exact.low) <= slack
    assert abs(high - exact.high) <= slack
    twice = resampled_means(np.stack([columns[:, 2]] * 2, axis=1), resamples=50)
    assert (twice[:, 0] == twice[:, 1]).all()


def test_a_summary_says_what_the_records_say(tmp_path: Path) -> None:
    _, records = measured(tmp_path, replace(QUICK, shard=4))
    summary = summarise(read_cells(tmp_path))
    assert summary["problems"] == 6
    for row in summary["rows"]:
        cell = [
            record for key, (record, _) in records.items() if key[1:] == (row["name"], row["size"])
        ]
        right = [record.choices[row["choice"]].right for record in cell]
        assert row["accuracy"]["mean"] == pytest.approx(sum(right) / 6)
        assert row["accuracy"]["low"] <= row["accuracy"]["mean"] <= row["accuracy"]["high"]
        spent = [record.usage.generated_tokens for record in cell]
        assert row["generated_tokens"] == pytest.approx(sum(spent) / 6)
        assert row["generated_tokens"] <= row["budget"]
    assert len(summary["pairs"]) == 2 * 3
    for pair in summary["pairs"]:
        first, second = (
            next(
                row["accuracy"]["mean"]
                for row in summary["rows"]
                if row["headline"] and (row["name"], row["size"]) == (pair[side], pair["size"])
            )
            for side in ("first", "second")
        )
        assert pair["difference"]["mean"] == pytest.approx(first - second)


def test_a_cell_missing_on_a_problem_is_left_out(tmp_path: Path) -> None:
    measured(tmp_path, replace(QUICK, shard=3))
    lost = b'"problem": 4, "name": "rebase", "size": 4,'
    kept = [line for line in lines_of(tmp_path) if lost not in line]
    (tmp_path / "records.jsonl").write_bytes(b"".join(kept))
    names = {(cell.name, cell.size) for cell in read_cells(tmp_path)}
    assert ("rebase", 4) not in names
    assert ("rebase", 8) in names
    with pytest.raises(RecordError, match="nothing was measured"):
        read_cells(tmp_path / "elsewhere")


# --- the pieces are called as promised ---------------------------------------------------------


def test_each_cell_gets_a_scorer_of_its_own(tmp_path: Path) -> None:
    made: list[SyntheticScorer] = []

    @dataclass(frozen=True)
    class Watched(Failing):
        def load(self, start: int, stop: int) -> LoadedWorld:
            ground = PROBLEMS.load(start, stop)

            def new_scorer() -> Any:
                made.append(ground.new_scorer())  # type: ignore[arg-type]
                return made[-1]

            return replace(ground, new_scorer=new_scorer)

    measured(tmp_path, world=Watched(0))
    assert len(made) == 1 + 2 * 2  # the pool of best-of-n, and each search
    total = sum(scorer.counts.new_tokens for scorer in made)
    counted = [r for r in RecordFile(tmp_path) if r.name != REFERENCE or r.size == max(QUICK.sizes)]
    assert total == sum(record.usage.tokens_computed for record in counted)
    assert total == sum(record.usage.scored_tokens for record in counted)


def test_a_shard_that_is_there_loads_no_models(tmp_path: Path) -> None:
    measured(tmp_path)

    class Unloadable(Failing):
        def load(self, start: int, stop: int) -> LoadedWorld:
            raise AssertionError("models were loaded for nothing")

    lines, _ = measured(tmp_path, world=Unloadable(0))
    assert lines == []


def test_a_difference_of_nothing_has_no_minus() -> None:
    assert points({"mean": -0.0, "low": -0.0004, "high": 0.0}) == "+0.0 [+0.0, +0.0]"
