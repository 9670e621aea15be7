"""The adapter with LangChain's real OpenAI client, against a scripted server on this machine."""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import openai
import pytest
from langchain_core.runnables import RunnableLambda
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from tests.policy.models import RED, request
from tests.policy.openai_server import Body, Failure, Server, serving
from vprm_search.graph import arun_search, run_search
from vprm_search.policy import ChatModelPolicy, ModelCapabilities, RetryRules
from vprm_search.search import BestOfN, MajorityVote
from vprm_search.types import Until

KEY = "vprm-canary-key-0123456789"
STEPS = ["Step 1: a = 1.", "Step 2: b = 2.", "Step 3: 1 + 2 = 3. Answer: 3"]


def solve(body: Body, child: int) -> str:
    """Write the solution from where the partial answer ends, or from its start."""
    last = body["messages"][-1]
    done = 0
    if last["role"] == "assistant" and body.get("continue_final_message"):
        done = sum(bool(part) for part in last["content"].split("\n\n"))
    left = [f"{step} (child {child})" if i == done else step for i, step in enumerate(STEPS)][done:]
    return "\n\n".join(left)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(solve) as server:
        yield server


def client(server: Server, **options: Any) -> ChatOpenAI:
    return ChatOpenAI(
        model="tiny",
        api_key=SecretStr(KEY),
        base_url=server.url,
        max_retries=0,
        # Clients of this test alone, and without certificates to load.
        http_client=openai.DefaultHttpxClient(verify=False),
        http_async_client=openai.DefaultAsyncHttpxClient(verify=False),
        **options,
    )


def quick(**rules: Any) -> RetryRules:
    return RetryRules(**{"first_wait_s": 0.01, "longest_wait_s": 0.02, **rules})


@pytest.mark.parametrize(
    ("own", "bound", "temperature_scale", "sent"),
    [
        (0.8, None, 1.5, 1.2),
        (0.8, 0.4, 1.5, 0.6),
        (1.5, None, 1.5, 2.0),  # the interface's highest
        (None, None, 1.5, None),  # the server's own temperature is not known
        (0.8, None, 1.0, 0.8),
    ],
)
async def test_a_scale_multiplies_the_temperature(
    server: Server,
    own: float | None,
    bound: float | None,
    temperature_scale: float,
    sent: float | None,
) -> None:
    model: Any = client(server, temperature=own)
    model = model if bound is None else model.bind(temperature=bound)
    await ChatModelPolicy(model).propose(
        [replace(request("Step 1: a = 1.", n=1), temperature_scale=temperature_scale)]
    )
    (body,) = server.bodies
    assert body.get("temperature") == (None if sent is None else pytest.approx(sent))


async def test_a_step_on_the_wire(server: Server) -> None:
    model = client(server, extra_body={"top_k": 20}, temperature=0.9)
    policy = ChatModelPolicy(model, max_tokens_per_step=64, instruction="Think.")
    (row,) = await policy.propose([request("Step 1: a = 1.", n=3, images=(RED,))])
    assert [(p.text, p.finish) for p in row] == [
        (f"Step 2: b = 2. (child {i})", "step") for i in range(3)
    ]
    (body,) = server.bodies
    assert body["n"] == 3
    assert body["stop"] == ["\n\n"]
    assert body["max_completion_tokens"] == 64
    assert body["seed"] == 100
    assert body["temperature"] == 0.9
    assert body["continue_final_message"] is True
    assert body["add_generation_prompt"] is False
    assert body["include_stop_str_in_output"] is True
    assert body["top_k"] == 20
    assert not body.get("stream")
    user, assistant = body["messages"]
    image, text = user["content"]
    assert image["type"] == "image_url"
    url = image["image_url"]["url"]
    assert url.startswith("data:image/png;base64,")
    assert base64.b64decode(url.partition(",")[2]) == RED.png
    assert text == {"type": "text", "text": "How many?\n\nThink."}
    assert assistant == {"role": "assistant", "content": "Step 1: a = 1.\n\n"}


async def test_the_first_step_is_no_continuation(server: Server) -> None:
    (row,) = await ChatModelPolicy(client(server)).propose([request(n=2)])
    assert [p.text for p in row] == [f"Step 1: a = 1. (child {i})" for i in range(2)]
    assert "continue_final_message" not in server.bodies[0]
    assert server.bodies[0]["include_stop_str_in_output"] is True


async def test_usage_of_a_call_is_counted_once(server: Server) -> None:
    (row,) = await ChatModelPolicy(client(server)).propose([request(n=4)])
    assert [p.prompt_tokens for p in row] == [40, 0, 0, 0]
    assert [p.requests for p in row] == [1, 0, 0, 0]
    words = len(["Step", "1:", "a", "=", "1.", "(child", "0)"])
    assert sum(p.generated_tokens for p in row) == 4 * words
    assert [p.generated_tokens for p in row] == [words] * 4


async def test_a_step_is_told_from_the_end(server: Server) -> None:
    """Both end with finish_reason "stop"; only the kept stop string tells them apart."""
    server.solve = lambda body, child: "Step 2" if child else "Step 2\n\nStep 3"
    (row,) = await ChatModelPolicy(client(server)).propose([request("Step 1", n=2)])
    assert [(p.text, p.finish) for p in row] == [("Step 2", "step"), ("Step 2", "stop")]


async def test_a_server_that_does_not_keep_stop_strings(server: Server) -> None:
    """No suffix was ever seen, so its absence proves nothing: a final answer decides."""
    server.solve = lambda body, child: ["Step 2", "so Answer: 3"][child]
    (row,) = await ChatModelPolicy(client(server)).propose([request("Step 1", n=2)])
    assert [p.finish for p in row] == ["step", "stop"]


async def test_the_end_of_the_solution_after_its_last_step(server: Server) -> None:
    policy = ChatModelPolicy(client(server))
    await policy.propose([request()])
    server.solve = lambda body, child: ""
    ((proposal,),) = await policy.propose([request(*STEPS)])
    assert (proposal.text, proposal.finish) == ("", "stop")


async def test_a_whole_solution(server: Server) -> None:
    policy = ChatModelPolicy(client(server), max_tokens_total=900)
    ((proposal,),) = await policy.propose([request(STEPS[0], until="end")])
    assert (proposal.text, proposal.finish) == (f"{STEPS[1]} (child 0)\n\n{STEPS[2]}", "stop")
    assert "stop" not in server.bodies[0]
    assert server.bodies[0]["max_completion_tokens"] == 900
    assert server.bodies[0]["continue_final_message"] is True


async def test_the_token_limit_is_no_end(server: Server) -> None:
    policy = ChatModelPolicy(client(server), max_tokens_per_step=3, max_tokens_total=3)
    server.solve = lambda body, child: "Step 1: far too long for three words"
    untils: tuple[Until, ...] = ("step", "end")
    for until in untils:
        ((proposal,),) = await policy.propose([request(until=until)])
        assert (proposal.text, proposal.finish) == ("Step 1: far", "length")


async def test_a_template_that_trims_the_partial_answer(server: Server) -> None:
    server.solve = lambda body, child: "\n\n" + solve(body, child)
    policy = ChatModelPolicy(client(server))
    (row,) = await policy.propose([request(STEPS[0], n=2)])
    assert [p.text for p in row] == [f"Step 2: b = 2. (child {i})" for i in range(2)]
    assert [p.requests for p in row] == [2, 0]
    assert "stop" not in server.bodies[1]


async def test_instruct_instead_of_prefill(server: Server) -> None:
    server.solve = lambda body, child: "Step 2: b = 2."
    policy = ChatModelPolicy(client(server), continuation="instruct")
    ((proposal,),) = await policy.propose([request(STEPS[0])])
    assert (proposal.text, proposal.finish) == ("Step 2: b = 2.", "step")
    (body,) = server.bodies
    assert [m["role"] for m in body["messages"]] == ["user"]
    assert "continue_final_message" not in body
    assert "include_stop_str_in_output" not in body
    assert STEPS[0] in body["messages"][0]["content"]


# --- what the server is, and how long its context ------------------------------------------------

OWNERS = ["vllm", "sglang"]


def card(owner: str, **more: Any) -> Body:
    return {"id": "tiny", "object": "model", "created": 1, "owned_by": owner, **more}


@pytest.mark.parametrize("owner", [*OWNERS, "library"])
async def test_servers_that_continue_are_recognised_wherever_they_run(
    server: Server, owner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hosting service, by its address, and a server of one's own, by what it says."""
    monkeypatch.setattr("vprm_search.chat.capabilities._HOSTED", ("127.0.0.1",))
    server.models = [card("somebody") | {"id": "other"}, card(owner)]
    policy = ChatModelPolicy(client(server))
    assert policy.capabilities.prefill == "none"
    rows = await policy.propose([request(STEPS[0]) for _ in range(5)])
    recognised = owner in OWNERS
    assert policy.capabilities.prefill == ("server" if recognised else "none")
    for body in server.bodies:
        assert body.get("continue_final_message", False) is recognised
        assert body.get("add_generation_prompt", True) is not recognised
        assert body.get("include_stop_str_in_output", False) is (owner == "vllm")
        assert body.get("no_stop_trim", False) is (owner == "sglang")
        roles = [message["role"] for message in body["messages"]]
        assert roles == (["user", "assistant"] if recognised else ["user"])
    assert {proposal.finish for (proposal,) in rows} == {"step"}
    await policy.propose([request(STEPS[0])])
    assert server.listings == 1


@pytest.mark.parametrize("models", [None, [], [{"id": "x"}], [card("vllm", max_model_len="2k")]])
async def test_a_server_that_says_nothing_is_asked_once(server: Server, models: Any) -> None:
    server.models = models
    policy = ChatModelPolicy(client(server))
    for _ in range(2):
        (row,) = await policy.propose([request(STEPS[0], n=2)])
        assert {proposal.finish for proposal in row} == {"step"}
    assert policy.capabilities.prefill == "server"  # by its address
    assert policy.capabilities.context_tokens is None
    assert server.listings == 1


async def test_what_the_user_says_is_not_asked(server: Server) -> None:
    server.models = [card("vllm", max_model_len=100)]
    policy = ChatModelPolicy(client(server), capabilities=ModelCapabilities(), continuation="auto")
    await policy.propose([request(STEPS[0])])
    assert server.listings == 0
    instructed = ChatModelPolicy(client(server), continuation="instruct")
    await instructed.propose([request(STEPS[0])])
    assert [message["role"] for message in server.bodies[-1]["messages"]] == ["user"]


WORDS: dict[str, tuple[int, str]] = {
    "vLLM": (
        400,
        "max_tokens is too large: {asked}. This model's maximum context length is {window} tokens "
        "and your request has {prompt} input tokens ({asked} > {window} - {prompt}). None",
    ),
    "vLLM 0.32": (
        400,
        "max_completion_tokens={asked} cannot be greater than max_model_len=max_total_tokens="
        "{window}. Please request fewer output tokens.",
    ),
    "SGLang": (
        400,
        "Requested token count exceeds the model's maximum context length of {window} tokens. You "
        "requested a total of 0 tokens: {prompt} tokens from the input messages and {asked} tokens "
        "for the completion.",
    ),
    "OpenAI": (
        400,
        "This model's maximum context length is {window} tokens. However, you requested 0 tokens "
        "({prompt} in the messages, {asked} in the completion).",
    ),
    "TGI": (
        422,
        "Input validation error: `inputs` tokens + `max_new_tokens` must be <= {window}. Given: "
        "{prompt} `inputs` tokens and {asked} `max_new_tokens`",
    ),
    "answer": (
        400,
        "max_tokens is too large: {asked}. This model supports at most {most} completion tokens, "
        "whereas you provided {asked}.",
    ),
    "no number": (400, "max_tokens is too large for this model"),
}


def refusing(words: str, window: int, prompt: int) -> Callable[[int, Body], Failure | None]:
    """Return a server's rule: what does not fit into its context is refused, in these words."""

    def failure(number: int, body: Body) -> Failure | None:
        asked = body["max_completion_tokens"]
        if asked + prompt < window:
            return None
        status, text = WORDS[words]
        most = window - prompt - 1
        return Failure(
            status, text=text.format(asked=asked, window=window, prompt=prompt, most=most)
        )

    return failure


@pytest.mark.parametrize("words", list(WORDS))
@pytest.mark.parametrize("until", ["step", "end"])
async def test_a_short_context_is_learnt_once(server: Server, words: str, until: Until) -> None:
    server.failures = refusing(words, window=300, prompt=40)
    policy = ChatModelPolicy(client(server), retry=quick())
    (row,) = await policy.propose([request(n=3, until=until)])
    assert {p.error for p in row} == {""}
    refused = len(server.bodies) - 1
    assert refused == 1 or words in ("no number", "vLLM 0.32")
    assert refused <= 6
    assert [p.requests for p in row] == [refused + 1, 0, 0]
    for _ in range(3):
        (row,) = await policy.propose([request(n=3, until=until)])
        assert {p.error for p in row} == {""}
    assert len(server.bodies) == refused + 4
    if words in ("vLLM", "SGLang", "OpenAI", "TGI", "answer"):
        assert server.bodies[-1]["max_completion_tokens"] == 259


@pytest.mark.parametrize("asynchronous", [True, False])
async def test_best_of_n_at_a_server_with_a_short_context_has_answers(
    server: Server, asynchronous: bool
) -> None:
    server.failures = refusing("vLLM", window=200, prompt=40)
    policy = ChatModelPolicy(client(server))
    search: Any = {
        "policy": policy, "scorer": None, "strategy": BestOfN(8), "selector": MajorityVote(),
    }  # fmt: skip
    if asynchronous:
        result = (await arun_search("1 + 2?", **search)).result
    else:
        result = (await asyncio.to_thread(run_search, "1 + 2?", **search)).result
    assert result.answer == "3"
    assert len(server.bodies) == 2


async def test_the_listed_context_saves_the_refusal(server: Server) -> None:
    server.models = [card("vllm", max_model_len=200)]
    server.failures = refusing("no number", window=200, prompt=40)
    policy = ChatModelPolicy(client(server))
    untils: tuple[Until, ...] = ("end", "step")
    for until in untils:
        (row,) = await policy.propose([request(n=2, until=until)])
        assert {p.error for p in row} == {""}
    assert len(server.bodies) == 2


async def test_a_prompt_longer_than_the_context_says_so(server: Server) -> None:
    server.failures = refusing("vLLM", window=300, prompt=400)
    policy = ChatModelPolicy(client(server))
    ((proposal,),) = await policy.propose([request()])
    assert "no room for an answer" in proposal.error
    assert "maximum context length is 300" in proposal.error
    assert len(server.bodies) == 1
    server.failures = lambda number, body: None
    await policy.propose([request()])
    assert server.bodies[-1]["max_completion_tokens"] >= 16


async def test_a_server_that_refuses_ever_more_is_given_up(server: Server) -> None:
    text = "This model's maximum context length is {} tokens."
    server.failures = lambda number, body: Failure(400, text=text.format(3000 - 20 * number))
    ((proposal,),) = await ChatModelPolicy(client(server)).propose([request(until="end")])
    assert proposal.finish == "error"
    assert len(server.bodies) == proposal.requests == 17


async def test_a_hanging_list_of_models_takes_none_of_the_time(server: Server) -> None:
    """A search of one second does not wait five for it."""
    server.models_hang = True
    loop = asyncio.get_running_loop()
    started = loop.time()
    policy = ChatModelPolicy(client(server))
    asked = replace(request(), timeout_s=0.3)
    ((proposal,),) = await asyncio.wait_for(policy.propose([asked]), 4)
    assert proposal.out_of_time
    assert loop.time() - started < 4


# --- failures ------------------------------------------------------------------------------------


async def test_too_many_requests_waits_as_told(server: Server) -> None:
    server.failures = lambda number, body: (
        Failure(429, {"Retry-After": "0.2"}) if number == 0 else None
    )
    loop = asyncio.get_running_loop()
    start = loop.time()
    ((proposal,),) = await ChatModelPolicy(client(server), retry=quick()).propose([request()])
    assert proposal.finish == "step"
    assert proposal.requests == 2
    assert loop.time() - start >= 0.2  # a lower bound: the server's wish, not a speed


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503])
async def test_transient_statuses_are_repeated(server: Server, status: int) -> None:
    server.failures = lambda number, body: Failure(status) if number < 2 else None
    ((proposal,),) = await ChatModelPolicy(client(server), retry=quick()).propose([request()])
    assert (proposal.finish, proposal.requests) == ("step", 3)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
async def test_final_statuses_are_not(server: Server, status: int) -> None:
    server.failures = lambda number, body: Failure(status)
    (row,) = await ChatModelPolicy(client(server), retry=quick()).propose([request("a", n=3)])
    assert [p.finish for p in row] == ["error"] * 3
    assert [p.requests for p in row] == [1, 0, 0]
    assert str(status) in row[0].error
    assert ("instruct" in row[0].error) is (status in (400, 422))


async def test_a_hanging_server_costs_its_candidates_only(server: Server) -> None:
    server.failures = lambda number, body: Failure(0) if "hang" in str(body["messages"]) else None
    policy = ChatModelPolicy(client(server), retry=quick(timeout_s=3, max_attempts=1))
    rows = await asyncio.wait_for(
        policy.propose([request(n=2), request(n=2, question="hang"), request(n=2)]), 30
    )
    assert [[p.finish for p in row] for row in rows] == [["step"] * 2, ["error"] * 2, ["step"] * 2]
    assert "time limit" in rows[1][0].error
    assert rows[1][0].requests == 1


async def test_one_failing_call_of_many_costs_its_candidates_only(server: Server) -> None:
    server.failures = lambda number, body: Failure(500) if "q3" in str(body["messages"]) else None
    policy = ChatModelPolicy(client(server), retry=quick())
    rows = await policy.propose([request(n=2, question=f"q{i}") for i in range(6)])
    assert [{p.finish for p in row} for row in rows] == [
        {"error"} if i == 3 else {"step"} for i in range(6)
    ]


async def test_a_server_that_is_not_there(server: Server) -> None:
    server.url = "http://127.0.0.1:9/v1"
    ((proposal,),) = await ChatModelPolicy(client(server), retry=quick()).propose([request()])
    assert (proposal.finish, proposal.requests) == ("error", 4)


async def test_the_key_is_sent_to_the_server_and_said_nowhere(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "vprm_search")
    server.failures = lambda number, body: Failure(401, text=f"Incorrect API key: {KEY}")
    policy = ChatModelPolicy(client(server), retry=quick())
    ((proposal,),) = await policy.propose([request()])
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    assert "Incorrect API key" in proposal.error
    assert KEY not in proposal.error + repr(policy) + str(policy.__dict__) + caplog.text


async def test_a_streaming_caller_changes_nothing(server: Server) -> None:
    """Inside `astream_events`, LangChain would stream the calls and lose `n`."""
    policy = ChatModelPolicy(client(server))
    found: list[Any] = []

    async def run(_: Any) -> None:
        found.extend(await policy.propose([request(n=3)]))

    chain = RunnableLambda(lambda _: None, afunc=run)
    events = [e async for e in chain.astream_events(None, version="v2")]
    assert len(found[0]) == 3
    assert len(server.bodies) == 1
    assert not server.bodies[0].get("stream")
    assert "on_chat_model_start" in {e["event"] for e in events}
