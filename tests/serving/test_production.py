"""The whole production set-up on one machine: a vLLM server for each model, and searches.

And the policy alone, on its server: the context is shorter than the answers that are asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import comb
from pathlib import Path
from typing import Any

import httpx
import pytest
from langchain_openai import ChatOpenAI

from tests.serving.plain_server import POLICY, plain_server
from tests.serving.server import PrmServer
from tests.serving.tolerances import TRAINED_TWICE
from vprm_search.budget import Budget
from vprm_search.chat.capabilities import OPEN_SERVER
from vprm_search.cli.options import load_policy
from vprm_search.graph.loop import Job
from vprm_search.graph.parts import SearchRules
from vprm_search.graph.run import SearchRun, run_jobs
from vprm_search.images import normalise_image
from vprm_search.policy import ChatModelPolicy, ModelCapabilities
from vprm_search.scoring import TransformersScorer, VllmOptions, VllmScorer
from vprm_search.search import BeamSearch, BestScore
from vprm_search.tiny.weights import weights_path
from vprm_search.tiny.world import FAMILIES, TinyProblem, generate, render
from vprm_search.tree import SearchTree
from vprm_search.types import (
    ImageData,
    Policy,
    Problem,
    Proposal,
    ProposeRequest,
    ScoreRequest,
    StepScorer,
    Until,
)

pytestmark = pytest.mark.slow

PROBLEMS = 60
FIRST_PROBLEM = 6000
RULES = SearchRules(BeamSearch(width=2, expand=3, max_depth=13), BestScore(), Budget())


CONTEXT = 320
"""Of the policy's server: room for every search here, and less than a policy asks for by itself."""


@pytest.fixture(scope="module")
def policy_server(vllm_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The trained tiny policy as an OpenAI server."""
    log = tmp_path_factory.mktemp("policy") / "vllm.log"
    flags = [*POLICY, "--max-model-len", str(CONTEXT)]
    with plain_server(vllm_python, weights_path("policy"), "policy", flags, log) as address:
        yield address


def problems() -> list[TinyProblem]:
    return [
        generate(FAMILIES[place % 3], "validation", FIRST_PROBLEM + place)
        for place in range(PROBLEMS)
    ]


def picture(problem: TinyProblem) -> ImageData:
    return normalise_image(render(problem))


async def solve(policy: Policy, scorer: StepScorer) -> list[SearchRun]:
    jobs = []
    for problem in problems():
        image = picture(problem)
        asked = Problem(problem.question, (image.digest,))
        jobs.append(Job(SearchTree(asked, 0), (image,)))
    return await run_jobs(jobs, policy, scorer, RULES)


def right_answers(runs: list[SearchRun]) -> list[bool]:
    return [run.result.answer == made.answer for run, made in zip(runs, problems(), strict=True)]


def sign_test(ours: list[bool], theirs: list[bool]) -> float:
    """Return the two-sided exact p-value that paired outcomes differ by chance (McNemar)."""
    pairs = list(zip(ours, theirs, strict=True))
    more, fewer = pairs.count((True, False)), pairs.count((False, True))
    draws = more + fewer
    tail = sum(comb(draws, k) for k in range(min(more, fewer) + 1)) / 2**draws
    return min(1.0, 2 * tail)


def asked_through(policy_server: str, **options: Any) -> ChatOpenAI:
    """Return the policy on its server as a chat model."""
    base_url = f"{policy_server}/v1"
    told: dict[str, Any] = {"model": "policy", "base_url": base_url, "api_key": "none"}
    return ChatOpenAI(**told, temperature=0.7, max_retries=0, **options)


async def test_two_servers_solve_as_many_problems_as_two_models_in_process(
    prm_server: PrmServer, policy_server: str, in_process: TransformersScorer
) -> None:
    model = asked_through(policy_server)
    # the tiny policy was never taught to follow an instruction
    policy = ChatModelPolicy(
        model,
        instruction="",
        max_tokens_per_step=48,
        max_tokens_total=160,
        max_concurrency=64,  # one step of the server for all: half of its time at 16
    )
    assert policy.capabilities.prefill == "server"
    async with VllmScorer(prm_server.base_url, options=VllmOptions(timeout_s=300)) as scorer:
        served = await solve(policy, scorer)
        assert scorer.meter.images_sent == PROBLEMS
    local = await solve(load_policy("tiny", temperature=0.7), in_process)

    for run in served:
        assert not [record.reason for record in run.tree if record.status == "failed"]
    ours, theirs = right_answers(served), right_answers(local)
    print(f"\nright answers: {sum(ours)} served, {sum(theirs)} in process, of {PROBLEMS}")
    assert sign_test(ours, theirs) > 0.01
    assert sum(ours) > PROBLEMS / 2

    compared = 0
    for run, made in zip(served, problems(), strict=True):
        compared += assert_scored_alike(run.tree, picture(made), in_process)
    assert compared > 10 * PROBLEMS


def assert_scored_alike(tree: SearchTree, image: ImageData, scorer: TransformersScorer) -> int:
    """Score every leaf's path again in this process; return how many steps were compared."""
    leaves = [r.id for r in tree if r.text and not tree.children(r.id)]
    requests = [ScoreRequest(tree.problem, tree.steps(leaf), (image,)) for leaf in leaves]
    compared = 0
    for leaf, result in zip(leaves, scorer.score_sync(requests), strict=True):
        path = [record for record in tree.path(leaf) if record.text]
        for record, score in zip(path, result.scores, strict=True):
            assert record.score == pytest.approx(score.value, rel=0, abs=TRAINED_TWICE)
            compared += 1
    return compared


def test_the_sign_test_tells_chance_from_a_difference() -> None:
    same = [True, False] * 30
    assert sign_test(same, same) == 1.0
    assert sign_test([True] * 20 + same, [False] * 20 + same) < 1e-5
    assert sign_test([True, True, False], [False, True, True]) == 1.0


# --- the policy alone -----------------------------------------------------------------------------


def asking_policy(
    policy_server: str, capabilities: ModelCapabilities | None = None
) -> tuple[ChatModelPolicy, list[int]]:
    """Return a policy with its defaults, and the statuses of its calls so far."""
    statuses: list[int] = []

    async def note(response: httpx.Response) -> None:
        if response.request.method == "POST":
            statuses.append(response.status_code)

    client = httpx.AsyncClient(event_hooks={"response": [note]}, timeout=300)
    model = asked_through(policy_server, http_async_client=client)
    return ChatModelPolicy(model, instruction="", capabilities=capabilities), statuses


async def proposed(policy: ChatModelPolicy, number: int, until: Until, *steps: str) -> Any:
    made = generate("tiles", "validation", number)
    image = normalise_image(render(made))
    problem = Problem(made.question, (image.digest,))
    seeds = tuple(range(10 * number, 10 * number + 4))
    (row,) = await policy.propose([ProposeRequest(problem, steps, seeds, until, (image,))])
    return row


def assert_written(row: list[Proposal]) -> None:
    assert [p.error for p in row] == [""] * len(row)
    assert all(p.text and p.finish in ("stop", "step", "length") for p in row)


async def test_vllm_is_recognised_and_no_call_is_refused(policy_server: str) -> None:
    ours, statuses = asking_policy(policy_server)
    for number in range(3):
        assert_written(await proposed(ours, 6000 + number, "end"))
    assert ours.capabilities.prefill == "server"
    assert ours.capabilities.context_tokens == CONTEXT
    first = (await proposed(ours, 6000, "step"))[0].text
    assert_written(await proposed(ours, 6000, "step", first))
    assert set(statuses) == {200}


async def test_the_context_is_read_from_the_refusal_once(policy_server: str) -> None:
    """Told what the server can do, the policy does not ask it what it is."""
    ours, statuses = asking_policy(policy_server, OPEN_SERVER)
    for number in range(3):
        row = await proposed(ours, 6000 + number, "end")
        assert_written(row)
        assert row[0].requests == (2 if number == 0 else 1)
    first = (await proposed(ours, 6000, "step"))[0].text
    assert_written(await proposed(ours, 6000, "step", first))
    assert statuses.count(400) == 1


async def test_a_prompt_that_fills_the_context_is_an_error_that_says_so(policy_server: str) -> None:
    for capabilities in (None, OPEN_SERVER):
        ours, statuses = asking_policy(policy_server, capabilities)
        row = await proposed(ours, 6000, "end", "Count the tiles. " * 400)
        assert {p.finish for p in row} == {"error"}
        assert "no room for an answer" in row[0].error
        assert len(statuses) <= 3
        assert_written(await proposed(ours, 6001, "end"))
