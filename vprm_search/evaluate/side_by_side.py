"""Work on many problems, so many of them at a time, in memory that does not grow with them."""

from __future__ import annotations

import asyncio
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
    """

    def __init__(self, stage: str) -> None:
        self._stage, self._lost = stage, 0

    def note(self, reason: str) -> None:
        """Note why nothing came of a call, "" if something did.

        Raises `SearchError` when it was the last straw.
        """
        self._lost = self._lost + 1 if reason else 0
        if self._lost == LOST_IN_A_ROW:
            raise SearchError(
                f"{self._stage} stopped: nothing came of {self._lost} calls in a row; the last "
                f"one: {reason}; then run the same command again, which keeps what is there"
            )
