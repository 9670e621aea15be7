"""Defects that were reproduced in, or read out of, other search libraries: none may happen here.

The letters are those of the list they were collected in; libraries are named for their users.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatResult

from tests.graph.fakes import QUESTION, HashChatModel, HashScorer, noisy_png
from tests.search.strategies import EVERY
from vprm_search.budget import Budget
from vprm_search.chat.capabilities import ModelCapabilities
from vprm_search.compare.entrants import ENTRANTS
from vprm_search.errors import NoAnswerError
from vprm_search.graph.run import SearchRun, arun_search, run_search
from vprm_search.images import normalise_image
from vprm_search.policy.chat_model_policy import ChatModelPolicy
from vprm_search.search import (
    BeamSearch,
    BestOfN,
    Lookahead,
    MajorityVote,
    ParticleFilter,
    Strategy,
    WeightedVote,
)
from vprm_search.search.particle_filter import systematic_counts
from vprm_search.testing import ChatCall
from vprm_search.types import Proposal, ProposeRequest

pytestmark = pytest.mark.slow

STRATEGIES: dict[str, Any] = {
    **EVERY,
    **{f"compared {name}": (lambda e=entrant: e.make(8)) for name, entrant in ENTRANTS.items()},
}
every_strategy = pytest.mark.parametrize("name", STRATEGIES)


def made(name: str) -> Strategy:
    strategy: Strategy = STRATEGIES[name]()
    return strategy


def search(strategy: Strategy, model: Any = None, **options: Any) -> SearchRun:
    given = {"policy": model or HashChatModel(), "scorer": HashScorer(), **options}
    given.setdefault("budget", Budget(candidates=400))
    return run_search(QUESTION, strategy=strategy, **given)


# --- its_hub -----------------------------------------------------------------------------------


@every_strategy
def test_a_the_image_reaches_policy_and_scorer(name: str) -> None:
    """its_hub's beam search and particle filter: both saw the question's text only."""
    image = normalise_image(noisy_png(40))
    model, scorer = HashChatModel(), HashScorer()
    search(made(name), model, scorer=scorer, images=[image])
    assert model.calls
    assert all(call.images == (image,) for call in model.calls)
    assert scorer.asked
    assert all(request.images == (image,) for request in scorer.asked)


@every_strategy
def test_b_the_end_of_an_answer_is_seen_without_being_told_a_stop_word(name: str) -> None:
    """its_hub's StepGeneration: an answer of 2 steps was continued to 21, in 82 requests."""
    run = search(made(name), HashChatModel(max_steps=2))
    depths = {run.tree.depth(r.id) for r in run.tree if r.parent and r.status != "failed"}
    assert max(depths) <= 2
    assert run.result.answer is not None
    assert not run.result.fallback


@pytest.mark.parametrize("chances", [[0.5, 0.3, 0.2], [0.05] * 20, [0.97, 0.01, 0.02]])
@pytest.mark.parametrize("start", [0.0, 0.3, 0.999])
def test_c_systematic_resampling_is_systematic(chances: list[float], start: float) -> None:
    """its_hub's ParticleFiltering ignored the option and stayed multinomial."""
    counts = systematic_counts(chances, 16, start)
    assert sum(counts) == 16
    for chance, count in zip(chances, counts, strict=True):
        assert abs(count - 16 * chance) < 1


@every_strategy
def test_d_sync_and_async_give_the_same_result_and_tree(name: str) -> None:
    """its_hub's EntropicParticleFiltering returned two different types."""
    now = search(made(name))
    later = asyncio.run(
        arun_search(
            QUESTION,
            policy=HashChatModel(),
            scorer=HashScorer(),
            strategy=made(name),
            budget=Budget(candidates=400),
        )
    )
    assert type(now.result) is type(later.result)
    assert now.tree.dumps() == later.tree.dumps()
    assert now.result.candidates == later.result.candidates


STEPWISE = {n: f for n, f in EVERY.items() if "max_depth" in getattr(type(f()), "model_fields", ())}


@pytest.mark.parametrize("depth", [1, 3, 5])
@pytest.mark.parametrize("name", STEPWISE)
def test_e_max_depth_is_exact(name: str, depth: int) -> None:
    """its_hub: max_steps=3 gave 4 steps."""
    strategy = STEPWISE[name]()
    limited = strategy.model_copy(update={"max_depth": depth})  # type: ignore[attr-defined]
    endless = HashChatModel(max_steps=40, spread=10_000)
    run = search(limited, endless)
    depths = [run.tree.depth(record.id) for record in run.tree if record.status != "failed"]
    assert max(depths) <= depth
    if depth < 4:  # deeper, every path may have ended before
        assert max(depths) == depth


def test_f_every_level_is_full_and_no_path_is_there_twice() -> None:
    """its_hub's beam: levels 4, 16, 16 …, then 16 answers of which 4 were distinct; no usage."""
    strategy = BeamSearch(width=4, expand=4, max_depth=4, refill=0, stop=None)
    run = search(strategy, HashChatModel(max_steps=40, spread=10_000))
    tree = run.tree
    levels = [len(list(tree.round_nodes(number))) for number in range(1, tree.rounds + 1)]
    assert levels[0] == 16
    assert all(level % 4 == 0 for level in levels)
    assert max(levels) == 16
    usage = run.result.usage
    assert usage.candidates == sum(levels)
    assert min(usage.generated_tokens, usage.scored_tokens, usage.requests) > 0


@every_strategy
def test_f_answers_are_distinct_paths_and_finished_ones_take_no_slot(name: str) -> None:
    strategy = made(name)
    run = search(strategy, HashChatModel(spread=2, max_steps=4))
    for record in run.tree.finished():
        assert not run.tree.children(record.id)
    if not isinstance(strategy, BestOfN | Lookahead):  # there, equal whole samples are votes
        found = run.result.candidates  # auto's whole samples vote, too
        searched = [one for one in found if run.tree[one.node].role != "completion"]
        paths = Counter(candidate.steps for candidate in searched)
        assert paths
        assert set(paths.values()) <= {1}


@dataclass
class OneCallFails:
    """A policy whose call number `which` is lost; the others are those of the model behind it."""

    model: HashChatModel
    which: int
    asked: int = 0
    lost: list[int] = field(default_factory=list)

    async def propose(self, requests: Sequence[ProposeRequest]) -> list[list[Proposal]]:
        replies = await ChatModelPolicy(self.model).propose(requests)
        return [[self._sent(proposal) for proposal in reply] for reply in replies]

    def _sent(self, proposal: Proposal) -> Proposal:
        self.asked += 1
        if self.asked != self.which:
            return proposal
        self.lost.append(self.asked)
        return Proposal("", "error", requests=1, error="connection reset")


@pytest.mark.parametrize("which", [1, 7, 20, 48])
@every_strategy
def test_g_one_lost_request_costs_one_candidate(name: str, which: int) -> None:
    """its_hub's particle filter: 1 failed request of 48 ended the whole search."""
    policy = OneCallFails(HashChatModel(max_steps=40, spread=10_000), which)
    limited = made(name)
    run = search(limited, policy, budget=Budget(candidates=60))
    failed = [record for record in run.tree if record.status == "failed"]
    assert len(failed) == len(policy.lost)
    assert all("connection reset" in record.reason for record in failed)
    others = sum(1 for record in run.tree if record.seed and record.status != "failed")
    assert others == run.result.usage.candidates - len(failed) > 0


# --- llm-reasoners, search-and-learn -----------------------------------------------------------


@every_strategy
def test_h_a_policy_that_repeats_itself_breaks_nothing(name: str) -> None:
    """llm-reasoners' BeamSearch: action_dedup=True raised UnboundLocalError."""
    run = search(made(name), HashChatModel(spread=1, max_steps=3))
    run.tree.check()
    assert run.result.answer is not None


class EndlessModel(HashChatModel):
    """Never finishes: every call is cut by its token limit."""

    def written(self, call: ChatCall) -> AIMessage:
        shown, answer = call.seed % 1000, call.seed % 3
        text = f"The board shows {shown} tiles, of which the first is\nAnswer: {answer}"
        return AIMessage(text, response_metadata={"finish_reason": "length"})


@every_strategy
def test_i_a_step_cut_by_the_token_limit_is_not_a_finished_answer(name: str) -> None:
    """search-and-learn took a cut step for the end and let unfinished DVTS paths vote."""
    run = search(made(name), EndlessModel())
    assert not run.tree.finished()
    assert run.result.fallback
    assert all(candidate.status != "finished" for candidate in run.result.candidates)
    with pytest.raises(NoAnswerError, match="no path finished"):
        search(made(name), EndlessModel(), on_no_answer="error")


@every_strategy
@pytest.mark.parametrize("selector", [WeightedVote(), MajorityVote()])
def test_i_only_finished_paths_are_answers(name: str, selector: Any) -> None:
    run = search(made(name), selector=selector)
    assert run.result.candidates
    if not run.result.fallback:
        assert {candidate.status for candidate in run.result.candidates} == {"finished"}
        assert run.result.node is not None
        assert run.tree[run.result.node].status == "finished"


# --- ThinkBooster, optillm, DSPy ---------------------------------------------------------------


class SlowModel(HashChatModel):
    """A synchronous model that only answers once the event loop has done something else."""

    loop_ran: Any = None

    def _generate(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        assert self.loop_ran.wait(timeout=30), "the event loop was blocked by the model's call"
        return super()._generate(messages, stop, run_manager, **kwargs)

    async def _agenerate(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        return await asyncio.to_thread(self._generate, messages, stop, None, **kwargs)


async def test_j_a_search_does_not_block_the_event_loop() -> None:
    """ThinkBooster ran synchronous work inside async functions."""
    loop_ran = threading.Event()

    async def heartbeat() -> None:
        await asyncio.sleep(0.01)
        loop_ran.set()

    beat = asyncio.create_task(heartbeat())
    run = await arun_search(
        QUESTION, policy=SlowModel(loop_ran=loop_ran), scorer=HashScorer(), strategy=BestOfN(3)
    )
    await beat
    assert run.result.answer is not None


ONE_BY_ONE = ModelCapabilities(prefill="message", instructions=False, in_process=True)
"""One answer a call, and no seeds: a plain hosted model."""


def test_j_tokens_are_the_servers_count_not_a_guess_from_characters() -> None:
    class Counting(HashChatModel):
        def written(self, call: ChatCall) -> AIMessage:
            usage = {"input_tokens": 11, "output_tokens": 1000, "total_tokens": 1011}
            return super().written(call).model_copy(update={"usage_metadata": usage})

    usage = search(BestOfN(3), Counting(capabilities=ONE_BY_ONE)).result.usage
    assert (usage.generated_tokens, usage.prompt_tokens) == (3000, 33)


def test_k_every_call_carries_the_images_of_the_conversation() -> None:
    """optillm kept the text of a message and dropped its images."""
    model = HashChatModel(capabilities=ONE_BY_ONE)
    search(BestOfN(4), model, images=[normalise_image(noisy_png(30, 1)), noisy_png(30, 2)])
    assert len(model.calls) >= 4
    assert all(len(call.images) == 2 for call in model.calls)


@every_strategy
def test_l_a_strategy_used_again_gives_the_same_search(name: str) -> None:
    """DSPy's BestOfN counted failures on itself, so a second call had fewer left."""
    strategy, model = made(name), HashChatModel(fail=0.3)
    first = search(strategy, model)
    again = search(strategy, model)
    assert first.tree.dumps() == again.tree.dumps()


@every_strategy
def test_l_a_search_in_which_everything_fails_says_so(name: str) -> None:
    """DSPy's BestOfN returned None when every attempt had failed."""
    dead = HashChatModel(fail=1.0)
    run = search(made(name), dead)
    assert run.result.answer is None
    assert run.result.fallback
    assert {r.status for r in run.tree if r.parent is not None} == {"failed"}
    with pytest.raises(NoAnswerError):
        search(made(name), dead, on_no_answer="error")


def test_particles_do_not_multiply_a_path() -> None:
    """The same, for the strategy in which peers copy paths: copies are counts, not nodes."""
    run = search(ParticleFilter(particles=16, max_depth=6), HashChatModel(spread=3))
    texts = Counter(run.tree.steps(record.id) for record in run.tree.finished())
    assert set(texts.values()) <= {1}
