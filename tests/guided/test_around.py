"""What LangChain puts around a chat model works around a guided one."""

from __future__ import annotations

import time
from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.chat_history import InMemoryChatMessageHistory
from langchain_core.globals import set_llm_cache
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langchain_core.rate_limiters import BaseRateLimiter
from langchain_core.runnables import ConfigurableField
from langchain_core.runnables.history import RunnableWithMessageHistory
from langchain_openai import ChatOpenAI

from tests.guided.parts import Traces, by_words, guided, in_turn
from tests.guided.tool_server import serving
from vprm_search import BestOfN, BestScore, Budget, GuidedChatModel
from vprm_search.errors import SearchWarning
from vprm_search.testing import ScriptedChatModel, ScriptedScorer, http_error

FAILS = http_error(400, "no such model")
HTTPError = type(FAILS)


class Busy(Exception):
    """What a client raises at its limit of requests."""


# --- fallbacks and retries ---


@pytest.mark.parametrize("way", ["invoke", "stream", "ainvoke", "astream"])
async def test_a_fallback_takes_over_from_it_and_it_from_another(way: str) -> None:
    broken, model = guided(FAILS), guided("good", "bad")
    plain = ScriptedChatModel(in_turn([FAILS]))
    for chain in (broken.with_fallbacks([model]), plain.with_fallbacks([model])):
        if way == "invoke":
            said = chain.invoke("Why?").text
        elif way == "stream":
            said = "".join(str(piece.text) for piece in chain.stream("Why?"))
        elif way == "ainvoke":
            said = (await chain.ainvoke("Why?")).text
        else:
            said = "".join([str(piece.text) async for piece in chain.astream("Why?")])
        assert said == "good"


def test_a_fallback_may_be_for_the_clients_own_error_alone() -> None:
    broken, model = guided(Busy("later")), guided("good", "bad")
    with pytest.warns(SearchWarning):
        assert (
            broken.with_fallbacks([model], exceptions_to_handle=(Busy,)).invoke("?").text == "good"
        )
    with pytest.warns(SearchWarning), pytest.raises(Busy):
        broken.with_fallbacks([model], exceptions_to_handle=(OSError,)).invoke("?")


@pytest.mark.parametrize("sync", [True, False])
async def test_a_retry_searches_again(*, sync: bool) -> None:
    policy = ScriptedChatModel([Busy("later"), Busy("later"), "good", "bad"])
    model = guided("unused", policy=policy, strategy=BestOfN(2))
    chain = model.with_retry(
        retry_if_exception_type=(Busy,), stop_after_attempt=2, wait_exponential_jitter=False
    )
    with pytest.warns(SearchWarning):
        message = chain.invoke("Why?") if sync else await chain.ainvoke("Why?")
    assert message.text == "good"
    assert len(policy.calls) == 4


# --- configuration ---


def test_its_fields_are_configurable() -> None:
    model = guided("good", "bad", budget=Budget(seconds=60)).configurable_fields(
        strategy=ConfigurableField(id="strategy"),
        temperature=ConfigurableField(id="heat"),
        run_seed=ConfigurableField(id="seed"),
    )
    told = model.invoke("Why?").response_metadata["vprm"]
    assert told["usage"]["candidates"] == 2
    config: Any = {"configurable": {"strategy": BestOfN(4), "heat": 0.9, "seed": 7}}
    message = model.invoke("Why?", config)
    other = message.response_metadata["vprm"]
    assert other["usage"]["candidates"] == 4
    assert other["node"] != told["node"]
    assert model.default.policy.calls[-1].options["temperature"] == 0.9


def test_it_is_an_alternative_and_has_some() -> None:
    plain = ScriptedChatModel("plain")
    which = ConfigurableField(id="model")
    model = guided("good", "bad").configurable_alternatives(
        which, default_key="guided", plain=plain
    )
    assert model.invoke("Why?").text == "good"
    assert model.with_config(configurable={"model": "plain"}).invoke("Why?").text == "plain"


def test_a_configured_name_tags_and_bound_arguments_reach_its_run() -> None:
    traces = Traces()
    model = guided("good", "bad").bind(temperature=0.1).with_config(run_name="mine", tags=["x"])
    model.invoke("Why?", {"callbacks": [traces], "metadata": {"who": "me"}})
    assert traces.shapes == ["mine(propose, propose)"]
    (run,) = traces.roots
    assert run.tags == ["x"]
    assert run.metadata["who"] == "me"
    assert all("x" in (child.tags or []) for child in run.child_runs)


# --- caches and rate limits ---


@pytest.mark.parametrize("sync", [True, False])
async def test_a_cache_answers_equal_calls_and_keeps_different_models_apart(*, sync: bool) -> None:
    cache = InMemoryCache()
    model = guided("good", "bad", cache=cache)

    async def ask(one: GuidedChatModel, text: str = "Why?", **kwargs: Any) -> Any:
        return one.invoke(text, **kwargs) if sync else await one.ainvoke(text, **kwargs)

    first = await ask(model)
    assert len(model.policy.calls) == 2
    again = await ask(model)
    assert again.text == first.text == "good"
    told, known = (m.response_metadata["vprm"] for m in (first, again))
    assert told["tree"] == known["tree"]
    assert again.usage_metadata["output_tokens"] == 2
    assert len(model.policy.calls) == 2
    await ask(model, stop=["x"])
    await ask(model, "How?")
    assert len(model.policy.calls) == 6
    others = [
        model.model_copy(update={"strategy": BestOfN(3)}),
        model.model_copy(update={"selector": None}),
        model.model_copy(update={"run_seed": 1}),
        model.model_copy(update={"budget": Budget(candidates=9)}),
        model.model_copy(update={"scorer": ScriptedScorer(lambda _: 0.5, identity="other")}),
        model.model_copy(update={"policy": ScriptedChatModel(in_turn(["good", "bad"]))}),
    ]
    for other in others:
        before = len(other.policy.calls)
        await ask(other)
        assert len(other.policy.calls) > before


def test_the_cache_of_the_process_makes_no_candidates_equal() -> None:
    set_llm_cache(InMemoryCache())
    try:
        model = guided("good", "bad", "neither")
        model.invoke("Why?")
        assert len(model.policy.calls) == 3
        model.invoke("Why?")
        assert len(model.policy.calls) == 3
    finally:
        set_llm_cache(None)


class Gate(BaseRateLimiter):
    """Lets everybody through, and counts them."""

    def __init__(self) -> None:
        self.passed = 0

    def acquire(self, *, blocking: bool = True) -> bool:
        self.passed += 1
        return True

    async def aacquire(self, *, blocking: bool = True) -> bool:
        return self.acquire(blocking=blocking)


@pytest.mark.parametrize("way", ["invoke", "stream", "ainvoke", "astream"])
async def test_rate_limiters_are_asked_by_the_model_once_and_by_each_request(way: str) -> None:
    outer, inner = Gate(), Gate()
    policy = ScriptedChatModel(in_turn(["good", "bad", "neither"]), rate_limiter=inner)
    model = guided("1", "2", "3", policy=policy, rate_limiter=outer)
    if way == "invoke":
        model.invoke("Why?")
    elif way == "stream":
        list(model.stream("Why?"))
    elif way == "ainvoke":
        await model.ainvoke("Why?")
    else:
        _ = [piece async for piece in model.astream("Why?")]
    assert (outer.passed, inner.passed) == (1, 3)


# --- chains ---


def test_a_conversation_is_remembered_around_it() -> None:
    history = InMemoryChatMessageHistory()
    model = guided("good", "bad")
    prompt = ChatPromptTemplate.from_messages(
        [("system", "Be kind."), MessagesPlaceholder("history"), ("human", "{question}")]
    )
    chain = RunnableWithMessageHistory(
        prompt | model,
        lambda: history,
        input_messages_key="question",
        history_messages_key="history",
        history_factory_config=[],
    )
    assert chain.invoke({"question": "Why?"}).text == "good"
    assert chain.invoke({"question": "And why that?"}).text == "good"
    assert [m.type for m in history.messages] == ["human", "ai", "human", "ai"]
    shown = model.policy.calls[-1].messages
    assert [m.type for m in shown] == ["system", "human", "ai", "human"]
    question = model.scorer.asked[-1].problem.question
    assert question.endswith("And why that?")
    assert "Assistant: good" in question


async def test_chains_batches_and_their_streams() -> None:
    prompt = ChatPromptTemplate.from_messages([("human", "Say {word}.")])

    def script(call: Any) -> str:
        word = str(call.messages[-1].text).removeprefix("Say ").rstrip(".")
        return f"{word} is {'good' if call.number % 2 else 'bad'}"

    model = GuidedChatModel(
        policy=ScriptedChatModel(script),
        scorer=by_words(good=0.9, bad=0.1),
        strategy=BestOfN(2),
        selector=BestScore(),
    )
    chain = prompt | model | StrOutputParser()
    words = [{"word": word} for word in ("one", "two", "three", "four")]
    expected = [f"{given['word']} is good" for given in words]
    assert sorted(chain.batch(words)) == sorted(expected)
    assert sorted(await chain.abatch(words)) == sorted(expected)
    assert "".join(chain.stream(words[0])) == expected[0]
    assert "".join([piece async for piece in chain.astream(words[1])]) == expected[1]
    done = dict(chain.batch_as_completed(words))
    assert [done[place] for place in range(4)] == expected


async def test_a_client_used_in_one_event_loop_goes_on_in_another() -> None:
    """Connections of OpenAI's client are shared by all of its models, and belong to one loop."""
    with serving(lambda body, child: f"{'good' if child else 'bad'} {child}") as server:
        policy = ChatOpenAI(model="m", base_url=server.url, api_key="none", max_retries=0)
        model = guided("1", "2", policy=policy)
        for _ in range(2):
            assert model.invoke("Why?").text == "good 1"
            assert (await model.ainvoke("Why?")).text == "good 1"
            assert "".join(str(piece.text) for piece in model.stream("Why?")) == "good 1"
    # An error that a connection of another loop makes after its reply costs that reply, once.
    assert 6 <= len(server.bodies) <= 8


def test_a_batch_searches_side_by_side() -> None:
    policy = ScriptedChatModel("good", delay_s=0.2)
    model = guided("1", policy=policy)
    started = time.monotonic()
    model.batch(["?"] * 4)
    assert policy.most_running >= 2
    assert time.monotonic() - started < 30
