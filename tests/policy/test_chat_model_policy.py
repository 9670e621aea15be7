"""The adapter on chat models a user might bring, without a network."""

from __future__ import annotations

import asyncio
import base64
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.caches import InMemoryCache
from langchain_core.globals import set_llm_cache
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.runnables import RunnableLambda

from tests.policy.models import BLUE, RED, Script, request, texts_of
from vprm_search.errors import ConfigError
from vprm_search.policy import ChatModelPolicy, ModelCapabilities, RetryRules
from vprm_search.types import Policy, Until

QUICK = RetryRules(first_wait_s=0.001, longest_wait_s=0.002)
PREFILL = ModelCapabilities(prefill="message")
MANY = ModelCapabilities(many=True, seeds="call")


class Status(Exception):
    """An error as HTTP clients raise it."""

    def __init__(self, status_code: int, text: str = "") -> None:
        super().__init__(text or f"status {status_code}")
        self.status_code = status_code


async def one(policy: ChatModelPolicy, *args: Any, **kwargs: Any) -> Any:
    ((proposal,),) = await policy.propose([request(*args, **kwargs)])
    return proposal


# --- what the model is asked ---------------------------------------------------------------------


async def test_first_step_of_a_plain_model() -> None:
    model = Script(lambda *_, **__: "Step 1: look.\n\nStep 2: never sent")
    policy = ChatModelPolicy(model, system_prompt="Be brief.")
    assert isinstance(policy, Policy)
    proposal = await one(policy, images=(RED, BLUE))
    assert (proposal.text, proposal.finish, proposal.requests) == ("Step 1: look.", "step", 1)
    (call,) = model.calls
    system, human = call["messages"]
    assert isinstance(system, SystemMessage)
    assert system.text == "Be brief."
    first, second, text = human.content
    assert [base64.b64decode(b["base64"]) for b in (first, second)] == [RED.png, BLUE.png]
    assert {(b["type"], b["mime_type"]) for b in (first, second)} == {("image", "image/png")}
    assert text["text"].startswith("How many?\n\n")
    assert "only the first step" in text["text"]
    assert call["stop"] == ["\n\n"]
    assert call["max_tokens"] == 512
    assert not {"n", "seed", "seeds", "extra_body"} & set(call)


async def test_next_step_of_a_plain_model_shows_the_steps() -> None:
    model = Script(lambda *_, **__: "Step 3: add.")
    proposal = await one(ChatModelPolicy(model), "Step 1: a", "Step 2: b")
    assert (proposal.text, proposal.finish) == ("Step 3: add.", "step")
    (message,) = model.calls[0]["messages"]
    assert isinstance(message, HumanMessage)
    assert "Step 1: a\n\nStep 2: b" in message.text
    assert "exactly one" in message.text


META = (
    r"\b(blank|empty|lines?|newlines?|separat\w*|whitespace|format\w*|mark\w*|stop|repeat\w*|"
    r"instruct\w*|output|tokens?)\b|[<>\\]|write nothing"
)


@pytest.mark.parametrize("until", ["step", "end"])
@pytest.mark.parametrize("steps", [(), ("a = 1.",), ("a = 1.", "b = 2.")])
@pytest.mark.parametrize("known", [PREFILL, ModelCapabilities()], ids=["prefill", "instruct"])
async def test_a_request_speaks_of_the_solution_and_not_of_its_form(
    known: ModelCapabilities, steps: tuple[str, ...], until: Until
) -> None:
    """What a request says of its own form, small models write about instead of solving."""
    model = Script(lambda *_, **__: "c = 3.")
    await one(ChatModelPolicy(model, capabilities=known), *steps, until=until, question="Q")
    asked = texts_of([m for m in model.calls[0]["messages"] if isinstance(m, HumanMessage)])
    assert not re.findall(META, asked, re.IGNORECASE)
    assert '"Answer:"' in asked  # how the end is told
    whole, single = "Solve the problem" in asked, re.search("only the first|exactly one", asked)
    asks_for_one = until == "step" and known.prefill == "none"
    assert (whole, bool(single)) == (not asks_for_one, asks_for_one)


async def test_prefill_continues_the_models_own_message() -> None:
    model = Script(lambda *_, **__: "Step 2: b\n\nStep 3")
    policy = ChatModelPolicy(model, capabilities=PREFILL)
    proposal = await one(policy, "Step 1: a")
    assert proposal.text == "Step 2: b"
    *_, last = model.calls[0]["messages"]
    assert isinstance(last, AIMessage)
    assert last.content == "Step 1: a\n\n"


async def test_prefill_without_trailing_white_space_nor_blank_stops() -> None:
    """Claude's rules: both are errors there, so the step is cut here."""
    model = Script(lambda *_, **__: "\n\nStep 2: b\n\nStep 3: c")
    known = ModelCapabilities(prefill="message", prefill_whitespace=False, stop="non_blank")
    proposal = await one(ChatModelPolicy(model, capabilities=known), "Step 1: a")
    assert (proposal.text, proposal.finish) == ("Step 2: b", "step")
    assert model.calls[0]["messages"][-1].content == "Step 1: a"
    assert model.calls[0]["stop"] is None


async def test_continuation_can_be_chosen() -> None:
    model = Script(lambda *_, **__: "Step 2: b")
    for continuation, known, last in (
        ("prefill", ModelCapabilities(), "ai"),
        ("instruct", PREFILL, "human"),
        ("auto", PREFILL, "ai"),
        ("auto", ModelCapabilities(), "human"),
    ):
        policy = ChatModelPolicy(model, continuation=continuation, capabilities=known)  # type: ignore[arg-type]
        assert (await one(policy, "Step 1: a")).text == "Step 2: b"
        assert model.calls[-1]["messages"][-1].type == last


async def test_a_token_limit_under_another_name() -> None:
    model = Script(lambda *_, **__: "a")
    for key in ("max_output_tokens", None):
        policy = ChatModelPolicy(model, capabilities=ModelCapabilities(max_tokens_key=key))
        await one(policy)
    assert [call.get("max_output_tokens") for call in model.calls] == [512, None]
    assert not any("max_tokens" in call for call in model.calls)


async def test_the_rest_is_asked_without_a_stop_string() -> None:
    model = Script(lambda *_, **__: "b\n\nc\n\nAnswer: 3")
    for capabilities in (PREFILL, ModelCapabilities()):
        policy = ChatModelPolicy(model, capabilities=capabilities, max_tokens_total=77)
        proposal = await one(policy, "a", until="end")
        assert (proposal.text, proposal.finish) == ("b\n\nc\n\nAnswer: 3", "stop")
        assert model.calls[-1]["stop"] is None
        assert model.calls[-1]["max_tokens"] == 77


async def test_own_words_and_separator() -> None:
    model = Script(lambda *_, **__: "a|b")
    policy = ChatModelPolicy(model, step_separator="|", instruction="", capabilities=PREFILL)
    assert (await one(policy, "x", "y", question="Q?", system="S")).text == "a"
    assert texts_of(model.calls[0]["messages"]) == "S\nQ?\nx|y|"


async def test_bound_arguments_are_kept() -> None:
    model = Script(lambda *_, **__: "a")
    await one(ChatModelPolicy(model.bind(temperature=0.3).bind(top_p=0.5)))
    assert model.calls[0]["temperature"] == 0.3
    assert model.calls[0]["top_p"] == 0.5


async def test_models_with_many_answers_are_asked_once_per_path() -> None:
    def write(*_: Any, n: int, seed: int, **__: Any) -> list[str]:
        return [f"step {seed + i}" for i in range(n)]

    model = Script(write)
    policy = ChatModelPolicy(model, capabilities=MANY)
    (row,) = await policy.propose([request(n=5)])
    assert [p.text for p in row] == [f"step {100 + i}" for i in range(5)]
    assert [p.requests for p in row] == [1, 0, 0, 0, 0]
    policy = ChatModelPolicy(model, capabilities=MANY, n_per_call=2)
    (row,) = await policy.propose([request(n=5)])
    assert [call["n"] for call in model.calls[1:]] == [2, 2, 1]
    assert [call["seed"] for call in model.calls[1:]] == [100, 102, 104]


async def test_a_model_that_ignores_n_is_asked_again() -> None:
    answers = iter(range(100))
    model = Script(lambda *_, **__: f"step {next(answers)}")
    (row,) = await ChatModelPolicy(model, capabilities=MANY).propose([request(n=4)])
    assert [p.text for p in row] == ["step 0", "step 1", "step 2", "step 3"]
    assert [call["n"] for call in model.calls] == [4, 3, 2, 1]


async def test_a_model_that_gives_too_many_answers() -> None:
    model = Script(lambda *_, **__: ["a", "b", "c"])
    (row,) = await ChatModelPolicy(model).propose([request(n=1)])
    assert [p.text for p in row] == ["a"]


async def test_no_answers_at_all_is_an_error() -> None:
    model = Script(lambda *_, **__: [])
    (row,) = await ChatModelPolicy(model).propose([request(n=2)])
    assert [(p.finish, p.error) for p in row] == [("error", "the model gave no answer")] * 2


async def test_a_plain_fake_of_langchain_works() -> None:
    model = GenericFakeChatModel(messages=iter([AIMessage("one"), AIMessage("two")]))
    (row,) = await ChatModelPolicy(model).propose([request(n=2)])
    assert sorted(p.text for p in row) == ["one", "two"]


@pytest.mark.parametrize(
    "options",
    [
        {"max_tokens_per_step": 0},
        {"n_per_call": 0},
        {"max_concurrency": 0},
        {"step_separator": ""},
        {"continuation": "magic"},
    ],
)
def test_bad_options(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        ChatModelPolicy(Script(lambda *_: ""), **options)


@pytest.mark.parametrize("model", ["gpt-5", None, RunnableLambda(lambda x: x)])
def test_only_chat_models(model: Any) -> None:
    with pytest.raises(ConfigError, match="chat model"):
        ChatModelPolicy(model)


# --- how replies are read ------------------------------------------------------------------------


def reply(text: str, **metadata: Any) -> Script:
    return Script(lambda *_, **__: AIMessage(text, response_metadata=metadata))


@pytest.mark.parametrize(
    ("text", "metadata", "finish"),
    [
        ("a step", {"finish_reason": "length"}, "length"),
        ("a step", {"stop_reason": "max_tokens"}, "length"),
        ("a step", {"finish_reason": "MAX_TOKENS"}, "length"),
        ("a step", {"done_reason": "length"}, "length"),
        ("a step\n\nhalf of", {"finish_reason": "length"}, "step"),
        ("a step", {"finish_reason": "stop", "stop_reason": "\n\n"}, "step"),
        ("so Answer: 3", {"finish_reason": "stop", "stop_reason": "\n\n"}, "step"),
        ("a step", {"finish_reason": "stop", "stop_reason": None}, "stop"),
        ("a step", {"stop_reason": "stop_sequence"}, "step"),
        ("a step", {"stop_reason": "end_turn"}, "stop"),
        ("a step", {"finish_reason": "stop"}, "step"),
        ("so Answer: 3", {"finish_reason": "stop"}, "stop"),
        (r"so \boxed{3}", {}, "stop"),
        ("so Answer: 3\n\nThank you!", {}, "stop"),
    ],
)
async def test_how_a_step_ended(text: str, metadata: dict[str, Any], finish: str) -> None:
    policy = ChatModelPolicy(reply(text, **metadata), capabilities=PREFILL)
    proposal = await one(policy, "before")
    assert (proposal.text, proposal.finish) == (text.partition("\n\n")[0], finish)


@pytest.mark.parametrize("metadata", [{"stop_reason": "end_turn"}, {"finish_reason": "stop"}])
async def test_a_model_that_was_asked_to_stop_says_nothing_by_stopping(
    metadata: dict[str, Any],
) -> None:
    assert (await one(ChatModelPolicy(reply("a step", **metadata)), "x")).finish == "step"
    assert (await one(ChatModelPolicy(reply("Answer: 3", **metadata)), "x")).finish == "stop"


async def test_own_mark_of_a_final_answer() -> None:
    policy = ChatModelPolicy(reply("QED"), is_final=lambda text: "QED" in text)
    assert (await one(policy)).finish == "stop"


@pytest.mark.parametrize("text", ["", " ", "\n", "\n\n \n\n"])
async def test_empty_steps_are_errors_unless_the_solution_was_complete(text: str) -> None:
    for model, options in (
        (reply(text), {}),
        (reply(text, finish_reason="length"), {"capabilities": PREFILL}),
    ):
        proposal = await one(ChatModelPolicy(model, **options), "before")
        assert (proposal.finish, proposal.text) == ("error", "")
        assert proposal.error
    ended = reply(text, finish_reason="stop", stop_reason=None)
    policy = ChatModelPolicy(ended, capabilities=PREFILL)
    assert (await one(policy, "before")).finish == "stop"
    assert (await one(policy)).finish == "error"  # nothing was written before either
    policy = ChatModelPolicy(ended, capabilities=PREFILL)
    assert (await one(policy, "before", until="end")).finish == "stop"


@pytest.mark.parametrize(
    "metadata",
    [{"finish_reason": "content_filter"}, {"finish_reason": "SAFETY"}, {"stop_reason": "refusal"}],
)
async def test_refusals_are_errors(metadata: dict[str, Any]) -> None:
    proposal = await one(ChatModelPolicy(reply("I cannot", **metadata)))
    assert proposal.finish == "error"
    assert "refused" in proposal.error


async def test_steps_that_are_too_long_are_cut_and_count_as_truncated() -> None:
    policy = ChatModelPolicy(reply("x" * 100), max_step_chars=40)
    proposal = await one(policy)
    assert (proposal.text, proposal.finish) == ("x" * 40, "length")


async def test_white_space_lost_by_a_template_is_made_up_for() -> None:
    """The model writes the blank line that its template trimmed, and stops there."""

    def write(messages: Any, **_: Any) -> str:
        return f"\n\nStep {len(model.calls)}: c\n\nmore" if messages[-1].type == "ai" else "Step 1"

    model = Script(write)
    policy = ChatModelPolicy(model, capabilities=PREFILL)
    assert (await one(policy)).text == "Step 1"
    proposal = await one(policy, "Step 1")
    assert (proposal.text, proposal.finish, proposal.requests) == ("Step 3: c", "step", 2)
    assert [call["stop"] for call in model.calls] == [["\n\n"], ["\n\n"], None]
    assert (await one(policy, "Step 1")).requests == 1  # learned
    assert (await one(policy)).text == "Step 1"
    assert model.calls[-1]["stop"] == ["\n\n"]  # only continuations are affected


# --- usage ---------------------------------------------------------------------------------------


def with_usage(texts: list[str], usages: list[tuple[int, int] | None]) -> Script:
    messages = [
        AIMessage(
            text,
            usage_metadata=usage
            and {"input_tokens": usage[0], "output_tokens": usage[1], "total_tokens": sum(usage)},
        )
        for text, usage in zip(texts, usages, strict=True)
    ]
    return Script(lambda *_, **__: messages)


@pytest.mark.parametrize(
    ("usages", "prompt", "generated"),
    [
        ([(50, 30)] * 3, 50, 30),  # OpenAI: the call's total on every answer
        ([(50, 30), None, None], 50, 30),
        ([(50, 10), (50, 8), (50, 12)], 50, 30),  # each its own share
        ([None] * 3, 0, 0),
    ],
)
async def test_usage_is_counted_once(
    usages: list[tuple[int, int] | None], prompt: int, generated: int
) -> None:
    model = with_usage(["aaaaaaaaa", "bbbbbbbbb", "ccccccccc"], usages)
    (row,) = await ChatModelPolicy(model, capabilities=MANY).propose([request(n=3)])
    assert [p.prompt_tokens for p in row] == [prompt, 0, 0]
    assert [p.generated_tokens for p in row] == [generated // 3] * 3
    assert [p.requests for p in row] == [1, 0, 0]


@settings(max_examples=50)
@given(
    texts=st.lists(st.text("ab ", min_size=1, max_size=40), min_size=1, max_size=9),
    total=st.integers(0, 500),
)
def test_shared_tokens_add_up(texts: list[str], total: int) -> None:
    model = with_usage(texts, [(7, total)] * len(texts))
    policy = ChatModelPolicy(model, capabilities=MANY, n_per_call=len(texts))
    (row,) = asyncio.run(policy.propose([request(n=len(texts))]))
    assert len(row) == len(texts)
    assert sum(p.generated_tokens for p in row) == total
    assert sum(p.prompt_tokens for p in row) == 7
    assert all(p.generated_tokens >= 0 for p in row)


# --- failures, concurrency, cancellation ---------------------------------------------------------


@settings(max_examples=30)
@given(
    plan=st.lists(st.lists(st.booleans(), min_size=0, max_size=4), min_size=0, max_size=5),
    status=st.sampled_from([400, 401, 404]),
)
def test_a_failed_call_costs_its_own_candidates_only(plan: list[list[bool]], status: int) -> None:
    def write(messages: Any, **_: Any) -> Any:
        number = next(numbers[texts_of(messages).split()[0]])
        return f"fine {number}" if number >= 0 else Status(status)

    model = Script(write)
    requests = [request(n=len(row), question=f"q{i}") for i, row in enumerate(plan)]
    numbers = {
        f"q{i}": iter([j if good else -1 for j, good in enumerate(row)])
        for i, row in enumerate(plan)
    }
    rows = asyncio.run(ChatModelPolicy(model, retry=QUICK).propose(requests))
    assert [len(row) for row in rows] == [len(row) for row in plan]
    for proposals, row in zip(rows, plan, strict=True):
        for place, (proposal, good) in enumerate(zip(proposals, row, strict=True)):
            assert proposal.finish == ("step" if good else "error")
            assert proposal.text == (f"fine {place}" if good else "")
            assert bool(proposal.error) is not good
            assert proposal.requests == 1


async def test_a_failed_call_of_many_costs_all_its_children() -> None:
    def write(messages: Any, *, n: int, **_: Any) -> Any:
        return Status(400, "bad") if "q1" in texts_of(messages) else ["ok"] * n

    policy = ChatModelPolicy(Script(write), capabilities=MANY, retry=QUICK)
    rows = await policy.propose([request(n=3, question=f"q{i}") for i in range(3)])
    assert [[p.finish for p in row] for row in rows] == [["step"] * 3, ["error"] * 3, ["step"] * 3]
    assert [p.requests for p in rows[1]] == [1, 0, 0]


async def test_transient_failures_are_repeated() -> None:
    errors = iter([Status(429), ConnectionResetError("reset"), TimeoutError(), "fine"])
    proposal = await one(ChatModelPolicy(Script(lambda *_, **__: next(errors)), retry=QUICK))
    assert (proposal.text, proposal.requests) == ("fine", 4)


async def test_a_model_that_hangs_times_out() -> None:
    model = Script(lambda *_, **__: "late", pause_s=60)
    rules = RetryRules(timeout_s=0.05, max_attempts=2, first_wait_s=0)
    proposal = await asyncio.wait_for(one(ChatModelPolicy(model, retry=rules)), 20)
    assert (proposal.finish, proposal.requests) == ("error", 2)
    assert "time limit" in proposal.error
    assert model.running[0] == 0  # cancelled, not left behind


async def test_the_number_of_simultaneous_calls_is_bounded() -> None:
    model = Script(lambda *_, **__: "ok", pause_s=0.005)
    policy = ChatModelPolicy(model, max_concurrency=3)
    rows = await policy.propose([request(n=4) for _ in range(5)])
    assert all(p.text == "ok" for row in rows for p in row)
    assert model.running == [0, 3]


def test_one_policy_serves_several_event_loops() -> None:
    model = Script(lambda *_, **__: "ok", pause_s=0.002)
    policy = ChatModelPolicy(model, max_concurrency=1)
    for _ in range(3):
        rows = asyncio.run(policy.propose([request(n=3)]))
        assert [p.text for p in rows[0]] == ["ok"] * 3


async def test_cancellation_stops_all_calls() -> None:
    model = Script(lambda *_, **__: "never", pause_s=60)
    task = asyncio.create_task(ChatModelPolicy(model).propose([request(n=5)]))
    while model.running[0] < 5:  # noqa: ASYNC110 (the model knows no events)
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert model.running[0] == 0
    others = asyncio.all_tasks() - {asyncio.current_task()}
    assert not others


async def test_a_bug_in_the_model_is_an_error_of_its_candidate() -> None:
    proposal = await one(ChatModelPolicy(Script(lambda *_, **__: ZeroDivisionError("oops"))))
    assert (proposal.finish, proposal.requests) == ("error", 1)
    assert proposal.error == "ZeroDivisionError: oops"


# --- within LangChain ----------------------------------------------------------------------------


async def test_a_global_cache_does_not_make_siblings_equal() -> None:
    answers = iter(range(100))
    model = Script(lambda *_, **__: f"step {next(answers)}")
    set_llm_cache(InMemoryCache())
    try:
        (row,) = await ChatModelPolicy(model).propose([request(n=4)])
    finally:
        set_llm_cache(None)
    assert len({p.text for p in row}) == 4
    assert model.cache is None  # the caller's model is left as it was


async def test_calls_are_nested_in_the_callers_run_and_hidden_from_streams() -> None:
    model = Script(lambda *_, **__: "ok")
    policy = ChatModelPolicy(model)
    events: list[Any] = []
    chain = RunnableLambda(lambda _: None, afunc=lambda _: policy.propose([request()]))
    async for event in chain.astream_events(None, version="v2"):
        events.append(event)
    starts = [e for e in events if e["event"] == "on_chat_model_start"]
    assert [e["name"] for e in starts] == ["propose"]
    assert starts[0]["parent_ids"]
    assert "nostream" in starts[0]["tags"]
    assert "nostream" in model.calls[0]["tags"]
    assert not [e for e in events if e["event"] == "on_chat_model_stream"]


# --- what is no text -----------------------------------------------------------------------------

CALL = {"name": "zoom", "args": {}, "id": "1", "type": "tool_call"}
STOP = {"finish_reason": "stop"}


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (AIMessage("", tool_calls=[CALL]), "called tools (zoom)"),
        (AIMessage("Red is 3.", tool_calls=[CALL], response_metadata=STOP), "called tools (zoom)"),
        (AIMessage([{"type": "tool_use", "id": "1", "name": "zoom", "input": {}}]), "called tools"),
        (AIMessage("", response_metadata={"finish_reason": "tool_calls"}), "called tools"),
        (AIMessage([{"type": "audio", "base64": "AA"}]), "'audio'"),
        (AIMessage("", additional_kwargs={"audio": {"data": "AA"}}), "'audio'"),
        (AIMessage(["Red is 3.", {"type": "image", "base64": "AA"}]), "'image'"),
        (AIMessage(["Red is 3.", {"type": "hologram"}]), "'hologram'"),
        (AIMessage([{"type": "non_standard", "value": {"type": "smell"}}]), "'smell'"),
        (AIMessage([{"type": "refusal", "refusal": "I cannot."}]), "I cannot."),
        (AIMessage("Red", response_metadata={"finish_reason": "error"}), "(error)"),
    ],
)
async def test_a_reply_that_is_no_text_says_so(message: AIMessage, why: str) -> None:
    untils: tuple[Until, ...] = ("step", "end")
    for until in untils:
        proposal = await one(ChatModelPolicy(Script(lambda *_, **__: message)), until=until)
        assert (proposal.text, proposal.finish, proposal.unusable) == ("", "error", True)
        assert why in proposal.error


@pytest.mark.parametrize(
    "content",
    [
        [{"type": "text", "text": "Red "}, {"type": "text", "text": "is 3."}],
        [{"type": "output_text", "text": "Red is 3."}],
        [{"text": "Red is 3."}],
        [{"type": "thinking", "thinking": "Hm.", "signature": "x"}, "Red is 3."],
        [{"type": "redacted_thinking", "data": "x"}, {"type": "text", "text": "Red is 3."}],
        [{"type": "reasoning", "summary": []}, {"type": "text", "text": "Red is 3."}],
        [{"type": "reasoning_content", "reasoning_content": {"text": "Hm."}}, "Red is 3."],
        [{"type": "web_search_call", "id": "1"}, {"type": "text", "text": "Red is 3."}],
    ],
)
async def test_texts_in_blocks_are_read_without_the_thinking(content: list[Any]) -> None:
    model = Script(lambda *_, **__: AIMessage(content))
    assert (await one(ChatModelPolicy(model))).text == "Red is 3."


@pytest.mark.parametrize(
    ("text", "metadata", "finish"),
    [
        ("Red is 3", {}, "length"),
        ("Red is 3. Answer: 3", {}, "stop"),
        ("Red is 3", {"finish_reason": "overheated"}, "length"),
        ("Red is 3", {"finish_reason": "stop"}, "stop"),
        ("Red is 3", {"status": "incomplete"}, "length"),
        ("Red is 3", {"done_reason": "stop"}, "stop"),
        ("Answer: 3", {"stopReason": "model_context_window_exceeded"}, "length"),
    ],
)
@pytest.mark.filterwarnings("ignore::vprm_search.errors.ClientWarning")
async def test_a_solution_that_does_not_say_why_it_ended_is_not_finished(
    text: str, metadata: dict[str, Any], finish: str
) -> None:
    proposal = await one(ChatModelPolicy(reply(text, **metadata)), until="end")
    assert (proposal.text, proposal.finish) == (text, finish)
