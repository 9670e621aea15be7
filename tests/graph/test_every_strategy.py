"""Every strategy through the real graph, with a chat model and a picture.

Several tests here are defects once reproduced in other search libraries, turned around.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from langchain_core.outputs import ChatResult
from langgraph.checkpoint.memory import InMemorySaver

from tests.graph.fakes import QUESTION, HashChatModel, HashScorer, asked, noisy_png
from tests.search.strategies import EVERY, inner
from vprm_search.budget import Budget
from vprm_search.errors import ConfigError
from vprm_search.graph import create_search_graph, run_search, tree_of_state
from vprm_search.images import normalise_image
from vprm_search.images.store import MemoryImageStore
from vprm_search.search import (
    BeamSearch,
    BestOfN,
    BestScore,
    Cascade,
    Knockout,
    MajorityVote,
    Selector,
    WeightedVote,
)
from vprm_search.search.outcome import ends
from vprm_search.tree import SearchTree

PNG = noisy_png(48)
THREAD = {"configurable": {"thread_id": "one"}}
every_strategy = pytest.mark.parametrize("name", EVERY)


def models(**options: Any) -> dict[str, HashChatModel]:
    """Two chat models: few words make duplicates, and the strong one knows others."""
    draft, strong = {"spread": 6}, {"spread": 9, "max_steps": 5}
    return {
        "draft": HashChatModel(**{**draft, **options}),
        "strong": HashChatModel(**{**strong, **options}),
    }


def graph(name: str, **options: Any) -> Any:
    given: dict[str, Any] = {
        "policy": models(),
        "scorer": HashScorer(fail=0.05),
        "strategy": EVERY[name](),
        "image_store": MemoryImageStore(),
    }
    return create_search_graph(**{**given, **options})


@every_strategy
async def test_sync_async_and_resumed_at_every_round_are_one_search(name: str) -> None:
    state = await graph(name).compile().ainvoke(asked(png=PNG))
    whole = tree_of_state(state)
    threaded = await asyncio.to_thread(graph(name).compile().invoke, asked(png=PNG))
    assert tree_of_state(threaded).dumps() == whole.dumps()
    assert type(threaded["search_result"]) is type(state["search_result"])
    alone = run_search(
        QUESTION,
        images=[PNG],
        policy=models(),
        scorer=HashScorer(fail=0.05),
        strategy=EVERY[name](),
    )
    assert alone.tree.dumps() == whole.dumps()
    assert len(whole) > 2


@every_strategy
def test_a_new_process_at_every_round_goes_on_where_the_last_one_stopped(name: str) -> None:
    whole = tree_of_state(graph(name).compile().invoke(asked(png=PNG)))
    saver, store, given = InMemorySaver(), MemoryImageStore(), asked(png=PNG)
    for _ in range(200):
        app = graph(name, image_store=store).compile(
            checkpointer=saver, interrupt_after=["plan", "score"]
        )
        state = app.invoke(given, THREAD)
        given = None
        if state.get("search_result"):
            break
    assert tree_of_state(app.get_state(THREAD).values).dumps() == whole.dumps()


@every_strategy
def test_the_picture_reaches_every_call_to_policy_and_scorer(name: str) -> None:
    policies, scorer = models(), HashScorer()
    strategy = EVERY[name]()
    run_search(QUESTION, images=[PNG], policy=policies, scorer=scorer, strategy=strategy)
    digest = normalise_image(PNG).digest
    assert {tuple(i.digest for i in request.images) for request in scorer.asked} == {(digest,)}
    calls = [call for model in policies.values() for call in model.calls]
    assert calls
    for call in calls:
        assert [image.digest for image in call.images] == [digest]


@every_strategy
@pytest.mark.parametrize(
    "selector", [BestScore(), MajorityVote(), WeightedVote(), Knockout()], ids=lambda s: type(s)
)
def test_only_a_finished_path_is_the_answer_while_there_is_one(
    name: str, selector: Selector
) -> None:
    run = run_search(
        QUESTION,
        policy=models(),
        scorer=HashScorer(),
        strategy=EVERY[name](),
        selector=selector,
    )
    assert run.result.node is not None
    statuses = {candidate.status for candidate in run.result.candidates}
    if run.tree.finished():
        assert statuses == {"finished"}
        assert not run.result.fallback
        assert run.tree[run.result.node].status == "finished"
    for record in run.tree:  # a step cut by the token limit has not finished
        if record.text.startswith("Step") and record.status == "finished":
            raise AssertionError(f"{record.text!r} was cut and counts as finished")


class LosesOneCall(HashChatModel):
    """The seventh call is lost, as a connection may be."""

    made: list[int] = []  # noqa: RUF012 - a pydantic field

    async def _agenerate(self, *args: Any, **kwargs: Any) -> ChatResult:
        self.made.append(1)
        if len(self.made) == 3:
            raise ValueError("connection lost")
        return await super()._agenerate(*args, **kwargs)


@every_strategy
def test_a_lost_call_costs_its_own_candidates_only(name: str) -> None:
    model = LosesOneCall(spread=6)
    run = run_search(
        QUESTION, policy=model, scorer=HashScorer(), strategy=EVERY[name](), run_seed=3
    )
    lost = [r for r in run.tree if r.status == "failed" and "connection lost" in r.reason]
    parents = {record.parent for record in lost}
    assert len(parents) == (1 if len(model.made) >= 3 else 0)
    assert run.result.node is not None
    assert run.tree.finished()


@every_strategy
@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_a_budget_cut_in_any_round_returns_the_best_answer_so_far(name: str, rounds: int) -> None:
    run = run_search(
        QUESTION,
        policy=models(),
        scorer=HashScorer(),
        strategy=EVERY[name](),
        budget=Budget(rounds=rounds),
    )
    assert run.tree.rounds <= rounds
    assert run.result.node is not None
    assert run.result.fallback == (not run.tree.finished())
    cut = [end for end in ends(run.tree) if end.fate == "cut"]
    assert all("cut by budget" in end.reason or "not needed" in end.reason for end in cut)
    assert bool(cut) <= (run.result.ended_by.startswith("budget") or run.result.fallback)


@pytest.mark.parametrize("name", [n for n, new in EVERY.items() if not isinstance(new(), BestOfN)])
def test_the_number_of_steps_is_bounded_exactly_and_the_end_is_seen(name: str) -> None:
    strategy = EVERY[name]()
    endless = {key: HashChatModel(max_steps=99, spread=50) for key in ("draft", "strong")}
    run = run_search(QUESTION, policy=endless, scorer=HashScorer(), strategy=strategy)
    depth = inner(strategy).max_depth
    own = [record for record in run.tree if record.role != "lookahead"]
    assert max(run.tree.depth(record.id) for record in own) <= depth
    for record in run.tree.finished():
        assert not run.tree.children(record.id)  # an ended answer is not gone on with


@every_strategy
async def test_one_strategy_object_serves_many_searches_at_once(name: str) -> None:
    strategy = EVERY[name]()
    app = graph(name, strategy=strategy).compile()
    questions = [f"{QUESTION} Board {number}." for number in range(4)]
    states = await asyncio.gather(*(app.ainvoke(asked(q)) for q in questions))
    for question, state in zip(questions, states, strict=True):
        fresh = graph(name).compile().invoke(asked(question))
        assert tree_of_state(state).dumps() == tree_of_state(fresh).dumps()


# --- several policies ------------------------------------------------------------------------


def test_a_cascade_asks_the_policy_it_names() -> None:
    policies = models()
    run = run_search(
        QUESTION, policy=policies, scorer=HashScorer(), strategy=Cascade(threshold=0.5)
    )
    drafted = [r for r in run.tree if r.policy == "draft"]
    redone = [r for r in run.tree if r.policy == "strong"]
    assert drafted
    assert redone
    assert len(drafted) + len(redone) == len(run.tree) - 1
    assert len(policies["draft"].calls) == len(drafted)
    assert len(policies["strong"].calls) == len(redone)


def test_a_name_without_a_policy_is_refused() -> None:
    with pytest.raises(ConfigError, match="no policy is named 'strong'; there are: draft, big"):
        run_search(
            QUESTION,
            policy={"draft": HashChatModel(), "big": HashChatModel()},
            scorer=HashScorer(),
            strategy=Cascade(threshold=1.0),
        )
    with pytest.raises(ConfigError, match="at least one name"):
        create_search_graph(policy={}, scorer=HashScorer())


def test_without_names_the_first_policy_proposes_everything() -> None:
    policies = models()
    run_search(QUESTION, policy=policies, scorer=HashScorer(), strategy=BeamSearch(width=2))
    assert policies["draft"].calls
    assert not policies["strong"].calls


def test_the_records_of_other_strategies_say_nothing_of_policies_and_roles() -> None:
    run = run_search(QUESTION, policy=HashChatModel(), scorer=HashScorer())
    assert not any({"policy", "role"} & set(record.to_json()) for record in run.tree)
    again = SearchTree.loads(run.tree.dumps())
    assert again.dumps() == run.tree.dumps()
