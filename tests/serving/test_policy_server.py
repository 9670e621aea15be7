"""A policy on a vLLM server whose context is shorter than the answers that are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from langchain_openai import ChatOpenAI

from tests.serving.plain_server import POLICY, plain_server
from vprm_search.chat.capabilities import OPEN_SERVER
from vprm_search.images import normalise_image
from vprm_search.policy import ChatModelPolicy, ModelCapabilities
from vprm_search.tiny.weights import weights_path
from vprm_search.tiny.world import generate, render
from vprm_search.types import Problem, Proposal, ProposeRequest, Until

pytestmark = pytest.mark.slow

CONTEXT = 320


@pytest.fixture(scope="module")
def address(vllm_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The trained tiny policy with a context of 320 tokens."""
    log = tmp_path_factory.mktemp("policy") / "vllm.log"
    flags = [*POLICY, "--max-model-len", str(CONTEXT)]
    with plain_server(vllm_python, weights_path("policy"), "policy", flags, log) as address:
        yield address


def policy(
    address: str, capabilities: ModelCapabilities | None = None
) -> tuple[ChatModelPolicy, list[int]]:
    """Return a policy with its defaults, and the statuses of its calls so far."""
    statuses: list[int] = []

    async def note(response: httpx.Response) -> None:
        if response.request.method == "POST":
            statuses.append(response.status_code)

    model = ChatOpenAI(
        model="policy",
        base_url=f"{address}/v1",
        api_key="none",  # type: ignore[arg-type]
        temperature=0.7,
        max_retries=0,
        http_async_client=httpx.AsyncClient(event_hooks={"response": [note]}, timeout=300),
    )
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


async def test_vllm_is_recognised_and_no_call_is_refused(address: str) -> None:
    ours, statuses = policy(address)
    for number in range(3):
        assert_written(await proposed(ours, 6000 + number, "end"))
    assert ours.capabilities.prefill == "server"
    assert ours.capabilities.context_tokens == CONTEXT
    first = (await proposed(ours, 6000, "step"))[0].text
    assert_written(await proposed(ours, 6000, "step", first))
    assert set(statuses) == {200}


async def test_the_context_is_read_from_the_refusal_once(address: str) -> None:
    """Told what the server can do, the policy does not ask it what it is."""
    ours, statuses = policy(address, OPEN_SERVER)
    for number in range(3):
        row = await proposed(ours, 6000 + number, "end")
        assert_written(row)
        assert row[0].requests == (2 if number == 0 else 1)
    first = (await proposed(ours, 6000, "step"))[0].text
    assert_written(await proposed(ours, 6000, "step", first))
    assert statuses.count(400) == 1


async def test_a_prompt_that_fills_the_context_is_an_error_that_says_so(address: str) -> None:
    for capabilities in (None, OPEN_SERVER):
        ours, statuses = policy(address, capabilities)
        row = await proposed(ours, 6000, "end", "Count the tiles. " * 400)
        assert {p.finish for p in row} == {"error"}
        assert "no room for an answer" in row[0].error
        assert len(statuses) <= 3
        assert_written(await proposed(ours, 6001, "end"))
