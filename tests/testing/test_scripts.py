"""The scripted policy, scorer and chat model do what they are told, and count what they did."""

from __future__ import annotations

import asyncio
from itertools import cycle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import Runnable
from PIL import Image
from pydantic import BaseModel

from vprm_search import BeamSearch, BestOfN, ChatModelPolicy, MajorityVote, run_search
from vprm_search.bench.step_results import auc
from vprm_search.chat.capabilities import ModelCapabilities
from vprm_search.errors import ConfigError, ScorerError
from vprm_search.images import image_message, normalise_image
from vprm_search.testing import (
    ChatCall,
    NoisyScores,
    ScriptedChatModel,
    ScriptedPolicy,
    ScriptedScorer,
    chance,
)
from vprm_search.types import Policy, Problem, Proposal, ProposeRequest, ScoreRequest, StepScorer

ASKED = ProposeRequest(Problem("How many red tiles?"), ("Two rows.",), (1, 2, 3))


def test_the_doubles_stand_at_the_seams() -> None:
    assert isinstance(ScriptedPolicy("x"), Policy)
    assert isinstance(ScriptedScorer([0.5]), StepScorer)


async def test_a_list_is_used_up_in_order_and_its_end_is_an_error() -> None:
    policy = ScriptedPolicy(["one", TimeoutError(), "Answer: 2", "four"])
    (first,) = await policy.propose([ASKED])
    assert [(p.text, p.finish) for p in first] == [
        ("one", "step"),
        ("", "error"),
        ("Answer: 2", "stop"),
    ]
    assert "TimeoutError" in first[1].error
    assert [p.requests for p in first] == [1, 0, 0]
    assert [p.prompt_tokens for p in first] == [6, 0, 0]
    assert first[2].generated_tokens == 2
    with pytest.raises(ConfigError, match="has 4 replies"):
        await policy.propose([ASKED])
    assert len(policy.asked) == 2
    endless = ScriptedPolicy(cycle(["a", "b"]))
    ((a, b, a_again),) = await endless.propose([ASKED])
    assert (a.text, b.text, a_again.text) == ("a", "b", "a")


async def test_a_rule_sees_what_is_asked_and_may_wait_or_break() -> None:
    gate = asyncio.Event()
    seen: list[int] = []

    async def rule(request: ProposeRequest, seed: int) -> str | Proposal:
        seen.append(seed)
        if len(seen) == len(request.seeds):
            gate.set()
        await gate.wait()  # no child is held up by another
        return request.steps[-1] if seed == 1 else Proposal("cut", "length")

    policy = ScriptedPolicy(rule, delay_s=0.001)
    calls = await asyncio.gather(policy.propose([ASKED]), policy.propose([ASKED]))
    assert [p.text for p in calls[0][0]] == ["Two rows.", "cut", "cut"]
    assert policy.most_running == 2
    assert policy.running == 0

    async def broken(request: ProposeRequest, seed: int) -> str:
        if seed == 2:
            raise RuntimeError("the policy is broken")
        return await asyncio.sleep(60, "never")

    before = asyncio.all_tasks()
    with pytest.raises(RuntimeError, match="broken"):
        await asyncio.wait_for(ScriptedPolicy(broken).propose([ASKED]), 10)
    await asyncio.sleep(0.01)
    assert asyncio.all_tasks() == before


# --- scorers -------------------------------------------------------------------------------------


async def test_a_scorer_is_asked_for_every_step_with_what_stands_before_it() -> None:
    scorer = ScriptedScorer(lambda asked: {"a": 0.25, "b": None, "c": "too long"}[asked.steps[-1]])
    problem = Problem("How many?")
    (abc, a) = await scorer.score(
        [ScoreRequest(problem, ("a", "b", "c")), ScoreRequest(problem, ("a",))]
    )
    assert [s.value for s in abc.scores] == [0.25, None, None]
    assert [bool(s.reason) for s in abc.scores] == [False, True, True]
    assert abc.scores[2].reason == "too long"
    assert abc.step_tokens == (2, 2, 2)
    assert a.scores[0] == abc.scores[0]
    assert [r.steps for r in scorer.asked] == [("a", "b", "c"), ("a",)]


async def test_rounds_go_wrong_as_told() -> None:
    request = [ScoreRequest(Problem("?"), ("a",))]
    rounds = {2: None, 3: "server down", 4: ScorerError("gone")}
    scorer = ScriptedScorer(lambda _: 0.5, rounds=rounds)
    assert (await scorer.score(request))[0].scores[0].value == 0.5
    assert (await scorer.score(request))[0].scores[0].value is None
    assert (await scorer.score(request))[0].scores[0].reason == "server down"
    with pytest.raises(ScorerError, match="gone"):
        await scorer.score(request)
    assert (await scorer.score(request))[0].scores[0].value == 0.5
    assert len(scorer.batches) == 5


def is_right(request: ScoreRequest) -> bool:
    return chance(request.steps) < 0.5


@pytest.mark.parametrize("stated", [0.3, 0.5, 0.73, 0.95])
@pytest.mark.parametrize("correlation", [0.0, 0.6])
async def test_noisy_scores_have_the_auc_stated(stated: float, correlation: float) -> None:
    rule = NoisyScores(right=is_right, auc=stated, correlation=correlation, noise=0.9, level=3.0)
    problem = Problem("How many?")
    paths = [(f"a {n}", f"b {n}", f"c {n}") for n in range(1200)]
    results = await ScriptedScorer(rule).score([ScoreRequest(problem, path) for path in paths])
    labels = [is_right(ScoreRequest(problem, p[:end])) for p in paths for end in (1, 2, 3)]
    scores = [s.value for r in results for s in r.scores]
    assert None not in scores
    assert auc(labels, scores) == pytest.approx(stated, abs=0.025)  # type: ignore[arg-type]
    assert sum(score > 0.5 for score in scores if score is not None) / len(scores) > 0.95


async def test_a_share_of_noisy_scores_is_missing_and_the_others_do_not_change() -> None:
    requests = [ScoreRequest(Problem("?"), (f"step {n}",)) for n in range(2000)]
    whole = await ScriptedScorer(NoisyScores(right=is_right)).score(requests)
    holes = await ScriptedScorer(NoisyScores(right=is_right, unscored=0.2)).score(requests)
    missing = [h for h in holes if h.scores[0].value is None]
    assert len(missing) / len(requests) == pytest.approx(0.2, abs=0.04)
    assert all(w == h for w, h in zip(whole, holes, strict=True) if h not in missing)
    other = await ScriptedScorer(NoisyScores(right=is_right, seed=1)).score(requests)
    assert whole != other


# --- chat models ---------------------------------------------------------------------------------

CAN_ALL = ModelCapabilities(
    prefill="message", many=True, seeds="children", instructions=False, in_process=True
)


def solved(call: ChatCall) -> str:
    """Write the rest of a solution of three steps; the words depend on the seed."""
    done = len([step for step in call.prefix.split("\n\n") if step.strip()])
    steps = [f"Step {n}: tile {int(9 * chance(call.seed, n))}." for n in range(done + 1, 3)]
    return "\n\n".join([*steps, f"Answer: {int(3 * chance(call.seed))}"])


@pytest.mark.parametrize("strategy", [BestOfN(5), BeamSearch(width=2, expand=3)])
def test_a_search_runs_on_doubles_and_its_counts_are_theirs(strategy: Any) -> None:
    model = ScriptedChatModel(solved, capabilities=CAN_ALL)
    scorer = ScriptedScorer(NoisyScores(right=is_right, auc=0.9))
    run = run_search("How many tiles?", policy=model, scorer=scorer, strategy=strategy)
    assert run.result.answer in {"0", "1", "2"}
    assert run.result.usage.generated_tokens > 0
    assert run.result.usage.candidates == len(model.calls)
    assert len({call.seed for call in model.calls}) == len(model.calls)
    again = run_search(
        "How many tiles?",
        policy=ScriptedChatModel(solved, capabilities=CAN_ALL),
        scorer=ScriptedScorer(NoisyScores(right=is_right, auc=0.9)),
        strategy=strategy,
    )
    assert again.tree.dumps() == run.tree.dumps()


@given(
    st.lists(st.sampled_from(["one", "two", "\n\n", "six"]), max_size=9),
    st.integers(1, 9),
    st.booleans(),
)
def test_a_text_is_cut_as_a_server_cuts_it(words: list[str], limit: int, stops: bool) -> None:
    text = " ".join(words)
    message = ScriptedChatModel(text).invoke(
        "?", stop=["\n\n"] if stops else None, max_tokens=limit
    )
    kept, found, _ = text.partition("\n\n") if stops else (text, "", "")
    told = message.response_metadata
    if len(kept.split()) > limit:
        assert str(message.text).split() == kept.split()[:limit]
        assert told["finish_reason"] == "length"
    else:
        assert message.text == kept
        assert (told["finish_reason"], told["stop_reason"]) == ("stop", found or None)
    assert message.usage_metadata["output_tokens"] == len(str(message.text).split())


@pytest.mark.parametrize("words", ["one  two\n\nthree ", " a", "", "b"])
async def test_what_is_streamed_is_what_is_answered(words: str) -> None:
    model = ScriptedChatModel(words)
    whole = model.invoke("?")
    for chunks in (list(model.stream("?")), [c async for c in model.astream("?")]):
        joined = chunks[0]
        for chunk in chunks[1:]:
            joined = joined + chunk
        assert joined.content == whole.content
        assert joined.usage_metadata == whole.usage_metadata
        assert joined.response_metadata["finish_reason"] == "stop"
    assert len(list(model.stream("one two three"))) >= len(words.split())


async def test_exceptions_delays_pictures_and_threads_are_noticed() -> None:
    picture = normalise_image(Image.new("RGB", (32, 32), "red"))
    model = ScriptedChatModel(iter([ValueError("HTTP 400"), *["x"] * 8]), delay_s=0.001)
    question = image_message("What is it?", Image.new("RGB", (32, 32), "red"))
    with pytest.raises(ValueError, match="400"):
        await model.ainvoke([question])
    assert model.calls[0].images == (picture,)
    assert "What is it?" in model.calls[0].text
    assert [m.content for m in model.batch(["?"] * 4)] == ["x"] * 4
    assert [m.content for m in await model.abatch(["?"] * 4)] == ["x"] * 4
    assert sorted(call.number for call in model.calls) == list(range(9))
    assert model.most_running > 1
    assert model.running == 0
    with pytest.raises(ConfigError, match="one more"):
        model.invoke("?")


async def test_a_rule_may_be_asynchronous_by_every_door() -> None:
    async def rule(call: ChatCall) -> str:
        await asyncio.sleep(0)
        return call.text.upper()

    model = ScriptedChatModel(rule)
    assert (await model.ainvoke("hello")).content == "HELLO"
    assert await asyncio.to_thread(lambda: model.invoke("hello").content) == "HELLO"


def test_tools_and_structured_output_go_through_messages() -> None:
    class Verdict(BaseModel):
        """A verdict."""

        good: bool

    call = {"name": "Verdict", "args": {"good": True}, "id": "1"}
    model = ScriptedChatModel([AIMessage("", tool_calls=[call])])
    asked: Runnable[Any, Any] = model.with_structured_output(Verdict)
    assert asked.invoke("?") == Verdict(good=True)
    assert model.calls[0].options["tools"]

    def look(tile: int) -> str:
        """Look at a tile."""
        return f"tile {tile} is red"

    call = {"name": "look", "args": {"tile": 3}, "id": "2"}
    model = ScriptedChatModel([AIMessage("", tool_calls=[call])])
    reply = model.bind_tools([look]).invoke([HumanMessage("?")])
    chunks = list(ScriptedChatModel([reply]).stream("?"))
    assert [call for chunk in chunks for call in chunk.tool_calls] == reply.tool_calls


def test_a_search_may_be_asked_for_nothing_but_calls() -> None:
    model = ScriptedChatModel("Step 1: two.\n\nAnswer: 2")
    policy = ChatModelPolicy(model)
    run = run_search("?", policy=policy, scorer=None, strategy=BestOfN(3), selector=MajorityVote())
    assert run.result.answer == "2"
    assert len(model.calls) == 3
