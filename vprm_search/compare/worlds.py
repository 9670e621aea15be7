"""What a comparison is measured on: problems with their right answers, and models.

Below the seam (`World`) stands a world made of hashes, in which everything about a step is known.
A problem is a number. A solution is a chain of `depth` steps, each a word drawn by the policy's
seed. Whether a step is right is decided by a hash of the problem and the words so far, so that the
same text is always as right; a wrong step spoils the path, but for `repair`. The reward model sees
the truth through noise of a stated AUC. Nothing here knows a search algorithm.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from statistics import NormalDist
from types import MappingProxyType
from typing import Any, Protocol

from vprm_search.answers import STRICT, extract_answer, same_answer
from vprm_search.types import (
    Counts,
    ImageData,
    Policy,
    Problem,
    Proposal,
    ProposeRequest,
    ScoreRequest,
    ScoreResult,
    StepScore,
    StepScorer,
)


@dataclass(frozen=True, slots=True)
class Task:
    """A problem with its images and its right answer."""

    problem: Problem
    images: tuple[ImageData, ...]
    answer: str


@dataclass(frozen=True, slots=True)
class LoadedWorld:
    """What a shard is measured on.

    `new_scorer` is called for every strategy: what one had scored must not be another's gain.
    `extract` reads the answer out of a whole solution. `models` names, as plain JSON, what can be
    known of the models only now, such as what a server says it serves.
    """

    tasks: Sequence[Task]
    policy: Policy
    new_scorer: Callable[[], StepScorer]
    extract: Callable[[str], str | None] = extract_answer
    models: Mapping[str, Any] = field(default_factory=dict)


class World(Protocol):
    """Problems and models. It is sent to other processes and loaded there, shard by shard."""

    @property
    def size(self) -> int:
        """The number of problems."""
        ...

    def identity(self) -> dict[str, Any]:
        """Say as plain JSON what is measured: equal identities give equal results.

        Problems may be added behind the others without another identity.
        """
        ...

    def load(self, start: int, stop: int) -> LoadedWorld:
        """Return the problems from `start` up to `stop`, and the models."""
        ...


def is_right(expected: str, answer: str | None, choices: Sequence[str] = ()) -> bool:
    """Return whether an answer is the expected one, in the unit that was asked for.

    Of a multiple-choice question both may be the letter or the text of one of `choices`.
    """
    if answer is None or answer == expected:
        return answer is not None
    return same_answer(answer, expected, choices=choices, rules=STRICT)


# --- a world made of hashes ----------------------------------------------------------------------

_NORMAL = NormalDist()
_PROBLEM = re.compile(r"problem (\d+)")
_WORD = re.compile(r"Step \d+: w(\d+)")
STOP_MARK = "Answer:"
"""Stands in the last step of every solution, before the answer."""


@dataclass(frozen=True, slots=True)
class ScoreNoise:
    """How a reward model sees the truth: through Gaussian noise, and with its own habits.

    With d = sqrt(2) * Phi^-1(AUC), right and wrong paths lie d apart in units of the noise;
    the logit |d| * x is the log likelihood ratio if d > 0 (binormal ROC: Green & Swets, 1966).

    Args:
        auc: chance that a right path's step is scored above a wrong path's. At .5 the scorer is
            blind, below it prefers wrong paths.
        correlation: of the scorer's errors at a step and at the step after it, in [0, 1).
        sharpness: factor on the scorer's logits; 1 is calibrated for even odds, more is
            overconfident.
        noise: standard deviation of the scorer's errors, in logits, before `sharpness`. Default:
            the one at which an AUC above .5 is calibrated; a blind scorer then scores all alike.
        level: the scorer's bias: added to all logits; 4.4 puts the scores of "hard" between .95
            and .997.
        early: added to the logits of a first step, half of it to those in the middle, nothing to
            those of a last step.
        blind: first steps of a solution whose scores are noise alone.
        depth: steps of a solution.
    """

    auc: float = 0.73
    correlation: float = 0.0
    sharpness: float = 1.0
    noise: float | None = None
    level: float = 0.0
    early: float = 0.0
    blind: int = 0
    depth: int = 10

    def __post_init__(self) -> None:
        """Raise `ValueError` for what is no noise."""
        if not 0 < self.auc < 1:
            raise ValueError(f"the AUC is {self.auc}; it must be above 0 and below 1")
        if self.noise is not None and not self.noise > 0:
            raise ValueError(f"the noise is {self.noise}; it must be above 0, or None")
        if not 0 <= self.correlation < 1 or self.depth < 1 or self.blind < 0:
            raise ValueError(f"not a noise of scores: {self}")

    def error(self, drawn: float, before: float | None = None) -> float:
        """Return the error at a step: `drawn` in [0, 1) makes it, after that of the step before."""
        fresh = _NORMAL.inv_cdf(min(max(drawn, 1e-12), 1 - 1e-12))
        if before is None:
            return fresh
        rho = self.correlation
        return rho * before + math.sqrt(1 - rho * rho) * fresh

    def score(self, right: bool, error: float, place: int) -> float:
        """Return P('+') of the step at `place` (the first is 1) whose path is `right` so far."""
        apart = math.sqrt(2) * _NORMAL.inv_cdf(self.auc)
        truth = 0.0 if place <= self.blind else (apart if right else -apart) / 2
        noise = abs(apart) if self.noise is None else self.noise
        left = max(0.0, 1 - (place - 1) / max(1, self.depth - 1))
        logit = self.sharpness * noise * (truth + error) + self.level + self.early * left
        return 1 / (1 + math.exp(-logit))


@dataclass(frozen=True, slots=True)
class WorldSettings(ScoreNoise):
    """What makes a world, with the noise of its scorer. Two worlds of equal settings are equal.

    Args:
        p_step: chance that a step is right when all before it are.
        repair: chance that a step after a wrong one puts the path right again.
        spread: `p_step` of a problem lies within this of the stated one, evenly.
        words: different texts a step can have; few make many equal siblings.
        wrong_answers: answers that wrong paths spread over.
        lure: share of the wrong paths that agree on one wrong answer.
        failing: chance that the scorer gives the paths of one length in a problem no score; it does
            when they have gone on.
        step_tokens: tokens of a step, for the policy and the scorer.
        prefix_tokens: tokens of image and question in front of the steps, for the scorer.
        seed: makes the world.
    """

    p_step: float = 0.72
    repair: float = 0.02
    spread: float = 0.0
    words: int = 10_000
    wrong_answers: int = 4
    lure: float = 0.0
    failing: float = 0.0
    step_tokens: int = 40
    prefix_tokens: int = 1800
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise `ValueError` for settings that are no world."""
        ScoreNoise.__post_init__(self)
        chances = (self.p_step, self.repair, self.spread, self.lure, self.failing)
        counts = (self.words, self.wrong_answers, self.step_tokens)
        if not all(0 <= c <= 1 for c in chances) or min(counts) < 1:
            raise ValueError(f"not a world: {self}")


_PLAIN = WorldSettings()

WORLDS: Mapping[str, WorldSettings] = MappingProxyType(
    {
        "easy": WorldSettings(p_step=0.93, auc=0.90),
        "medium": WorldSettings(p_step=0.85, auc=0.80),
        "hard": WorldSettings(),
    }
)
"""Worlds by name; "hard" is the one peers were measured on (ten steps, .72 a step, AUC .73)."""


@dataclass(frozen=True, slots=True)
class _State:
    """A path: what its hash is, whether it is right, and the scorer's error at its end."""

    key: bytes
    right: bool = True
    error: float = 0.0


@dataclass(slots=True)
class SyntheticWorld:
    """The truth about every path, as functions of the problem's number and the words so far."""

    settings: WorldSettings
    _states: dict[tuple[int, tuple[int, ...]], _State] = field(default_factory=dict)

    def question(self, problem: int) -> str:
        """Return the text of a problem; the number can be read back out of it."""
        return f"What follows from problem {problem}?"

    def answer(self, problem: int) -> str:
        """Return the right answer."""
        return str(100 + 10 * int(90 * self._chance(b"answer", self._root(problem))))

    def step(self, problem: int, words: tuple[int, ...], seed: int) -> tuple[str, int]:
        """Return the text and the word of the step that `seed` writes after `words`."""
        number = len(words) + 1
        drawn = self._chance(b"word", seed.to_bytes(8, "big") + number.to_bytes(2, "big"))
        word = int(drawn * self.settings.words)
        text = f"Step {number}: w{word}"
        if number == self.settings.depth:
            text += f"\n{STOP_MARK} {self._given(problem, (*words, word))}"
        return text, word

    def is_right(self, problem: int, words: tuple[int, ...]) -> bool:
        """Return whether the path is right so far."""
        return self._state(problem, words).right

    def score(self, problem: int, words: tuple[int, ...]) -> float:
        """Return P('+') of the last of `words`: the truth through the noise of the settings."""
        state = self._state(problem, words)
        return self.settings.score(state.right, state.error, len(words))

    def fails(self, problem: int, length: int) -> bool:
        """Return whether the scorer has no score for paths of this length."""
        key = self._root(problem) + b"|%d" % length
        return self._chance(b"failing", key) < self.settings.failing

    def _root(self, problem: int) -> bytes:
        return f"{self.settings.seed}|{problem}".encode()

    def _state(self, problem: int, words: tuple[int, ...]) -> _State:
        known = self._states.get((problem, words))
        if known is None:
            known = self._next(problem, words) if words else _State(self._root(problem))
            self._states[problem, words] = known
        return known

    def _next(self, problem: int, words: tuple[int, ...]) -> _State:
        before = self._state(problem, words[:-1])
        key = hashlib.blake2b(before.key + b"|%d" % words[-1], digest_size=16).digest()
        drawn = self._chance(b"right", key)
        right = drawn < (self._p_step(problem) if before.right else self.settings.repair)
        error_before = before.error if len(words) > 1 else None
        return _State(key, right, self.settings.error(self._chance(b"error", key), error_before))

    def _p_step(self, problem: int) -> float:
        shift = (2 * self._chance(b"hard", self._root(problem)) - 1) * self.settings.spread
        return min(1.0, max(0.0, self.settings.p_step + shift))

    def _given(self, problem: int, words: tuple[int, ...]) -> str:
        state = self._state(problem, words)
        right = int(self.answer(problem))
        if state.right:
            return str(right)
        lured = self._chance(b"lure", state.key) < self.settings.lure
        others = int(self._chance(b"wrong", state.key) * self.settings.wrong_answers)
        return str(right + 1 + (0 if lured else others))

    @staticmethod
    def _chance(kind: bytes, key: bytes) -> float:
        digest = hashlib.blake2b(key, digest_size=8, person=kind).digest()
        return int.from_bytes(digest, "big") / 2**64


def problem_of(text: str) -> int:
    """Return the number of the problem named in `text`. Raises `ValueError` if there is none."""
    found = _PROBLEM.search(text)
    if found is None:
        raise ValueError(f"no problem of a synthetic world: {text[:80]!r}")
    return int(found[1])


def words_of(steps: Sequence[str]) -> tuple[int, ...]:
    """Return the words of a path. Raises `ValueError` for a step that is none of this world."""
    return tuple(map(_word_of, steps))


@lru_cache(maxsize=65536)  # every step of a path is read again with every step after it
def _word_of(step: str) -> int:
    found = _WORD.match(step)
    if found is None:
        raise ValueError(f"no step of a synthetic world: {step[:80]!r}")
    return int(found[1])


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
        step, most = self.world.settings.step_tokens, request.max_tokens
        while not texts or (request.until == "end" and STOP_MARK not in texts[-1]):
            if texts and most is not None and (len(texts) + 1) * step > most:
                break
            text, word = self.world.step(problem, words, seed)
            texts.append(text)
            words = (*words, word)
        tokens = len(texts) * step if most is None else min(len(texts) * step, most)
        self.generated_tokens += tokens
        self.requests += 1
        finish = "stop" if STOP_MARK in texts[-1] else "step"
        if tokens < len(texts) * step or (finish == "step" and request.until == "end"):
            finish = "length"
        return Proposal(
            "\n\n".join(texts),
            finish,  # type: ignore[arg-type]
            generated_tokens=tokens,
            requests=1,
        )


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
    _known: dict[tuple[int, tuple[int, ...]], tuple[StepScore, ...]] = field(default_factory=dict)

    async def score(self, requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
        """Answer all requests: one result per request, in order."""
        self.counts.calls += 1
        return [self._scored(request) for request in requests]

    def _scored(self, request: ScoreRequest) -> ScoreResult:
        problem, words = problem_of(request.problem.question), words_of(request.steps)
        settings = self.world.settings
        before = self.counts.full_tokens
        new = self.counts.add(self.world, problem, words)
        if self.world.fails(problem, len(words)):
            return ScoreResult.failed(len(words), "the synthetic scorer failed")
        return ScoreResult(
            self._scores(problem, words),
            prefix_tokens=settings.prefix_tokens,
            step_tokens=(settings.step_tokens,) * len(words),
            cost=Counts(tokens_sent=self.counts.full_tokens - before, tokens_computed=new),
        )

    def _scores(self, problem: int, words: tuple[int, ...]) -> tuple[StepScore, ...]:
        if not words:
            return ()
        known = self._known.get((problem, words))
        if known is None:
            last = StepScore(self.world.score(problem, words))
            known = self._known[problem, words] = (*self._scores(problem, words[:-1]), last)
        return known


@dataclass(frozen=True, slots=True)
class SyntheticProblems:
    """The first `problems` problems of a synthetic world, with its own policy and scorer."""

    settings: WorldSettings = field(default_factory=lambda: WORLDS["hard"])
    problems: int = 200

    @property
    def size(self) -> int:
        """The number of problems."""
        return self.problems

    def identity(self) -> dict[str, Any]:
        """Return the settings that make the world; how many problems are taken may grow."""
        settings = asdict(self.settings)
        # 0.1 had none of them: its results go on
        for name in ("noise", "level", "early", "blind", "failing"):
            if settings[name] == getattr(_PLAIN, name):
                del settings[name]
        return {"world": "synthetic", "settings": settings}

    def load(self, start: int, stop: int) -> LoadedWorld:
        """Return the problems from `start` up to `stop`, and the world's models."""
        world = SyntheticWorld(self.settings)
        tasks = [
            Task(Problem(world.question(number)), (), world.answer(number))
            for number in range(start, stop)
        ]
        return LoadedWorld(tasks, SyntheticPolicy(world), lambda: SyntheticScorer(world))
