"""Searches without a graph, and the bridge from synchronous code."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import threading
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.graph.fakes import QUESTION, HashChatModel, HashScorer, noisy_png
from vprm_search.errors import ConfigError, ScorerError, SearchError
from vprm_search.graph import arun_search, run_jobs, run_search
from vprm_search.graph.loop import Job
from vprm_search.graph.parts import SearchRules, as_policy
from vprm_search.graph.session import run_blocking
from vprm_search.images import normalise_image
from vprm_search.search import BeamSearch, BestOfN, Strategy, WeightedVote
from vprm_search.tree import SearchTree
from vprm_search.types import Policy, Problem, Proposal, ProposeRequest

BEAM = BeamSearch(width=2, expand=3)
PNG = noisy_png(40)


def search(question: str | Problem = QUESTION, **options: Any) -> Any:
    given = {"policy": HashChatModel(), "scorer": HashScorer(), "strategy": BEAM}
    return run_search(question, **{**given, **options})


def test_images_come_as_bytes_or_normalised() -> None:
    image = normalise_image(PNG)
    trees = [search(images=[given]).tree for given in (PNG, image)]
    assert trees[0].dumps() == trees[1].dumps()
    assert trees[0].problem.images == (image.digest,)
    problem = Problem(QUESTION, (image.digest,))
    assert search(problem, images=[image]).tree.dumps() == trees[0].dumps()
    with pytest.raises(SearchError, match="names 1 images and 0"):
        search(problem)


async def test_synchronous_and_asynchronous_searches_are_equal() -> None:
    options: dict[str, Any] = {"policy": HashChatModel(), "scorer": HashScorer(), "strategy": BEAM}
    inside = run_search(QUESTION, **options)
    assert (await arun_search(QUESTION, **options)).tree.dumps() == inside.tree.dumps()


class CountedCalls(HashScorer):
    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    async def score(self, requests: Any) -> Any:
        self.batches.append(len(requests))
        return await super().score(requests)


@given(
    st.lists(
        st.sampled_from([f"Board {n}" for n in range(6)]), min_size=1, max_size=4, unique=True
    ),
    st.sampled_from([BEAM, BestOfN(3), BeamSearch(width=1, expand=2, stop=None)]),
    st.booleans(),
)
def test_searches_together_are_the_searches_alone(
    questions: list[str], strategy: Strategy, lockstep: bool
) -> None:
    rules = SearchRules(strategy, WeightedVote())
    jobs = [Job(SearchTree(Problem(question), 0)) for question in questions]
    scorer = CountedCalls()
    policy = as_policy(HashChatModel())
    runs = run_blocking(run_jobs(jobs, policy, scorer, rules, lockstep=lockstep))
    alone = [search(question, strategy=strategy) for question in questions]
    assert [run.tree.dumps() for run in runs] == [run.tree.dumps() for run in alone]
    assert [run.result.node for run in runs] == [run.result.node for run in alone]
    if lockstep:
        assert len(scorer.batches) <= max(run.tree.rounds for run in runs)


class HeldUp:
    """Answers the question "slow" only when every other search has ended."""

    batches = False

    def __init__(self, inner: Policy, others_ended: asyncio.Event) -> None:
        self.inner, self.others_ended = inner, others_ended

    async def propose(self, requests: Sequence[ProposeRequest]) -> list[list[Proposal]]:
        if any(request.problem.question == "slow" for request in requests):
            await asyncio.wait_for(self.others_ended.wait(), 20)
        return await self.inner.propose(requests)


async def test_a_slow_search_holds_up_no_other() -> None:
    ended = asyncio.Event()

    def told(event: dict[str, Any]) -> None:
        if event["event"] == "answer":
            ended.set()

    jobs = [Job(SearchTree(Problem(text), 0)) for text in ("slow", "quick")]
    policy = HeldUp(as_policy(HashChatModel()), ended)
    runs = await run_jobs(
        jobs, policy, HashScorer(), SearchRules(BEAM, WeightedVote()), on_event=told
    )
    assert all(run.tree.rounds > 1 for run in runs)


class Broken(HashScorer):
    async def score(self, requests: Any) -> Any:
        if requests[0].problem.question == "bad":
            raise ScorerError("no such model")
        return await super().score(requests)


def test_an_error_of_one_search_ends_all_and_leaves_nothing_running() -> None:
    async def search_all() -> int:
        jobs = [Job(SearchTree(Problem(text), 0)) for text in ("good", "bad", "fine")]
        rules = SearchRules(BEAM, WeightedVote())
        before = len(asyncio.all_tasks())
        with pytest.raises(ScorerError, match="no such model"):
            await run_jobs(jobs, as_policy(HashChatModel()), Broken(), rules, lockstep=False)
        await asyncio.sleep(0.05)
        return len(asyncio.all_tasks()) - before

    assert run_blocking(search_all()) == 0


def test_equal_first_steps_are_scored_once() -> None:
    scorer = CountedCalls()
    model = HashChatModel(spread=1)  # every first step is the same text
    run = search(policy=model, scorer=scorer, strategy=BestOfN(8))
    leaves = [r for r in run.tree if r.parent == run.tree.root_id]
    texts = {run.tree.steps(r.id) for r in run.tree if r.text}
    spent = [r for r in run.tree if r.scored_tokens and r.parent]
    assert len(leaves) == 8
    assert len({r.score for r in leaves if r.text == leaves[0].text}) == 1
    assert len(spent) == len(texts) < len(run.tree) - 1
    assert sum(scorer.batches) <= 8


def test_what_is_no_policy_is_refused() -> None:
    with pytest.raises(ConfigError):
        search(policy="gpt-4o")
    bound = HashChatModel().bind(temperature=0.5)
    assert search(policy=bound).tree.dumps() == search().tree.dumps()


# --- the bridge --------------------------------------------------------------------------------


async def answer(value: int, *, fail: bool = False) -> tuple[int, str]:
    await asyncio.sleep(0)
    if fail:
        raise ValueError(value)
    return value, threading.current_thread().name


def test_all_calls_share_one_loop_in_one_thread() -> None:
    results: list[tuple[int, str]] = []
    workers = [
        threading.Thread(target=lambda n=n: results.append(run_blocking(answer(n))))
        for n in range(8)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(value for value, _ in results) == list(range(8))
    assert {name for _, name in results} == {"vprm-search-loop"}


def test_an_error_comes_back_as_itself() -> None:
    with pytest.raises(ValueError, match="7"):
        run_blocking(answer(7, fail=True))
    assert run_blocking(answer(8))[0] == 8


async def test_it_works_inside_a_running_loop_and_inside_itself() -> None:
    async def outer() -> int:
        return run_blocking(answer(3))[0] + 1

    assert run_blocking(outer()) == 4


def test_context_variables_come_along() -> None:
    name: contextvars.ContextVar[str] = contextvars.ContextVar("name", default="nobody")

    async def read() -> str:
        return name.get()

    name.set("ann")
    assert run_blocking(read()) == "ann"


def test_a_cancelled_coroutine_is_a_cancellation_for_the_caller() -> None:
    async def give_up() -> None:
        raise asyncio.CancelledError

    with pytest.raises(concurrent.futures.CancelledError):
        run_blocking(give_up())
