"""The paths of one problem on their way through a scoring server, and what is known of each."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from vprm_search.scoring.reasons import NO_SCORE
from vprm_search.scoring.score_cache import MemoryScoreStore, StoredScore, step_keys
from vprm_search.types import ImageData, Problem, ScoreRequest, ScoreResult, StepScore

Path = tuple[str, ...]
"""The steps of one path, in order."""


@dataclass(slots=True)
class PathState:
    """What is known of one path: a value or None per step, and why a path has failed."""

    values: list[float | None]
    reason: str = ""
    prefix_tokens: int = 0
    step_tokens: tuple[int, ...] = ()


@dataclass(slots=True)
class ProblemRound:
    """All paths of one problem that one `score` call asks for, each once.

    Whatever happens to a request, every path ends with a value or a reason for every step.
    """

    question: str
    images: tuple[ImageData, ...]
    paths: dict[Path, PathState] = field(default_factory=dict)

    def want(self, path: Path) -> None:
        """Add a path; a path asked for twice is one path."""
        self.paths.setdefault(path, PathState([None] * len(path)))

    def open_paths(self) -> list[Path]:
        """Return the paths that still lack a value and have not failed."""
        return [p for p, s in self.paths.items() if not s.reason and None in s.values]

    def fail(self, paths: Iterable[Path], reason: str) -> None:
        """Give up on paths: the steps without a value get `reason`; those with one keep it."""
        for path in paths:
            self.paths[path].reason = reason

    def spread(self) -> None:
        """Give every open path the values that another path with the same first steps has."""
        known: dict[Path, float] = {}
        for path, state in self.paths.items():
            for place, value in enumerate(state.values, 1):
                if value is not None:
                    known.setdefault(path[:place], value)
        for path in self.open_paths():
            values = self.paths[path].values
            for place, value in enumerate(values, 1):
                if value is None:
                    values[place - 1] = known.get(path[:place])

    def left_out(self) -> ProblemRound:
        """Return a round that asks for what is still open: each path up to its last open step."""
        again = ProblemRound(self.question, self.images)
        for path in self.open_paths():
            again.want(path[: self._last_open(path)])
        return again

    def adopt(self, again: ProblemRound) -> None:
        """Take over what the round made by `left_out` has found."""
        for path in self.open_paths():
            found = again.paths[path[: self._last_open(path)]]
            state = self.paths[path]
            state.reason = found.reason
            for place, value in enumerate(found.values):
                if state.values[place] is None:
                    state.values[place] = value

    def _last_open(self, path: Path) -> int:
        values = self.paths[path].values
        return max(place for place, value in enumerate(values, 1) if value is None)

    def result(self, path: Path) -> ScoreResult:
        """Return the scores of a path; a step that was never answered says so."""
        state = self.paths.get(path) or PathState([None] * len(path))
        reason = state.reason or f"{NO_SCORE}: the server gave no score for this step"
        scores = tuple(
            StepScore(None, reason) if value is None else StepScore(value) for value in state.values
        )
        return ScoreResult(scores, state.prefix_tokens, state.step_tokens or (0,) * len(path))


class StepMemory:
    """Remembers single steps, to fill the rows that a server's prefix cache leaves out.

    A search sends each path again with one more step; the server has the old steps in its cache
    and does not compute their rows, but their scores are known here.
    """

    def __init__(self, entries: int) -> None:
        self._store = MemoryScoreStore(entries)
        self._lock = threading.Lock()

    def remember(self, identity: str, round_: ProblemRound) -> None:
        """Keep all values of a round."""
        for path, state in round_.paths.items():
            if any(value is not None for value in state.values):
                keys = self._keys(identity, round_, path)
                with self._lock:
                    for key, value in zip(keys, state.values, strict=True):
                        if value is not None:
                            self._store.put(key, StoredScore(value, "", 0, 0))

    def fill(self, identity: str, round_: ProblemRound) -> int:
        """Fill missing values of the open paths; return how many."""
        filled = 0
        for path in round_.open_paths():
            values = round_.paths[path].values
            keys = self._keys(identity, round_, path)
            with self._lock:
                entries = [self._store.get(key) for key in keys]
            for place, entry in enumerate(entries):
                if values[place] is None and entry is not None:
                    values[place] = entry.value
                    filled += 1
        return filled

    def _keys(self, identity: str, round_: ProblemRound, path: Sequence[str]) -> list[str]:
        problem = Problem(round_.question, tuple(i.digest for i in round_.images))
        return step_keys(identity, ScoreRequest(problem, tuple(path)))


async def all_done(coroutines: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Wait for all coroutines; on an error or a cancellation none is left running.

    A task group would wrap a single error into a group, which callers of a scorer do not expect.
    """
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
