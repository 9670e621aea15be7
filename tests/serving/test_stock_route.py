"""The route to a vLLM server without our plugin, on a real server with vLLM's own InternVL."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.serving.forwarder import Forwarder
from tests.serving.plain_server import (
    POOLING,
    checkpoint_for_stock_class,
    plain_server,
)
from tests.serving.problems import Round, hostile_round, world_round
from tests.serving.test_client import OPTIONS, RULES, assert_same_tree, problem
from tests.serving.tolerances import TRAINED_TWICE
from vprm_search.cli.options import load_policy
from vprm_search.errors import ConfigError
from vprm_search.graph import run_jobs
from vprm_search.graph.loop import Job
from vprm_search.scoring import TransformersScorer, VllmScorer
from vprm_search.scoring.vllm.stock_prompt import StockPrompts
from vprm_search.tiny.weights import weights_path
from vprm_search.tree import SearchTree
from vprm_search.types import ScoreRequest, ScoreResult

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint_for_stock_class(tmp_path_factory.mktemp("stock"))


@pytest.fixture(scope="module")
def pooling(
    vllm_python: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    log = tmp_path_factory.mktemp("pooling") / "vllm.log"
    with plain_server(vllm_python, checkpoint, "prm", POOLING, log) as address:
        yield address


def honest_requests() -> list[ScoreRequest]:
    rounds = [world_round(number, images=images) for number in range(3) for images in range(4)]
    return [request for round_ in rounds for request in round_.requests()]


def hostile_requests() -> list[ScoreRequest]:
    return [request for number in range(6) for request in hostile_round(number).requests()]


def furthest(found: list[ScoreResult], right: list[ScoreResult]) -> float:
    """Return the largest difference of two scores; every step must have one."""
    differences = [0.0]
    for mine, theirs in zip(found, right, strict=True):
        assert mine.prefix_tokens == theirs.prefix_tokens
        assert mine.step_tokens == theirs.step_tokens
        for score, other in zip(mine.scores, theirs.scores, strict=True):
            assert score.value is not None, score.reason
            assert other.value is not None, other.reason
            differences.append(abs(score.value - other.value))
    return max(differences)


async def test_pooling_equals_the_in_process_scorer(
    pooling: str, in_process: TransformersScorer
) -> None:
    requests = honest_requests()
    async with VllmScorer(pooling, tokenizer=weights_path("prm")) as scorer:
        assert scorer.route == "pooling"
        found = await scorer.score(requests)
        again = await scorer.score(requests)
    assert furthest(found, in_process.score_sync(requests)) <= TRAINED_TWICE
    assert furthest(again, found) <= TRAINED_TWICE
    images = {image.digest for request in requests for image in request.images}
    assert scorer.meter.images_sent == len(images)  # by digest afterwards


async def test_pooling_scores_a_hostile_text_as_the_same_text_made_harmless(
    pooling: str, in_process: TransformersScorer
) -> None:
    requests = hostile_requests()
    prompts = StockPrompts(weights_path("prm"))
    harmless = [
        replace(
            request,
            problem=replace(request.problem, question=prompts.harmless(request.problem.question)),
            steps=tuple(map(prompts.harmless, request.steps)),
        )
        for request in requests
    ]
    assert harmless != requests
    async with VllmScorer(pooling, tokenizer=weights_path("prm")) as scorer:
        found = await scorer.score(requests)
    assert furthest(found, in_process.score_sync(harmless)) <= TRAINED_TWICE


async def test_pooling_sends_unstripped_steps_and_pictures_in_their_places(
    pooling: str, in_process: TransformersScorer
) -> None:
    shown = world_round(7, images=2, paths=2)
    paths = (*shown.paths, (" a ", "\tb\n\n", "\n"), ("", "c"))
    questions = ("Image-1: <image>\nImage-2: <image>\nWhich is higher?", "Which is higher?")
    requests = [r for q in questions for r in Round(q, shown.images, paths).requests()]
    async with VllmScorer(pooling, tokenizer=weights_path("prm")) as scorer:
        found = await scorer.score(requests)
    assert furthest(found, in_process.score_sync(requests)) <= TRAINED_TWICE


async def test_searches_over_connections_that_break_grow_the_trees_of_the_in_process_scorer(
    pooling: str, in_process: TransformersScorer
) -> None:
    problems, policy = [problem(number) for number in range(8)], load_policy("tiny")
    right = await run_jobs(
        [Job(SearchTree(asked, 0), (image,)) for asked, image in problems],
        policy,
        in_process,
        RULES,
    )
    jobs = [Job(SearchTree(asked, 0), (image,)) for asked, image in problems]
    broken: list[int] = []

    def at_each_new_round(event: object) -> None:
        deepest = max(job.tree.rounds for job in jobs)
        if deepest >= 2 and deepest not in broken:
            broken.append(deepest)
            address.cut()

    with Forwarder(int(pooling.rpartition(":")[2])) as address:
        async with VllmScorer(
            address.url, tokenizer=weights_path("prm"), options=OPTIONS
        ) as scorer:
            runs = await run_jobs(jobs, policy, scorer, RULES, on_event=at_each_new_round)
        await asyncio.sleep(0.2)
        assert address.open == 0
    for run, twin in zip(runs, right, strict=True):
        assert_same_tree(run.tree, twin.tree)
    assert len(broken) >= 3
    assert address.most_open <= OPTIONS.max_concurrency + 2
    print(f"\n{scorer.meter.requests} requests, {address.opened} connections")


async def test_without_the_tokenizer_a_stock_server_is_refused_with_a_reason(pooling: str) -> None:
    with pytest.raises(ConfigError, match=r"tokenizer=PATH.*vprm-search serve"):
        await VllmScorer(pooling).connect()


async def test_a_tokenizer_that_is_not_the_served_one_is_refused(
    pooling: str, tmp_path: Path
) -> None:
    other = checkpoint_for_stock_class(tmp_path)
    settings = (other / "vprm.json").read_text()
    (other / "vprm.json").write_text(settings.replace("### Question", "## The question"))
    layout_of_another = VllmScorer(pooling, tokenizer=other, route="pooling")
    await layout_of_another.connect()  # the text of a turn is ours to choose ...
    # ... the tokens around it are not: another number of them, or one other token
    for after_turn, told in ((r"\n- -\n", "counts"), (r"\n\n", "other tokens")):
        changed = settings.replace(r'"after_turn": "\n"', f'"after_turn": "{after_turn}"')
        assert changed != settings
        (other / "vprm.json").write_text(changed)
        with pytest.raises(ConfigError, match=told):
            await VllmScorer(pooling, tokenizer=other).connect()
