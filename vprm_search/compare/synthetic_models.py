"""The policy and the reward model of a synthetic world, behind this package's seams.

Both keep their own counts, apart from what a search tree says was spent, so that one can be held
against the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from vprm_search.compare.synthetic_world import STOP_MARK, SyntheticWorld, problem_of, words_of
from vprm_search.types import (
    Proposal,
    ProposeRequest,
    ScoreCost,
    ScoreRequest,
    ScoreResult,
    StepScore,
)


@dataclass(slots=True)
class SyntheticPolicy:
    """Writes steps, or whole solutions, word by word from the seeds it is given."""

    world: SyntheticWorld
    generated_tokens: int = 0
    requests: int = 0

    async def propose(self, requests: Sequence[ProposeRequest]) -> list[list[Proposal]]:
        """Answer all requests: one list per request, one proposal per seed, in order."""
        return [[self._written(request, seed) for seed in request.seeds] for request in requests]

    def _written(self, request: ProposeRequest, seed: int) -> Proposal:
        problem, words = problem_of(request.problem.question), words_of(request.steps)
        texts: list[str] = []
        while not texts or (request.until == "end" and STOP_MARK not in texts[-1]):
            text, word = self.world.step(problem, words, seed)
            texts.append(text)
            words = (*words, word)
        tokens = len(texts) * self.world.settings.step_tokens
        self.generated_tokens += tokens
        self.requests += 1
        finish = "stop" if STOP_MARK in texts[-1] else "step"
        return Proposal("\n\n".join(texts), finish, tokens, requests=1)  # type: ignore[arg-type]


@dataclass(slots=True)
class ScorerCounts:
    """What a scorer was asked to do.

    `full_tokens` is what the requests hold, each sent whole; `new_tokens` leaves out every prefix
    that was sent before, as an ideal cache would.
    """

    calls: int = 0
    sequences: int = 0
    full_tokens: int = 0
    new_tokens: int = 0
    _known: set[tuple[int, tuple[int, ...]]] = field(default_factory=set)

    def add(self, world: SyntheticWorld, problem: int, words: tuple[int, ...]) -> int:
        """Count one sequence and return how many of its tokens were not sent before."""
        step, prefix = world.settings.step_tokens, world.settings.prefix_tokens
        new = 0
        for end in range(len(words) + 1):
            path = (problem, words[:end])
            if path not in self._known:
                self._known.add(path)
                new += step if end else prefix
        self.sequences += 1
        self.full_tokens += prefix + step * len(words)
        self.new_tokens += new
        return new


@dataclass(slots=True)
class SyntheticScorer:
    """Scores every step of a path; keeps what it computed for every prefix, as a kept context."""

    world: SyntheticWorld
    counts: ScorerCounts = field(default_factory=ScorerCounts)

    async def score(self, requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
        """Answer all requests: one result per request, in order."""
        self.counts.calls += 1
        return [self._scored(request) for request in requests]

    def _scored(self, request: ScoreRequest) -> ScoreResult:
        problem, words = problem_of(request.problem.question), words_of(request.steps)
        settings = self.world.settings
        before = self.counts.full_tokens
        new = self.counts.add(self.world, problem, words)
        scores = (
            StepScore(self.world.score(problem, words[: end + 1])) for end in range(len(words))
        )
        return ScoreResult(
            tuple(scores),
            prefix_tokens=settings.prefix_tokens,
            step_tokens=(settings.step_tokens,) * len(words),
            cost=ScoreCost(tokens_sent=self.counts.full_tokens - before, tokens_computed=new),
        )
