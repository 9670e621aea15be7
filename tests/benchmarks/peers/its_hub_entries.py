"""its_hub 1.2.0 on the synthetic world, through its own API.

How the comparison is kept fair:

* The same world: its policy draws from a seeded generator per problem, its reward model returns
  the same P('+') for the same text. Aggregation is the adapter's, as its API has it.
* It is told the stop token and the exact number of steps, without which it finds no end.
* Counted at the models: tokens written, sequences scored, and tokens scored both as sent (each
  sequence whole) and as an ideal prefix cache on its server would have it.
* It chooses by argmax only; the vote over its final paths is added from the scores it returns.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vprm_search.compare.worlds import (
    STOP_MARK,
    ScorerCounts,
    SyntheticWorld,
    problem_of,
    words_of,
)
from vprm_search.evaluate.cells import CELL_COUNTS, Row

STEP = "\n\n"
Aggregate = Callable[[Sequence[float]], float]
AGGREGATES: dict[str, Aggregate] = {"last": lambda scores: scores[-1], "product": math.prod}


def entries() -> dict[str, tuple[str, str]]:
    """Return what is run: name -> (its_hub algorithm, aggregation of the step scores)."""
    return {
        "its_hub self-consistency": ("self-consistency", "last"),
        "its_hub best-of-n (product)": ("best-of-n", "product"),
        "its_hub beam (last)": ("beam", "last"),
        "its_hub beam (product)": ("beam", "product"),
        "its_hub particle filtering": ("particles", "last"),
        "its_hub entropic particle filtering": ("entropic", "last"),
    }


@dataclass
class Meter:
    """What one problem cost: tokens written, and the scorer's counts."""

    generated_tokens: int = 0
    scored: ScorerCounts = field(default_factory=ScorerCounts)


@dataclass
class Answered:
    """What its_hub returned for one problem: its choice, and all final texts with their scores."""

    chosen: str
    texts: list[str]
    scores: list[float]


def measure(world: SyntheticWorld, problems: range, name: str, size: int, run_seed: int = 0) -> Row:
    """Run one entry on all problems; returns a cell like those of a comparison."""
    algorithm, aggregate = entries()[name]
    row: dict[str, Any] = {key: [] for key in CELL_COUNTS}
    right: dict[str, list[int]] = {"own choice": [], "weighted vote": []}
    began = time.perf_counter()
    for problem in problems:
        random.seed(f"{run_seed}|{problem}")
        np.random.seed(abs(hash((run_seed, problem))) % 2**32)  # its systematic resampling
        meter = Meter()
        given = asyncio.run(
            _infer(world, problem, algorithm, AGGREGATES[aggregate], size, run_seed, meter)
        )
        settings = world.settings
        row["budget"].append(size * settings.depth * settings.step_tokens)
        row["generated_tokens"].append(meter.generated_tokens)
        row["scored_tokens"].append(meter.scored.full_tokens)
        row["computed_tokens"].append(meter.scored.new_tokens)
        row["rounds"].append(meter.scored.calls)
        row["cut"].append(0)
        row["finished"].append(len(set(given.texts)))
        right["own choice"].append(int(_answer(given.chosen) == world.answer(problem)))
        right["weighted vote"].append(int(_voted(given) == world.answer(problem)))
    return {
        "name": name,
        "size": size,
        "strategy": {"strategy": f"its_hub 1.2.0 {algorithm}", "aggregate": aggregate},
        "seconds": time.perf_counter() - began,
        **row,
        "right": right,
    }


async def _infer(
    world: SyntheticWorld,
    problem: int,
    algorithm: str,
    aggregate: Aggregate,
    size: int,
    run_seed: int,
    meter: Meter,
) -> Answered:
    from its_hub import BestOfN, SelfConsistency
    from its_hub.core.algorithms.beam_search import BeamSearch
    from its_hub.core.algorithms.particle_gibbs import EntropicParticleFiltering, ParticleFiltering
    from its_hub.core.lms.step_generation import StepGeneration
    from its_hub.core.orchestrator import LMOrchestrator

    logging.getLogger().setLevel(logging.ERROR)
    lm, prm, orm = _adapters(world, aggregate, run_seed, meter)
    steps = StepGeneration(
        max_steps=world.settings.depth, step_token=STEP, stop_token=STOP_MARK, temperature=0.8
    )
    orchestrator = LMOrchestrator(max_concurrency=-1)
    made = {
        "self-consistency": lambda: SelfConsistency(_answer, orchestrator=orchestrator),
        "best-of-n": lambda: BestOfN(orm, orchestrator=orchestrator),
        "beam": lambda: BeamSearch(steps, prm, beam_width=4),
        "particles": lambda: ParticleFiltering(steps, prm),
        "entropic": lambda: EntropicParticleFiltering(steps, prm),
    }[algorithm]()
    found = await made.ainfer(lm, world.question(problem), size, return_response_only=False)
    if algorithm in ("self-consistency", "best-of-n", "beam"):
        texts, scores = found.responses, getattr(found, "scores", [1.0] * len(found.responses))
    elif algorithm == "particles":
        texts = found.responses
        scores = [1 / (1 + math.exp(-weight)) for weight in found.log_weights_lst]
    else:  # returns the result of its base class when awaited
        texts = found.responses_lst[-1]
        scores = [1 / (1 + math.exp(-weight)) for weight in found.log_weights_lst[-1]]
    chosen = texts[found.selected_index]["content"]
    return Answered(chosen, [text["content"] for text in texts], list(map(float, scores)))


def _adapters(
    world: SyntheticWorld, aggregate: Aggregate, run_seed: int, meter: Meter
) -> tuple[Any, Any, Any]:
    from its_hub.api import (
        AbstractLanguageModel,
        AbstractOutcomeRewardModel,
        AbstractProcessRewardModel,
    )

    class Policy(AbstractLanguageModel):
        """Writes one step where a stop string is given, else the whole solution."""

        async def agenerate(self, messages: Any, stop: Any = None, **options: Any) -> Any:
            if messages and isinstance(messages[0], list):
                return [await self.agenerate_single(single, stop) for single in messages]
            return await self.agenerate_single(messages, stop)

        async def agenerate_single(self, messages: Any, stop: Any = None, **options: Any) -> Any:
            problem = problem_of(messages[0].content)
            so_far = messages[-1].content if messages[-1].role == "assistant" else ""
            words = words_of([step for step in so_far.split(STEP) if step])
            written: list[str] = []
            seed = random.getrandbits(63)
            while not written or (stop is None and STOP_MARK not in written[-1]):
                text, word = world.step(problem, words, seed)
                written.append(text)
                words = (*words, word)
            meter.generated_tokens += len(written) * world.settings.step_tokens
            return {"role": "assistant", "content": STEP.join(written)}

    def plus(prompt: str, response: str) -> float:
        problem, words = problem_of(prompt), words_of(response.split(STEP))
        meter.scored.add(world, problem, words)
        return aggregate([world.score(problem, words[: k + 1]) for k in range(len(words))])

    class Prm(AbstractProcessRewardModel):
        """Scores whole responses, as its reward models do."""

        def score(self, prompt: Any, responses: Any) -> Any:
            meter.scored.calls += 1
            return [plus(prompt, response) for response in responses]

        async def ascore(self, prompt: Any, responses: Any) -> Any:
            return self.score(prompt, responses)

    class Orm(AbstractOutcomeRewardModel):
        """The same reward model for its best-of-N, which has no other way to one."""

        def score(self, conversations: Any, **options: Any) -> Any:
            meter.scored.calls += 1
            return [plus(turns[0].content, turns[-1].content) for turns in conversations]

        async def ascore(self, conversations: Any, **options: Any) -> Any:
            return self.score(conversations)

    return Policy(), Prm(), Orm()


def _answer(text: str) -> str:
    found = re.search(rf"{STOP_MARK} (\d+)", text)
    return found[1] if found else ""


def _voted(given: Answered) -> str:
    votes: dict[str, float] = {}
    for text, score in zip(given.texts, given.scores, strict=True):
        votes[_answer(text)] = votes.get(_answer(text), 0.0) + score
    return max(votes, key=lambda answer: votes[answer])
