"""What a client does not take is not sent, and what it refuses is not sent again."""

from __future__ import annotations

import warnings
from typing import Any

import httpx
import pytest
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.language_models.fake_chat_models import FakeListChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import RunnableLambda
from pydantic import Field

from tests.policy.models import request
from vprm_search.chat.arguments import refused_argument
from vprm_search.errors import ClientWarning
from vprm_search.policy import ChatModelPolicy, ModelCapabilities, RetryRules

QUICK = RetryRules(first_wait_s=0.001, longest_wait_s=0.002)


class Status(Exception):
    def __init__(self, status_code: int, text: str) -> None:
        super().__init__(text)
        self.status_code = status_code


class Client(BaseChatModel):
    """Notes the arguments of every call and its own fields as they were then."""

    seen: list[dict[str, Any]] = Field(default_factory=list)
    problems: dict[str, Exception] = Field(default_factory=dict)

    @property
    def _llm_type(self) -> str:
        return "noting"

    def _answer(self, stop: Any, sent: dict[str, Any]) -> ChatResult:
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        self.seen.append({"stop": stop, "sent": sent, **fields})
        for name, error in self.problems.items():
            if name in sent or (name == "stop" and stop):
                raise error
        texts = ["A step.", "B step.", "C step."][: sent.get("n", 1)]
        info = {"finish_reason": "stop"}
        replies = [AIMessage(text, response_metadata=info) for text in texts]
        return ChatResult(generations=[ChatGeneration(message=reply) for reply in replies])

    def _generate(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        return self._answer(stop, kwargs)


class Bare(Client):
    """Takes no argument at all."""

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None) -> ChatResult:  # type: ignore[override]
        return self._answer(stop, {})


class Named(Client):
    def _generate(  # type: ignore[override]
        self,
        messages: Any,
        stop: Any = None,
        run_manager: Any = None,
        *,
        max_output_tokens: int = 9,
        seed: int | None = None,
    ) -> ChatResult:
        return self._answer(stop, {"max_output_tokens": max_output_tokens, "seed": seed})


class Predict(Bare):
    """Reads its own fields only, as Ollama's names them."""

    num_predict: int | None = None
    seed: int | None = None
    streaming: bool = True

    def _stream(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("it was asked to stream")
        yield ChatGenerationChunk(message=AIMessage(""))


class Hosted(Predict):
    """As a class of a provider's package, which takes anything and would send it on."""

    def _generate(  # type: ignore[override]
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        assert not kwargs
        return self._answer(stop, kwargs)


Hosted.__module__ = "langchain_ollama.chat_models"


class Ours(Client):
    max_completion_tokens: int | None = 3
    n: int = 1


async def ask(model: Any, n: int = 1, **options: Any) -> list[str]:
    policy = ChatModelPolicy(model, retry=QUICK, max_tokens_per_step=64, **options)
    (row,) = await policy.propose([request("before", n=n)])
    assert not any(p.error for p in row)
    return [p.text for p in row]


async def test_a_class_that_names_its_arguments_gets_those() -> None:
    model = Named()
    await ask(model)
    assert [call["sent"] for call in model.seen] == [{"max_output_tokens": 64, "seed": 100}]


async def test_a_class_without_arguments_gets_none() -> None:
    model = Bare()
    assert await ask(model, 2) == ["A step."] * 2


@pytest.mark.parametrize("model", [Predict(), Hosted()])
async def test_a_class_with_fields_is_asked_through_a_copy(model: Any) -> None:
    await ask(model)
    (call,) = model.seen
    assert (call["num_predict"], call["seed"]) == (64, 100)
    assert call["disable_streaming"] is True
    assert model.num_predict is None  # the user's own is left as it was
    assert model.disable_streaming is False


async def test_any_other_class_gets_its_own_names_both_ways() -> None:
    model = Ours()
    assert await ask(model, 3) == ["A step.", "B step.", "C step."]
    (call,) = model.seen
    assert call["sent"] == {"max_completion_tokens": 64, "n": 3}
    assert call["max_completion_tokens"] == 64
    assert call["n"] == 3


async def test_bound_limits_seeds_and_stop_strings_do_not_collide() -> None:
    model = Ours().bind(max_tokens=5, max_output_tokens=6, stop=["END"], n=2, top_p=0.5)
    await ask(model)
    (call,) = model.bound.seen  # type: ignore[attr-defined]
    assert call["sent"] == {"max_completion_tokens": 64, "n": 1, "top_p": 0.5}
    assert call["stop"] == ["\n\n", "END"]


REFUSALS = {
    "n": [
        TypeError("create() got an unexpected keyword argument 'n'"),
        Status(400, "'n' : number must be at most 1"),
        Status(422, '{"detail":[{"type":"extra_forbidden","loc":["body","n"]}]}'),
        httpx.HTTPStatusError(
            "Client error '422 Unprocessable Entity'",
            request=httpx.Request("POST", "http://127.0.0.1"),
            response=httpx.Response(422, json={"detail": [{"msg": "Extra inputs: 'n'"}]}),
        ),
    ],
    "seed": [
        TypeError("chat() got an unexpected keyword argument 'seed'"),
        Status(400, "groq does not support parameters: ['seed'], for model=x"),
        Status(400, "Unsupported parameter: 'seed'"),
        Status(422, "seed: Extra inputs are not permitted"),
    ],
    "stop": [
        Status(400, "Unsupported parameter: 'stop' is not supported with this model."),
        Status(400, "Argument not supported on this model: stop"),
        Status(400, "Model grok-4 does not support parameter stop."),
    ],
}
CASES = [(name, error) for name, errors in REFUSALS.items() for error in errors]


@pytest.mark.parametrize(("name", "error"), CASES, ids=str)
async def test_what_is_refused_is_left_out_and_said_once(name: str, error: Exception) -> None:
    model = Client(problems={name: error})
    known = ModelCapabilities(many=True, seeds="call")
    policy = ChatModelPolicy(model, retry=QUICK, capabilities=known)
    with pytest.warns(ClientWarning, match=repr(name)) as told:
        rows = await policy.propose([request(n=3), request(n=3)])
    assert len([w for w in told if w.category is ClientWarning]) == 1
    assert [[p.error for p in row] for row in rows] == [[""] * 3] * 2
    assert sum(p.requests for row in rows for p in row) == len(model.seen)
    before = len(model.seen)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ClientWarning)
        await policy.propose([request(n=3)])
    for call in model.seen[before:]:
        assert name not in call["sent"]
        assert not (name == "stop" and call["stop"])


@pytest.mark.parametrize(
    ("refusals", "sent"),
    [
        (["max_tokens"], "max_completion_tokens"),
        (["max_tokens", "max_completion_tokens"], "max_output_tokens"),
        (["max_tokens", "max_completion_tokens", "max_output_tokens", "num_predict"], None),
    ],
)
async def test_a_limit_goes_by_another_name(refusals: list[str], sent: str | None) -> None:
    text = "unexpected keyword argument '{}'"
    model = Client(problems={name: TypeError(text.format(name)) for name in refusals})
    with pytest.warns(ClientWarning):
        await ask(model)
    assert set(model.seen[-1]["sent"]) == ({sent} if sent else set())


async def test_the_name_a_refusal_advises_is_tried_first() -> None:
    text = "Unsupported parameter: 'max_tokens'. Use 'max_new_tokens' instead."
    model = Client(problems={"max_tokens": Status(400, text)})
    with pytest.warns(ClientWarning, match="max_new_tokens is sent instead"):
        await ask(model)
    assert model.seen[-1]["sent"] == {"max_new_tokens": 64}


async def test_a_server_that_continues_nothing_is_asked_for_the_next_step() -> None:
    class Strict(Client):
        def _generate(
            self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
        ) -> ChatResult:
            if "continue_final_message" in kwargs.get("extra_body", {}):
                raise Status(400, "Unrecognized request argument: continue_final_message")
            assert messages[-1].type == "human"
            return self._answer(stop, kwargs)

    with pytest.warns(ClientWarning, match="asking for the next step"):
        await ask(Strict(), capabilities=ModelCapabilities(prefill="server"))
    policy = ChatModelPolicy(
        Strict(), capabilities=ModelCapabilities(prefill="server"), continuation="prefill"
    )
    ((proposal,),) = await policy.propose([request("before")])  # as the user will have it
    assert "use continuation='instruct'" in proposal.error


@pytest.mark.parametrize(
    "error",
    [
        Status(400, "the prompt must not contain a full stop; it is not supported"),
        Status(400, "n: the picture is broken"),
        Status(401, "Unsupported parameter: 'n'"),
        Status(500, "unexpected keyword argument 'n'"),
        Status(400, "This model does not support images"),
        RuntimeError("unexpected keyword argument 'n'"),
    ],
)
def test_other_errors_refuse_no_argument(error: Exception) -> None:
    assert refused_argument(error, ["n", "stop", "seed", "max_tokens", "stream"]) is None


async def test_an_end_nobody_knows_is_said_once_and_is_no_end() -> None:
    class Odd(Client):
        def _answer(self, stop: Any, sent: dict[str, Any]) -> ChatResult:
            reply = AIMessage("The red bar", response_metadata={"finish_reason": "overheated"})
            return ChatResult(generations=[ChatGeneration(message=reply)])

    policy = ChatModelPolicy(Odd())
    with pytest.warns(ClientWarning, match="overheated") as told:
        (row,) = await policy.propose([request(n=2, until="end")])
    assert len(told) == 1
    assert [(p.text, p.finish) for p in row] == [("The red bar", "length")] * 2


async def test_a_client_that_keeps_its_place_in_a_field_is_not_copied() -> None:
    model = FakeListChatModel(responses=["A step.", "B step.", "C step."])
    assert sorted(await ask(model, 3)) == ["A step.", "B step.", "C step."]


async def test_a_client_that_refuses_stream_is_asked_through_a_copy() -> None:
    class Strict(Client):
        def _stream(self, *_: Any, **__: Any) -> Any:
            raise AssertionError("it was asked to stream")
            yield ChatGenerationChunk(message=AIMessage(""))

    model = Strict(problems={"stream": TypeError("unexpected keyword argument 'stream'")})
    with pytest.warns(ClientWarning, match="'stream'"):
        await ask(model)
    assert [call["disable_streaming"] for call in model.seen] == [False, True]


async def test_a_client_with_synchronous_calls_alone_is_asked_in_a_thread() -> None:
    class Synchronous(Client):
        async def _agenerate(self, *_: Any, **__: Any) -> ChatResult:
            raise NotImplementedError

    events = RunnableLambda(lambda _: None, afunc=lambda _: ask(Synchronous(), 2))
    found = [e async for e in events.astream_events(None, version="v2")]
    assert found[-1]["data"]["output"] == ["A step."] * 2


async def test_tokens_for_thinking_come_on_top_of_the_limit() -> None:
    class Thinking(Ours):
        thinking: dict[str, Any]

    model = Thinking(thinking={"type": "enabled", "budget_tokens": 1024})
    await ask(model)
    assert model.seen[0]["max_completion_tokens"] == 64 + 1024
