"""A search that was cut, or whose models failed, says so: by a warning, in text and in metadata."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver

from tests.graph.fakes import QUESTION, HashChatModel, HashScorer, asked
from tests.search.strategies import EVERY
from vprm_search.budget import Budget
from vprm_search.chat.calls import RetryRules
from vprm_search.errors import NoAnswerError, SearchWarning
from vprm_search.graph import create_search_graph, run_search, tree_of_state
from vprm_search.images.store import MemoryImageStore
from vprm_search.policy import ChatModelPolicy
from vprm_search.search import BeamSearch, BestOfN
from vprm_search.testing import ScriptedScorer, http_error

THREAD: Any = {"configurable": {"thread_id": "one"}}


def graph(**options: Any) -> Any:
    given: dict[str, Any] = {
        "policy": HashChatModel(),
        "scorer": HashScorer(),
        "strategy": BeamSearch(width=2, expand=3, stop=None),
        "image_store": MemoryImageStore(),
    }
    return create_search_graph(**{**given, **options})


def test_a_search_that_went_well_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", SearchWarning)
        state = graph().compile().invoke(asked())
    assert state["search_result"]["warning"] == ""
    assert state["messages"][-1].content == state["search_result"]["text"]


@pytest.mark.parametrize("name", EVERY)
def test_every_cut_and_every_fallback_warns_and_names_the_limit(name: str) -> None:
    policies = {"draft": HashChatModel(spread=6), "strong": HashChatModel(spread=9)}
    told: list[dict[str, Any]] = []
    for rounds in (1, 2):
        budget = Budget(rounds=rounds)
        app = graph(strategy=EVERY[name](), policy=policies, budget=budget).compile()
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always", SearchWarning)
            for mode, chunk in app.stream(asked(), stream_mode=["custom", "values"]):
                told += [chunk] if mode == "custom" and chunk["event"] == "answer" else []
                state = chunk if mode == "values" else {}
        said = [str(w.message) for w in heard if w.category is SearchWarning]
        result, message = state["search_result"], state["messages"][-1]
        cut = result["ended_by"].startswith("budget")
        assert said == [result["warning"]] * (cut or result["fallback"])
        assert told[-1]["warning"] == result["warning"]
        assert message.response_metadata["vprm"]["warning"] == result["warning"]
        if cut:
            assert f"rounds {rounds} of {rounds}" in result["warning"]
        if result["fallback"]:
            assert message.content.startswith(result["text"])
            assert result["warning"] in message.content


def test_a_cut_search_goes_on_without_a_budget_and_repeats_nothing() -> None:
    saver, store, model = InMemorySaver(), MemoryImageStore(), HashChatModel()
    with pytest.warns(SearchWarning, match="rounds 2 of 2"):
        cut = (
            graph(policy=model, budget=Budget(rounds=2), image_store=store)
            .compile(checkpointer=saver)
            .invoke(asked(), THREAD)
        )
    calls = len(model.calls)
    free = graph(policy=model, image_store=store).compile(checkpointer=saver)
    before = next(s for s in free.get_state_history(THREAD) if s.next == ("plan",))
    state = free.invoke(None, before.config)
    assert {r.id for r in tree_of_state(cut)} < {r.id for r in tree_of_state(state)}
    asked_again = {str(call) for call in model.calls[:calls]} & {
        str(call) for call in model.calls[calls:]
    }
    assert not asked_again
    assert not state["search_result"]["ended_by"].startswith("budget")
    assert state["search_result"]["warning"] == ""
    assert [m.type for m in state["messages"]] == ["human", "ai"]


# --- what failed most ----------------------------------------------------------------------------


class Down(HashChatModel):
    """A server that cannot be reached, except for every so-manieth call."""

    every: int = 0
    error: Any = None

    async def _agenerate(self, *args: Any, **kwargs: Any) -> Any:
        result = await super()._agenerate(*args, **kwargs)
        if not self.every or len(self.calls) % self.every:
            raise self.error or ConnectionError(f"[Errno 111] refused, call {len(self.calls)}")
        return result


def down(**options: Any) -> ChatModelPolicy:
    once = RetryRules(max_attempts=1)
    return ChatModelPolicy(Down(**options), retry=once, n_per_call=1)


@pytest.mark.parametrize("strategy", [BeamSearch(width=2, expand=2), BestOfN(5)])
def test_a_policy_that_is_down_is_named_with_its_remedy(strategy: Any) -> None:
    with pytest.warns(SearchWarning, match="check that the server runs"):
        state = graph(policy=down(), strategy=strategy).compile().invoke(asked())
    message = state["messages"][-1]
    for said in (message.content, message.response_metadata["vprm"]["warning"]):
        assert "ConnectionError: [Errno 111] refused" in said
        assert "check that the server runs and its address (base_url)" in said
        assert "token limit" not in said
    count = state["search_result"]["usage"]["candidates"]
    assert f"{count} of {count} candidates failed, most often ({count} times)" in message.content
    with pytest.raises(NoAnswerError, match="check that the server runs") as caught:
        graph(policy=down(), strategy=strategy, on_no_answer="error").compile().invoke(asked())
    assert "token limit" not in str(caught.value)
    with pytest.warns(SearchWarning, match="check that the server runs"):
        run = run_search(QUESTION, policy=down(), scorer=HashScorer(), strategy=strategy)
    assert run.result.warning == state["search_result"]["warning"]


@pytest.mark.parametrize(
    ("status", "advice"),
    [(401, "API key"), (404, "model's name"), (429, "max_concurrency"), (503, "server's log")],
)
def test_a_refusal_says_what_to_do(status: int, advice: str) -> None:
    with pytest.warns(SearchWarning, match=advice):
        graph(policy=down(error=http_error(status))).compile().invoke(asked())


def test_an_answer_that_few_calls_reached_is_one_to_be_careful_with() -> None:
    with pytest.warns(SearchWarning, match="candidates failed"):
        state = graph(policy=down(every=5), strategy=BestOfN(20)).compile().invoke(asked())
    assert not state["search_result"]["fallback"]
    assert state["search_result"]["answer"] is not None


def test_paths_cut_by_the_token_limit_are_told_to_have_more() -> None:
    model = HashChatModel(max_steps=99, spread=9)
    limited = {"strategy": BeamSearch(width=1, expand=2, max_depth=2, stop=None), "policy": model}
    with pytest.raises(NoAnswerError, match="reached max_depth: raise it"):
        graph(**limited, on_no_answer="error").compile().invoke(asked())


def test_a_scorer_that_is_down_is_named() -> None:
    asleep = ScriptedScorer(lambda _: "HTTP 503: asleep")
    app = graph(scorer=asleep, strategy=BestOfN(4), on_no_answer="error").compile()
    with pytest.warns(SearchWarning, match=r"most frequent answer .*most often .*HTTP 503: asleep"):
        state = app.invoke(asked())
    assert state["search_result"]["answer"] is not None
