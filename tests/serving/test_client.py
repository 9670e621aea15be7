"""`VllmScorer` on the real server: equal to the in-process scorer, through searches and a crash."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from dataclasses import replace

import pytest

from tests.serving.forwarder import Forwarder
from tests.serving.problems import Round, hostile_round, world_round
from tests.serving.server import PrmServer
from tests.serving.tolerances import TRAINED_TWICE
from vprm_search.budget import Budget
from vprm_search.cli.options import load_policy
from vprm_search.graph import arun_search, run_jobs
from vprm_search.graph.loop import Job
from vprm_search.graph.parts import SearchRules
from vprm_search.images import normalise_image
from vprm_search.scoring import (
    CachedScorer,
    MemoryScoreStore,
    TransformersScorer,
    VllmOptions,
    VllmScorer,
)
from vprm_search.search import BeamSearch, BestScore
from vprm_search.tiny.world import FAMILIES, generate, render
from vprm_search.tree import SearchTree
from vprm_search.types import (
    ImageData,
    Policy,
    Problem,
    ScoreRequest,
    ScoreResult,
    StepScorer,
)

pytestmark = pytest.mark.slow

FIRST_PROBLEM = 6000
SEARCHES = 32
RULES = SearchRules(BeamSearch(width=2, expand=3, max_depth=13), BestScore(), Budget())
OPTIONS = VllmOptions(restart_wait_s=900, deadline_s=1200, timeout_s=300, startup_wait_s=60)


@pytest.fixture(scope="module")
def policy() -> Policy:
    """The packaged policy in this process; its draws depend on the tree alone."""
    return load_policy("tiny", temperature=1.0)


def problem(number: int) -> tuple[Problem, ImageData]:
    made = generate(FAMILIES[number % 3], "validation", FIRST_PROBLEM + number)
    image = normalise_image(render(made))
    return Problem(made.question, (image.digest,)), image


def assert_equal(
    found: list[ScoreResult], right: list[ScoreResult], tolerance: float = TRAINED_TWICE
) -> int:
    """Compare all scores and token counts; return how many scores there were."""
    compared = 0
    for mine, theirs in zip(found, right, strict=True):
        values = [score.value for score in theirs.scores]
        assert [s.value for s in mine.scores] == pytest.approx(values, rel=0, abs=tolerance)
        assert (mine.prefix_tokens, mine.step_tokens) == (theirs.prefix_tokens, theirs.step_tokens)
        compared += len(values)
    return compared


def assert_same_tree(found: SearchTree, right: SearchTree) -> None:
    """The same nodes, statuses and answers, and scores that differ by rounding only."""
    assert sorted(record.id for record in found) == sorted(record.id for record in right)
    for record in right:
        twin = found[record.id]
        assert (twin.status, twin.answer) == (record.status, record.answer)
        assert twin.score_reason == record.score_reason == ""
        assert (twin.score is None) == (record.score is None)  # the root has none
        assert (twin.score or 0) == pytest.approx(record.score or 0, rel=0, abs=TRAINED_TWICE)


async def test_scores_equal_the_in_process_scorer(
    prm_server: PrmServer, in_process: TransformersScorer
) -> None:
    rounds = [world_round(number, images=images) for number in range(8) for images in range(4)]
    requests = [request for round_ in rounds for request in round_.requests()]
    async with VllmScorer(prm_server.base_url, options=OPTIONS) as scorer:
        assert scorer.route == "plugin"
        assert scorer.layout == in_process.layout
        found = await scorer.score(requests)
    assert len(requests) >= 200
    assert assert_equal(found, in_process.score_sync(requests)) > 600
    assert scorer.meter.requests <= len(rounds) + 1 + scorer.meter.paths_reasked
    assert scorer.meter.images_sent == len({image.digest for r in rounds for image in r.images})


async def test_a_score_cache_serves_the_server_and_the_process(
    prm_server: PrmServer, in_process: TransformersScorer
) -> None:
    requests, store = world_round(9).requests(), MemoryScoreStore()
    async with VllmScorer(prm_server.base_url, options=OPTIONS) as scorer:
        assert scorer.identity == in_process.identity
        found = await CachedScorer(scorer, store).score(requests)
    cached = CachedScorer(in_process, store)
    assert await cached.score(requests) == found
    assert cached.meter.misses == 0


async def test_hostile_texts_change_nothing(
    prm_server: PrmServer, in_process: TransformersScorer
) -> None:
    requests = [r for number in range(6) for r in hostile_round(number).requests()]
    async with VllmScorer(prm_server.base_url, options=OPTIONS) as scorer:
        found = await scorer.score(requests)
    assert_equal(found, in_process.score_sync(requests), TRAINED_TWICE)


async def test_a_path_that_is_too_long_costs_itself_only(
    prm_server: PrmServer, in_process: TransformersScorer
) -> None:
    round_ = world_round(3, paths=3)
    long = Round(round_.question, round_.images, (("Step 1: black = 2. " * 200,),)).requests()
    requests = [*round_.requests(), *long]
    async with VllmScorer(prm_server.base_url, options=OPTIONS) as scorer:
        *others, failed = await scorer.score(requests)
    assert_equal(others, in_process.score_sync(requests[:-1]))
    assert failed.scores[0].value is None
    assert failed.scores[0].reason.startswith("too_long: ")


async def test_32_searches_at_once_grow_the_trees_of_the_in_process_scorer(
    prm_server: PrmServer, in_process: TransformersScorer, policy: Policy
) -> None:
    problems = [problem(number) for number in range(SEARCHES)]

    async def search(scorer: StepScorer, asked: Problem, image: ImageData) -> SearchTree:
        run = await arun_search(
            asked,
            policy=policy,
            scorer=scorer,
            images=[image],
            strategy=RULES.strategy,
            selector=RULES.selector,
        )
        return run.tree

    jobs = [Job(SearchTree(asked, 0), (image,)) for asked, image in problems]
    right = [run.tree for run in await run_jobs(jobs, policy, in_process, RULES)]
    with Forwarder(prm_server.options.port) as counted:
        async with VllmScorer(counted.url, options=OPTIONS) as scorer:
            found = await asyncio.gather(*(search(scorer, *one) for one in problems))
            for tree, twin in zip(found, right, strict=True):
                assert_same_tree(tree, twin)
            rounds = sum(tree.rounds for tree in found)
            assert scorer.meter.requests <= rounds + 1  # one per problem and round, what it is
            assert scorer.meter.images_sent == SEARCHES
            assert scorer.meter.paths_reasked == 0
        await asyncio.sleep(0.2)
        assert counted.open == 0
        print(f"\n{rounds} rounds over {counted.opened} connections, {counted.most_open} at once")
        assert counted.most_open <= min(SEARCHES, OPTIONS.max_concurrency) + 2
        assert counted.opened < rounds / 2  # they are used again

    async with VllmScorer(prm_server.base_url, options=OPTIONS) as scorer:  # an empty memory
        jobs = [Job(SearchTree(asked, 0), (image,)) for asked, image in problems]
        runs = await run_jobs(jobs, policy, scorer, RULES)
        for run, twin in zip(runs, right, strict=True):
            assert_same_tree(run.tree, twin)


async def test_a_server_killed_in_mid_search_costs_time_and_nothing_else(
    prm_server: PrmServer, in_process: TransformersScorer, policy: Policy
) -> None:
    problems = [problem(number) for number in range(SEARCHES, SEARCHES + 8)]
    jobs = [Job(SearchTree(asked, 0), (image,)) for asked, image in problems]
    right = await run_jobs(jobs, policy, in_process, RULES)
    plain = world_round(60, images=0)
    begun, killed, done = threading.Event(), threading.Event(), threading.Event()

    def heavy(number: int) -> list[ScoreRequest]:
        start = f"Try {number}."  # nothing of it is in the server's cache
        paths = tuple((start, *p * 4, f"{n}") for n in range(24) for p in plain.paths)
        return replace(plain, paths=paths).requests()

    def crash() -> None:
        begun.wait(600)
        while not prm_server.metrics()["num_requests_running"]:  # in the middle of a request
            time.sleep(0.01)
        killed.set()
        prm_server.kill()
        prm_server.ensure_running()
        done.set()

    thread = threading.Thread(target=crash)
    thread.start()
    async with VllmScorer(prm_server.base_url, options=OPTIONS) as scorer:
        jobs = [Job(SearchTree(asked, 0), (image,)) for asked, image in problems]
        asking: list[asyncio.Task[tuple[list[ScoreRequest], list[ScoreResult]]]] = []

        async def ask_until_killed() -> tuple[list[ScoreRequest], list[ScoreResult]]:
            """On a busy machine a request may come and go between two looks at the metrics."""
            for number in itertools.count():
                asked = heavy(number)
                found = await scorer.score(asked)
                if killed.is_set():
                    break
            return asked, found

        def at_the_third_round(event: object) -> None:
            if not asking and any(job.tree.rounds >= 3 for job in jobs):
                asking.append(asyncio.create_task(ask_until_killed()))
                begun.set()

        runs = await run_jobs(jobs, policy, scorer, RULES, on_event=at_the_third_round)
        heavy_ones, cut_off = await asking[0]
        await asyncio.to_thread(thread.join)
        assert scorer.meter.retries >= 1
        assert_equal(cut_off, in_process.score_sync(heavy_ones))
        if not done.is_set() or scorer.meter.server_waits == 0:
            pytest.fail("the searches ended before the server was killed")
        for run, twin in zip(runs, right, strict=True):
            assert_same_tree(run.tree, twin.tree)
        asked, image = problems[0]
        (again,) = await scorer.score([ScoreRequest(asked, ("Step 1: red = 3.",), (image,))])
        assert again.scores[0].value is not None
        assert 0 < scorer.meter.images_resent <= len(problems)  # some searches had ended
