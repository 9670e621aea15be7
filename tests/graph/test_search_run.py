"""Searches without a graph, and the bridge from synchronous code."""

from __future__ import annotations

import asyncio
import base64
import concurrent.futures
import contextvars
import inspect
import signal
import sys
import threading
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, SystemMessage

from tests.graph.fakes import QUESTION, HashChatModel, HashScorer, noisy_png
from vprm_search.errors import ConfigError, ImageError, InputError, ScorerError, SearchError
from vprm_search.graph import (
    arun_search,
    create_search_graph,
    create_verifier_node,
    run_jobs,
    run_search,
    tree_of_state,
)
from vprm_search.graph.blocking import run_blocking
from vprm_search.graph.loop import Job
from vprm_search.graph.parts import SearchRules, as_policy
from vprm_search.images import MemoryImageStore, image_message, normalise_image
from vprm_search.search import BeamSearch, BestOfN, MajorityVote, Strategy, WeightedVote
from vprm_search.testing import ScriptedScorer
from vprm_search.tree import SearchTree
from vprm_search.types import Policy, Problem, Proposal, ProposeRequest, ScoreRequest

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


def test_a_question_may_be_a_message_or_a_conversation_as_in_the_graph() -> None:
    wanted = search(images=[PNG]).tree.dumps()
    message = image_message(QUESTION, PNG)
    data = base64.b64encode(PNG).decode()
    blocks = [
        {"type": "image", "base64": data, "mime_type": "image/png"},
        {"type": "text", "text": QUESTION},
    ]
    plain = {"role": "user", "content": blocks}
    for question in (message, [message], plain, [plain], [message, AIMessage("an old answer")]):
        assert search(question).tree.dumps() == wanted
    graph = create_search_graph(
        policy=HashChatModel(), scorer=HashScorer(), strategy=BEAM, image_store=MemoryImageStore()
    )
    state = graph.compile().invoke({"messages": [plain]})
    assert tree_of_state(state).dumps() == wanted
    system = search([SystemMessage("Be short."), message]).tree.problem
    assert system.system == "Be short."
    with pytest.raises(SearchError, match="beside a message"):
        search(message, images=[PNG])
    with pytest.raises(ImageError, match="give the picture"):
        search({"role": "user", "content": [{"type": "image", "url": "vprm-image://x"}, *blocks]})


def test_no_scorer_is_needed_where_no_rule_reads_scores() -> None:
    run = search(scorer=None, strategy=BestOfN(8), selector=MajorityVote())
    assert run.result.answer is not None
    assert run.result.score is None
    assert {r.score_reason for r in run.tree if r.is_step} == {"the search has no scorer"}
    with pytest.raises(ConfigError, match="WeightedVote reads scores, and scorer is None"):
        search(scorer=None, strategy=BestOfN(8))
    with pytest.raises(ConfigError, match="BeamSearch reads scores"):
        create_search_graph(
            policy=HashChatModel(), scorer=None, strategy=BeamSearch(), selector=MajorityVote()
        )


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("scorer", 3),
        ("scorer", HashScorer),
        ("strategy", "beam"),
        ("strategy", BeamSearch),
        ("selector", "majority"),
        ("selector", MajorityVote),
    ],
)
def test_what_is_no_part_of_a_search_is_refused_before_it_begins(name: str, given: Any) -> None:
    parts: dict[str, Any] = {"policy": HashChatModel(), "scorer": HashScorer(), name: given}
    with pytest.raises(ConfigError, match=f"{name} is "):
        create_search_graph(**parts)
    with pytest.raises(ConfigError, match=f"{name} is "):
        search(**parts)
    if name == "scorer":
        with pytest.raises(ConfigError, match="scorer is "):
            create_verifier_node(given)


@pytest.mark.parametrize("asked", [{"messages": ["x" * 5000]}, [3], {"role": "nobody"}])
def test_what_is_no_message_is_refused_in_one_sentence(asked: Any) -> None:
    with pytest.raises(InputError, match="neither a text, a message, nor") as refused:
        search(asked)
    assert len(str(refused.value)) < 200


def test_the_graph_and_the_function_take_the_same_options() -> None:
    graph_only = {
        "image_store",
        "messages_key",
        "state_schema",
        "context_schema",
        "retry_policy",
        "candidates",
        "delta_checkpoints",
        "review",
    }
    of_graph = inspect.signature(create_search_graph).parameters
    for function in (run_search, arun_search):
        own = inspect.signature(function).parameters
        assert set(own) - {"question", "images", "on_event"} == set(of_graph) - graph_only
        for name in set(own) & set(of_graph):
            assert own[name].default == of_graph[name].default
    for function in (create_search_graph, arun_search):
        told = function.__doc__ or ""
        assert all(f"        {name}: " in told for name in inspect.signature(function).parameters)


async def test_synchronous_and_asynchronous_searches_are_equal() -> None:
    options: dict[str, Any] = {"policy": HashChatModel(), "scorer": HashScorer(), "strategy": BEAM}
    inside = run_search(QUESTION, **options)
    assert (await arun_search(QUESTION, **options)).tree.dumps() == inside.tree.dumps()


@given(
    st.lists(
        st.sampled_from([f"Board {n}" for n in range(6)]), min_size=1, max_size=4, unique=True
    ),
    st.sampled_from([BEAM, BestOfN(3), BeamSearch(width=1, expand=2, stop=None)]),
    st.booleans(),
)
@settings(max_examples=50)
def test_searches_together_are_the_searches_alone(
    questions: list[str], strategy: Strategy, lockstep: bool
) -> None:
    rules = SearchRules(strategy, WeightedVote())
    jobs = [Job(SearchTree(Problem(question), 0)) for question in questions]
    scorer = HashScorer()
    policy = as_policy(HashChatModel())
    runs = run_blocking(run_jobs(jobs, policy, scorer, rules, lockstep=lockstep))
    alone = [searched_alone(question, strategy) for question in questions]
    assert [(run.tree.dumps(), run.result.node) for run in runs] == alone
    if lockstep:
        assert len(scorer.batches) <= max(run.tree.rounds for run in runs)


@cache
def searched_alone(question: str, strategy: Strategy) -> tuple[str, str | None]:
    run = search(question, strategy=strategy)
    return run.tree.dumps(), run.result.node


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


def breaks(request: ScoreRequest) -> float:
    if request.problem.question == "bad":
        raise ScorerError("no such model")
    return 0.5


def test_an_error_of_one_search_ends_all_and_leaves_nothing_running() -> None:
    scorer = ScriptedScorer(breaks)

    async def search_all() -> int:
        jobs = [Job(SearchTree(Problem(text), 0)) for text in ("good", "bad", "fine")]
        rules = SearchRules(BEAM, WeightedVote())
        before = len(asyncio.all_tasks())
        with pytest.raises(ScorerError, match="no such model"):
            await run_jobs(jobs, as_policy(HashChatModel()), scorer, rules, lockstep=False)
        await asyncio.sleep(0.05)
        return len(asyncio.all_tasks()) - before

    assert run_blocking(search_all()) == 0


def test_equal_first_steps_are_scored_once() -> None:
    scorer = HashScorer()
    model = HashChatModel(spread=1)  # every first step is the same text
    run = search(policy=model, scorer=scorer, strategy=BestOfN(8))
    leaves = [r for r in run.tree if r.parent == run.tree.root_id]
    texts = {run.tree.steps(r.id) for r in run.tree if r.text}
    spent = [r for r in run.tree if r.scored_tokens and r.parent]
    assert len(leaves) == 8
    assert len({r.score for r in leaves if r.text == leaves[0].text}) == 1
    assert len(spent) == len(texts) < len(run.tree) - 1
    assert len(scorer.asked) <= 8


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


def test_no_thread_is_left_behind() -> None:
    async def outer() -> int:
        return run_blocking(answer(3))[0]

    run_blocking(outer())
    before = set(threading.enumerate())
    for _ in range(5):
        run_blocking(outer())
    assert set(threading.enumerate()) <= before


def test_a_caller_that_is_interrupted_leaves_no_work_behind() -> None:
    ended, main = threading.Event(), threading.main_thread().ident or 0

    async def work() -> None:
        while sys._current_frames()[main].f_code.co_name != "wait":  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        try:
            signal.pthread_kill(main, signal.SIGINT)
            await asyncio.Event().wait()
        finally:
            ended.set()

    # A shell starts what it puts into the background with SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_blocking(work())
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended.wait(30)


def test_an_exit_is_the_callers_and_does_not_end_the_shared_loop() -> None:
    async def leave() -> None:
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        run_blocking(leave())
    assert run_blocking(answer(5)) == (5, "vprm-search-loop")


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
