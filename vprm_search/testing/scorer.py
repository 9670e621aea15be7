"""A scorer that says what a test wants, and one that is as good as a test says."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from vprm_search.compare.worlds import ScoreNoise
from vprm_search.testing.script import Script, chance, words_in
from vprm_search.types import ScoreRequest, ScoreResult, StepScore

Scored = float | str | StepScore | None
"""What a scorer says of one step: P('+'); or None, or a text as the reason, for no score."""

UNSCORED = "left unscored by the script"


class ScriptedScorer:
    """Scores by a script; implements `types.StepScorer`.

    Args:
        script: a rule, which may be async, asked for every step: it gets the request as it stood
            when that step was its last one, so `request.steps[-1]` is the step and the others are
            before it; or scores in the order of asking. `NoisyScores` is such a rule.
        rounds: what happens in which call of `score`, counted from 1: None or a reason leaves all
            its steps unscored, an exception is raised.
        delay_s: seconds that every call takes.
        identity: the scorer's name for caches and calibrations.

    `batches` keeps the requests of every call. Tokens are words, and one more for a step's end.
    Raises `ConfigError` when the scores are used up.
    """

    def __init__(
        self,
        script: Callable[[ScoreRequest], Scored | Awaitable[Scored]] | Iterable[Scored],
        *,
        rounds: Mapping[int, str | Exception | None] | None = None,
        delay_s: float = 0.0,
        identity: str = "scripted",
    ) -> None:
        self._script = Script(script)
        self.rounds, self.delay_s, self.identity = dict(rounds or {}), delay_s, identity
        self.batches: list[tuple[ScoreRequest, ...]] = []

    @property
    def asked(self) -> list[ScoreRequest]:
        """Every request, in order."""
        return [request for batch in self.batches for request in batch]

    async def score(self, requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
        """Answer all requests: one result per request, in order."""
        self.batches.append(tuple(requests))
        number = len(self.batches)
        await asyncio.sleep(self.delay_s)
        if number in self.rounds:
            happens = self.rounds[number]
            if isinstance(happens, Exception):
                raise happens
            return [ScoreResult.failed(len(r.steps), happens or UNSCORED) for r in requests]
        asked = [
            replace(r, steps=r.steps[:end]) for r in requests for end in range(1, len(r.steps) + 1)
        ]
        said = iter(await self._script.awaited([self._script(request) for request in asked]))
        return [
            ScoreResult(
                tuple(_score(next(said)) for _ in request.steps),
                prefix_tokens=_prefix(request) if request.steps else 0,
                step_tokens=tuple(words_in(step) + 1 for step in request.steps),
            )
            for request in requests
        ]


def _prefix(request: ScoreRequest) -> int:
    return words_in(request.problem.system, request.problem.question)


def _score(said: Scored) -> StepScore:
    if isinstance(said, StepScore):
        return said
    if said is None or isinstance(said, str):
        return StepScore(None, said or UNSCORED)
    return StepScore(said)


@dataclass(frozen=True, slots=True)
class NoisyScores(ScoreNoise):
    """A rule for `ScriptedScorer`: the truth, seen through the noise of `ScoreNoise`.

    `right` tells of a request whether its path, the last step included, is right. A share
    `unscored` of the steps gets no score. Equal paths of equal problems have equal scores; `seed`
    makes other ones.
    """

    right: Callable[[ScoreRequest], bool] = field(kw_only=True)
    unscored: float = 0.0
    seed: int = 0

    def __call__(self, request: ScoreRequest) -> float | None:
        """Return P('+') of the last step of `request`."""
        if chance("unscored", *self._key(request, request.steps)) < self.unscored:
            return None
        depth = len(request.steps)
        error: float | None = None
        for end in range(1 if self.correlation else depth, depth + 1):
            drawn = chance("error", *self._key(request, request.steps[:end]))
            error = self.error(drawn, error)
        return self.score(self.right(request), error or 0.0, depth)

    def _key(self, request: ScoreRequest, steps: Sequence[str]) -> tuple[object, ...]:
        return (self.seed, request.problem.question, request.problem.images, tuple(steps))
