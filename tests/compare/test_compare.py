"""Comparisons on the synthetic world: equal tokens, shared samples, resumed, honest statistics."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vprm_search.compare.cell import read_cell
from vprm_search.compare.comparison import CUT, Capped, Comparison, measure_shard, run_comparison
from vprm_search.compare.entrants import (
    ENTRANTS,
    REFERENCE,
    choice_of,
    described,
    entrants_of,
)
from vprm_search.compare.report import points
from vprm_search.compare.summary import bootstrap, read_cells, resampled_means, summarise
from vprm_search.compare.worlds import (
    LoadedWorld,
    SyntheticPolicy,
    SyntheticProblems,
    SyntheticScorer,
    SyntheticWorld,
    Task,
    WorldSettings,
    is_right,
)
from vprm_search.errors import ConfigError, RecordError
from vprm_search.graph.parts import SearchRules
from vprm_search.graph.run import SearchRun, search_many
from vprm_search.search import BestScore, Strategy
from vprm_search.tree import SearchTree
from vprm_search.types import Problem, ScoreRequest, ScoreResult

SMALL = WorldSettings(depth=4, p_step=0.8, auc=0.85, words=40)
PROBLEMS = SyntheticProblems(SMALL, 6)
QUICK = Comparison(("beam", "rebase"), (4, 8), batch=4, shard=6)


def measured(
    out: Path, comparison: Comparison = QUICK, world: Any = PROBLEMS
) -> tuple[list[str], dict[str, Any]]:
    """Run a comparison; return its progress lines and the cells by file name."""
    lines: list[str] = []
    run_comparison(comparison, world, out, report=lines.append)
    cells = {str(path.relative_to(out)): read_cell(path) for path in out.glob("cells/*/*.json")}
    for cell in cells.values():
        del cell["seconds"], cell["cpu_seconds"]
    return lines, cells


# --- equal tokens ------------------------------------------------------------------------------


def searched(
    strategy: Strategy, world: SyntheticWorld, budget: int, problems: int
) -> list[SearchRun]:
    tasks = [(Problem(world.question(number)), ()) for number in range(problems)]
    caps = {SearchTree(problem, 0).root_id: budget for problem, _ in tasks}
    rules = SearchRules(Capped(strategy, caps), BestScore())
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
def test_any_budget_ends_a_search_and_is_kept_after_the_first_round(budget: int, name: str) -> None:
    world = SyntheticWorld(SMALL)
    (run,) = searched(ENTRANTS[name].make(4), world, budget, 1)
    first = sum(record.generated_tokens for record in run.tree.round_nodes(1))
    assert run.tree.totals.generated_tokens <= max(budget, first)
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
        assert [r.tree.dumps() for r in free] == [r.tree.dumps() for r in plain]


# --- cells -------------------------------------------------------------------------------------


def test_every_cell_is_measured_once_and_taken_up_again(tmp_path: Path) -> None:
    lines, cells = measured(tmp_path)
    assert len(cells) == len(lines) == 6
    assert lines[-1].startswith("[6/6]")
    again, same = measured(tmp_path)
    assert (again, same) == ([], cells)
    lost = next(path for path in tmp_path.glob("cells/*/rebase@8.json"))
    lost.unlink()
    lines, same = measured(tmp_path)
    assert [line for line in lines if "rebase@8" in line] == lines
    assert same == cells


def test_the_pool_of_a_size_is_the_start_of_the_pool_of_the_next(tmp_path: Path) -> None:
    _, grown = measured(tmp_path / "grown")
    _, alone = measured(tmp_path / "alone", replace(QUICK, sizes=(8,)))
    for path, cell in alone.items():
        assert grown[path] == {**cell, "rounds": grown[path]["rounds"]}  # 8 came in two waves


def test_sizes_and_strategies_may_be_added(tmp_path: Path) -> None:
    measured(tmp_path, replace(QUICK, entrants=("beam",), sizes=(8,)))
    lines, cells = measured(tmp_path)
    _, fresh = measured(tmp_path / "fresh")
    assert len(lines) == 4  # best-of-n@4, beam@4, rebase@4, rebase@8
    for path, cell in cells.items():
        assert cell == {**fresh[path], "rounds": cell["rounds"]}


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


@pytest.mark.parametrize("calls", [1, 9, 20])
def test_a_run_that_broke_down_goes_on_where_it_was(tmp_path: Path, calls: int) -> None:
    with pytest.raises(OSError, match="the scorer is gone"):
        measured(tmp_path / "broken", world=Failing(calls))
    left = sorted(path.name for path in (tmp_path / "broken").rglob("*") if path.is_file())
    assert not [name for name in left if name.endswith(".part")]
    lines, cells = measured(tmp_path / "broken")
    _, whole = measured(tmp_path / "whole")
    assert cells == whole
    assert len(lines) == 6 - (len(left) - 1)  # comparison.json is no cell


def test_processes_measure_the_same(tmp_path: Path) -> None:
    comparison = replace(QUICK, sizes=(4,), shard=3)
    _, one = measured(tmp_path / "one", comparison)
    run_comparison(comparison, PROBLEMS, tmp_path / "two", jobs=2, report=print)
    _, two = measured(tmp_path / "two", comparison)
    assert one == two


def test_another_comparison_does_not_mix_in(tmp_path: Path) -> None:
    measured(tmp_path)
    with pytest.raises(ConfigError, match="another comparison"):
        measured(tmp_path, replace(QUICK, run_seed=1))
    with pytest.raises(ConfigError, match="another comparison"):
        measured(tmp_path, world=SyntheticProblems(SMALL, 5))
    path = next(tmp_path.glob("cells/*/beam@4.json"))
    cell = json.loads(path.read_text())
    cell["strategy"]["width"] = 77
    path.write_text(json.dumps(cell))
    with pytest.raises(ConfigError, match="other options"):
        measured(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"right": {}}', "null"])
def test_a_damaged_cell_is_named(tmp_path: Path, text: str) -> None:
    measured(tmp_path)
    path = next(tmp_path.glob("cells/*/beam@4.json"))
    path.write_text(text)
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
    task = Task(Problem("?"), (), "1/2")
    assert is_right(task, "1/2")
    assert is_right(task, "0.5")
    assert not is_right(task, "2")
    assert not is_right(task, None)


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


def test_a_summary_says_what_the_cells_say(tmp_path: Path) -> None:
    _, cells = measured(tmp_path, replace(QUICK, shard=4))
    summary = summarise(read_cells(tmp_path))
    assert summary["problems"] == 6
    for row in summary["rows"]:
        parts = [c for c in cells.values() if (c["name"], c["size"]) == (row["name"], row["size"])]
        right = [value for part in parts for value in part["right"][row["choice"]]]
        assert row["accuracy"]["mean"] == pytest.approx(sum(right) / 6)
        assert row["accuracy"]["low"] <= row["accuracy"]["mean"] <= row["accuracy"]["high"]
        spent = [value for part in parts for value in part["generated_tokens"]]
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


def test_a_cell_missing_on_a_shard_is_left_out(tmp_path: Path) -> None:
    measured(tmp_path, replace(QUICK, shard=3))
    next(tmp_path.glob("cells/000003*/rebase@4.json")).unlink()
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

    _, cells = measured(tmp_path, world=Watched(0))
    assert len(made) == 1 + 2 * 2  # the pool of best-of-n, and each search
    total = sum(scorer.counts.new_tokens for scorer in made)
    pool = max(c["size"] for c in cells.values() if c["name"] == REFERENCE)
    counted = [c for c in cells.values() if c["name"] != REFERENCE or c["size"] == pool]
    assert total == sum(sum(cell["computed_tokens"]) for cell in counted)
    assert total == sum(sum(cell["scored_tokens"]) for cell in counted)


def test_a_shard_that_is_there_loads_no_models(tmp_path: Path) -> None:
    measured(tmp_path)

    class Unloadable(Failing):
        def load(self, start: int, stop: int) -> LoadedWorld:
            raise AssertionError("models were loaded for nothing")

    lines: list[str] = []
    report: Callable[[str], None] = lines.append
    measure_shard(QUICK, Unloadable(0), tmp_path, 0, 6, report)
    assert lines == []


def test_a_difference_of_nothing_has_no_minus() -> None:
    assert points({"mean": -0.0, "low": -0.0004, "high": 0.0}) == "+0.0 [+0.0, +0.0]"
