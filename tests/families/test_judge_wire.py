"""A judge behind an OpenAI-compatible server: langchain's real client, over a real socket."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from tests.policy.openai_server import Body, Failure, Server, serving
from tests.scoring.test_oracle import picture
from vprm_search.chat.calls import RetryRules
from vprm_search.scoring.judge_scorer import JudgeScorer
from vprm_search.types import Problem, ScoreRequest

QUICK = RetryRules(max_attempts=3, first_wait_s=0.01, longest_wait_s=0.02, timeout_s=10)
KEY = "sk-test-0123456789abcdef"
IMAGE = picture(0, 40, 30)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(lambda body, child: "yes") as server:
        yield server


def judge(server: Server, **options: Any) -> JudgeScorer:
    model = ChatOpenAI(
        model="judge",
        api_key=SecretStr(KEY),
        base_url=server.url,
        max_retries=0,
        # Clients of this test alone, and without certificates to load.
        http_client=openai.DefaultHttpxClient(verify=False),
        http_async_client=openai.DefaultAsyncHttpxClient(verify=False),
    )
    return JudgeScorer(model, retry=QUICK, **options)


def request(*steps: str) -> ScoreRequest:
    return ScoreRequest(Problem("What is shown?", (IMAGE.digest,)), steps, (IMAGE,))


def with_logprobs(server: Server, options: dict[str, float]) -> None:
    plain = server.answer

    def answer(body: Body) -> Body:
        reply = plain(body)
        listed = [{"token": t, "logprob": math.log(p), "bytes": None} for t, p in options.items()]
        content = [{**listed[0], "top_logprobs": listed}]
        reply["choices"][0]["logprobs"] = {"content": content, "refusal": None}
        return reply

    server.answer = answer  # type: ignore[method-assign]


async def test_token_probabilities_on_the_wire(server: Server) -> None:
    with_logprobs(server, {"Yes": 0.5, " yes": 0.1, "no": 0.2, "NO": 0.1, "So": 0.05})
    [result] = await judge(server).score([request("a red bar", "so 3")])
    assert [s.value for s in result.scores] == [pytest.approx(0.6 / 0.9)] * 2
    assert len(server.bodies) == 2
    for body in server.bodies:
        assert body["logprobs"] is True
        assert body["top_logprobs"] == 20
        blocks = body["messages"][-1]["content"]
        address = blocks[0]["image_url"]["url"]
        assert base64.b64decode(address.removeprefix("data:image/png;base64,")) == IMAGE.png
        assert "FENCE" in blocks[1]["text"]
    assert result.cost.tokens_sent == 80


async def test_structured_verdicts_where_probabilities_are_refused(server: Server) -> None:
    server.solve = lambda body, child: json.dumps({"reason": "it is", "correct": True})
    server.failures = lambda number, body: (
        Failure(400, text="logprobs are not supported") if "logprobs" in body else None
    )
    scorer = judge(server, samples=2)
    [result] = await scorer.score([request("a red bar")])
    assert [s.value for s in result.scores] == [1.0]
    assert scorer.mode == "verdict"
    schema = server.bodies[-1]["response_format"]["json_schema"]["schema"]
    assert set(schema["properties"]) == {"reason", "correct"}


async def test_a_server_that_asks_for_patience_and_one_that_is_broken(server: Server) -> None:
    with_logprobs(server, {"no": 0.9, "yes": 0.1})
    server.failures = lambda number, body: (
        Failure(429, {"retry-after": "0.01"}) if number == 0 else None
    )
    [result] = await judge(server).score([request("a red bar")])
    assert [s.value for s in result.scores] == [pytest.approx(0.1)]
    server.failures = lambda number, body: Failure(500, text=f"{KEY} at https://me:word@host")
    [result] = await judge(server).score([request("a red bar")])
    assert result.scores[0].value is None
    assert result.scores[0].reason.startswith("server_error: HTTP 500")
    assert KEY not in result.scores[0].reason
    assert "me:word" not in result.scores[0].reason
