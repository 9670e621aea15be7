"""Comparisons whose calls fail: what is no result, what stops a run, what is made again."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_openai import ChatOpenAI

from tests.compare.test_compare import PROBLEMS, SMALL, lines_of, measured, recorded
from tests.policy.openai_server import serving
from vprm_search.chat.calls import RetryRules
from vprm_search.compare.entrants import REFERENCE
from vprm_search.compare.worlds import LoadedWorld, SyntheticProblems, Task, problem_of
from vprm_search.errors import SearchError
from vprm_search.evaluate.search_records import RecordFile
from vprm_search.evaluate.search_summary import read_cells, summarise
from vprm_search.evaluate.searches import Comparison, run_comparison
from vprm_search.policy.chat_model_policy import ChatModelPolicy
from vprm_search.testing import Fault, FaultProxy, ProxiedRequest, ScriptedScorer
from vprm_search.types import Problem, Proposal, ProposeRequest, ScoreRequest, ScoreResult

Fails = Callable[[int, str], bool]
"""Whether the calls about a problem fail; "end" asks for a whole solution, "step" for a step."""


@dataclass(frozen=True)
class Faulty:
    """A synthetic world of which some calls to the policy or the scorer fail, as values."""

    fails: Fails = lambda problem, until: False
    unscored: Callable[[int], bool] = lambda problem: False
    inner: SyntheticProblems = PROBLEMS

    @property
    def size(self) -> int:
        return self.inner.size

    def identity(self) -> dict[str, Any]:
        return self.inner.identity()

    def load(self, start: int, stop: int) -> LoadedWorld:
        ground, world = self.inner.load(start, stop), self

        class Policy:
            async def propose(self, requests: Sequence[ProposeRequest]) -> list[list[Proposal]]:
                replies = await ground.policy.propose(requests)
                for request, reply in zip(requests, replies, strict=True):
                    if world.fails(problem_of(request.problem.question), request.until):
                        lost = Proposal("", "error", error="HTTP 502: bad gateway", requests=1)
                        reply[:] = [lost] * len(reply)
                return replies

        @dataclass
        class Scorer:
            inner: Any

            async def score(self, requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
                results: list[ScoreResult] = await self.inner.score(requests)
                return [
                    ScoreResult.failed(len(request.steps), "no_server: gone")
                    if world.unscored(problem_of(request.problem.question))
                    else result
                    for request, result in zip(requests, results, strict=True)
                ]

        return replace(ground, policy=Policy(), new_scorer=lambda: Scorer(ground.new_scorer()))


def no_results(out: Path, max_failed: float) -> set[tuple[str, int]]:
    summary = summarise(read_cells(out), max_failed)
    told = {(row["name"], row["size"]) for row in summary["rows"]}
    refused = {(cell["name"], cell["size"]) for cell in summary["no_results"]}
    assert not told & refused
    return refused


@given(bad=st.sets(st.integers(0, 5)), limit=st.sampled_from([0.0, 0.2, 0.5, 0.9]))
@settings(max_examples=12, deadline=None)
def test_a_cell_is_a_result_exactly_up_to_the_stated_share(
    bad: set[int], limit: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    out = tmp_path_factory.mktemp("out")
    comparison = Comparison((REFERENCE,), (4,), max_failed=limit)
    said = "24 of 24 calls to the policy failed, most often: HTTP 502"
    stops = pytest.raises(SearchError, match=said) if len(bad) == 6 else nullcontext()
    with stops:
        measured(out, comparison, Faulty(lambda problem, until: problem in bad))
    wanted = {(REFERENCE, 4)} if len(bad) / 6 > limit else set()
    assert no_results(out, limit) == wanted
    before = len(lines_of(out))
    _, records = measured(out, comparison)  # all is well now
    again = bad if wanted else set()
    assert len(lines_of(out)) == before + len(again)
    repeated = {json.loads(line)["problem"] for line in lines_of(out)[before:]}
    assert repeated == again
    if wanted:
        _, calm = measured(tmp_path_factory.mktemp("calm"), comparison)
        assert records == calm


def test_a_new_budget_makes_the_searches_under_it_anew(tmp_path: Path) -> None:
    lenient = Comparison(("beam", "rebase"), (4, 8), max_failed=1.0)
    measured(
        tmp_path / "out", lenient, Faulty(lambda problem, until: (problem, until) == (2, "end"))
    )
    file = RecordFile(tmp_path / "out")
    lost, cut = file.get(2, REFERENCE, 8), file.get(2, "beam", 8)
    assert lost is not None
    assert cut is not None
    assert (lost.failures.share, cut.budget, cut.failures.share) == (1.0, 0, 0.0)
    before = len(lines_of(tmp_path / "out"))
    _, records = measured(tmp_path / "out", replace(lenient, max_failed=0.05))
    _, calm = measured(tmp_path / "calm", replace(lenient, max_failed=0.05))
    assert records == calm
    assert len(lines_of(tmp_path / "out")) == before + 6  # three strategies, two sizes, one problem


def test_without_budgets_the_others_of_a_size_are_not_measured(tmp_path: Path) -> None:
    comparison = Comparison(("beam",), (4,), max_failed=0.3)
    lines, records = measured(tmp_path, comparison, Faulty(lambda problem, until: problem % 2 == 0))
    assert {name for _, name, _ in records} == {REFERENCE}
    assert lines == [
        "[1/2] problems 0-5: best-of-n@4 in "
        + lines[0].split(" in ")[1].split(" s;")[0]
        + " s; 12 of 24 calls to the policy failed, most often: HTTP 502: bad gateway",
        "[2/2] problems 0-5: beam@4 not measured: best-of-n@4, which sets its budget, is no result",
    ]


def test_one_bad_problem_stops_nothing(tmp_path: Path) -> None:
    many = SyntheticProblems(SMALL, 25)
    comparison = Comparison(("beam",), (4,), batch=1, shard=5)
    world = Faulty(lambda problem, until: problem in (0, 24), inner=many)
    _, records = measured(tmp_path, replace(comparison, max_failed=0.1), world)
    assert len(records) == 50
    assert no_results(tmp_path, 0.1) == set()
    assert no_results(tmp_path, 0.05) == {(REFERENCE, 4), ("beam", 4)}


@pytest.mark.parametrize("kind", ["policy", "scorer"])
def test_a_server_that_goes_away_ends_the_run(tmp_path: Path, kind: str) -> None:
    many = SyntheticProblems(SMALL, 40)
    comparison = Comparison(("beam",), (4,), batch=1)
    world = Faulty(lambda problem, until: kind == "policy" and problem >= 7, inner=many)
    if kind == "scorer":
        world = Faulty(unscored=lambda problem: problem >= 7, inner=many)
    with pytest.raises(SearchError, match="nothing came of 10 searches in a row") as raised:
        measured(tmp_path, comparison, world)
    assert "most often: " in str(raised.value)
    assert len(recorded(tmp_path)) == 17
    _, records = measured(tmp_path, comparison, many)
    _, calm = measured(tmp_path / "calm", comparison, many)
    assert records == calm
    assert len(lines_of(tmp_path)) == len(records) + 10


# --- a real server -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Served:
    """Questions without pictures, a chat model behind an address, and a scripted scorer."""

    url: str
    questions: int
    retry: RetryRules

    @property
    def size(self) -> int:
        return self.questions

    def identity(self) -> dict[str, Any]:
        return {"world": "served", "questions": self.questions}

    def load(self, start: int, stop: int) -> LoadedWorld:
        model = ChatOpenAI(model="m", base_url=self.url, api_key="none", max_retries=0)
        tasks = [Task(Problem(f"{number} + 1?"), (), str(number)) for number in range(start, stop)]
        policy = ChatModelPolicy(model, retry=self.retry)
        return LoadedWorld(tasks, policy, lambda: ScriptedScorer(lambda request: 0.5))


def test_a_server_that_hangs_is_a_failed_call(tmp_path: Path) -> None:
    def hangs(request: ProxiedRequest) -> Fault | None:
        return Fault("hang") if b"3 + 1?" in request.body and not healed else None

    healed: list[bool] = []
    with serving(lambda body, child: "Adding.\n\nAnswer: 3") as server:
        upstream = server.url.removesuffix("/v1")
        with FaultProxy(upstream, hangs, only="/v1/chat") as proxy:
            rules = RetryRules(max_attempts=2, timeout_s=0.3, first_wait_s=0)
            world = Served(f"{proxy.url}/v1", 5, rules)
            comparison = Comparison((REFERENCE,), (4,))
            lines, _ = measured(tmp_path, comparison, world)
            assert "4 of 20 calls to the policy failed, most often: TimeoutError" in lines[0]
            assert no_results(tmp_path, 0.05) == {(REFERENCE, 4)}
            healed.append(True)
            before = len(proxy.met)
            measured(tmp_path, comparison, world)
            assert [b"3 + 1?" in request.body for request, _ in proxy.met[before:]] == [True]
    assert no_results(tmp_path, 0.05) == set()


def test_connections_outlive_a_shard(tmp_path: Path) -> None:
    """Every shard once had an event loop of its own, and kept connections died with it."""
    with serving(lambda body, child: "Adding.\n\nAnswer: 3") as server:
        world = Served(server.url, 9, RetryRules(max_attempts=1))
        for run_seed in (0, 1):
            out = tmp_path / str(run_seed)
            comparison = Comparison((REFERENCE,), (4,), shard=3, run_seed=run_seed)
            run_comparison(comparison, world, out, report=lambda line: None)
            assert not any(record.failures.share for record in RecordFile(out))
