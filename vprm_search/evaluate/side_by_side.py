"""Work on many problems, so many of them at a time, in memory that does not grow with them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from vprm_search.budget import Prices
from vprm_search.errors import SearchError

T = TypeVar("T")

FREE = Prices()
"""Where nobody says what tokens cost."""

LOST_IN_A_ROW = 10
"""So many calls in a row of which nothing came end a stage: the server is down."""


@dataclass(frozen=True, slots=True)
class Done:
    """What a piece of work came to, for those who show progress.

    Args:
        candidates: that are done by it.
        failed: of these.
        generated_tokens, scored_tokens: that it took.
        cost: in the currency of the run.
    """

    candidates: int
    failed: int = 0
    generated_tokens: int = 0
    scored_tokens: int = 0
    cost: float = 0.0


Progress = Callable[[Done], None]
"""Is told of every piece of work that has ended."""


async def side_by_side(
    pieces: Iterable[T], work: Callable[[T], Awaitable[None]], width: int
) -> None:
    """Do `work` on all pieces, at most `width` at a time; the first error ends all and is raised.

    The next piece is taken when there is a place for it, so `pieces` may be without end.
    """
    left = iter(pieces)

    async def take() -> None:
        for piece in left:
            await work(piece)

    tasks = [asyncio.ensure_future(take()) for _ in range(max(1, width))]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class Losses:
    """Counts calls in a row of which nothing came.

    Args:
        stage: what is stopped when there are too many.
        most: how many are too many.
        calls: what they are called.
    """

    def __init__(self, stage: str, most: int = LOST_IN_A_ROW, calls: str = "calls") -> None:
        self._stage, self._most, self._calls, self._lost = stage, most, calls, 0

    def note(self, reason: str) -> None:
        """Note why nothing came of a call, "" if something did.

        Raises `SearchError` when it was the last straw.
        """
        self._lost = self._lost + 1 if reason else 0
        if self._lost == self._most:
            raise SearchError(
                f"{self._stage} stopped: nothing came of {self._lost} {self._calls} in a row; the "
                f"last one: {reason}; then run the same command again, which keeps what is there"
            )


class SharedTime:
    """Time that is shared evenly by all that is under way: wall time and CPU time.

    Args:
        active: searches, or other pieces of work, that are under way from the start.
    """

    def __init__(self, active: int = 0) -> None:
        self._active = active
        self._share = [0.0, 0.0]
        self._last = self._now()

    def begin_one(self) -> tuple[float, float]:
        """Count one more; return what `end_one` wants of it."""
        self._pass()
        self._active += 1
        return self._share[0], self._share[1]

    def end_one(self, begun: tuple[float, float] = (0.0, 0.0)) -> tuple[float, float]:
        """Return the seconds and CPU seconds of one that has just ended."""
        self._pass()
        self._active -= 1
        return self._share[0] - begun[0], self._share[1] - begun[1]

    def _pass(self) -> None:
        now = self._now()
        for place in range(2):
            self._share[place] += (now[place] - self._last[place]) / max(1, self._active)
        self._last = now

    @staticmethod
    def _now() -> tuple[float, float]:
        return time.perf_counter(), time.process_time()
