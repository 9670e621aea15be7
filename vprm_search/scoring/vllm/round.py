"""One problem on its way through a scoring server: its paths, and its images."""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from vprm_search.scoring.reasons import NO_SCORE
from vprm_search.scoring.vllm.transport import ServerTransport, T, bad_reply
from vprm_search.types import ImageData, ScoreResult, StepScore

_REMEMBERED = 100_000
_SHIPMENTS = 4

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


# --- images: bytes once, digests afterwards, bytes again if the server lost them ------------------


class ImagesMissing(Exception):
    """The server does not hold these images, of those a request named without their bytes."""

    def __init__(self, digests: Sequence[str]) -> None:
        super().__init__(f"{len(digests)} images")
        self.digests = digests


class ImageShipping:
    """Knows which images one server was sent; for all event loops and threads of a client.

    A server may forget (it was restarted, or its store is full): what it reports missing is sent
    again, once for all requests of an event loop that need it.
    """

    def __init__(self, transport: ServerTransport) -> None:
        self._transport = transport
        self._held: OrderedDict[str, int] = OrderedDict()
        self._sent_before: OrderedDict[str, int] = OrderedDict()
        self._number = 0
        self._lock = threading.Lock()

    async def deliver(
        self,
        images: Sequence[ImageData],
        ask: Callable[[frozenset[str]], Awaitable[T]],
    ) -> T:
        """Return what `ask` does, called with the digests of the images it must send as bytes.

        Args:
            images: all that the request needs.
            ask: sends the request; raises `ImagesMissing` for those the server turns out to lack.

        Raises:
            RequestFailed: the server asks for what it was just sent; and what `ask` raises.
        """
        pixels = {image.digest: len(image.png) for image in images}
        for number in range(1, _SHIPMENTS + 1):
            everything = number > 2  # replicas behind one address hold different images
            async with self._shipment(list(pixels), everything) as (order, digests):
                self._count(digests, pixels)
                try:
                    reply = await ask(digests)
                except ImagesMissing as missing:
                    self._arrived(digests, order)
                    self._lost(missing.digests, order)
                else:
                    self._arrived(digests, order)
                    return reply
        raise bad_reply("the server asks for images that it was just sent")

    @asynccontextmanager
    async def _shipment(
        self, digests: Sequence[str], everything: bool
    ) -> AsyncIterator[tuple[int, frozenset[str]]]:
        """Yield the number of a request among all, and the images it has to carry.

        When another request of this event loop carries one of them, wait for its end first.
        `everything` carries all, whatever is known.
        """
        moving = self._transport.state.images_moving
        while waits := [moving[d] for d in digests if d in moving and not self._has(d)]:
            await waits[0].wait()
        mine = frozenset(d for d in digests if everything or not self._has(d))
        arrived = asyncio.Event()
        moving.update((digest, arrived) for digest in mine)
        with self._lock:
            self._number += 1
            number = self._number
        try:
            yield number, mine
        finally:
            for digest in mine:
                if moving.get(digest) is arrived:
                    del moving[digest]
            arrived.set()

    def _count(self, digests: frozenset[str], sizes: dict[str, int]) -> None:
        with self._lock:
            again = sum(digest in self._sent_before for digest in digests)
        self._transport.meter.add(
            images_sent=len(digests),
            images_resent=again,
            image_bytes_sent=sum(sizes[digest] for digest in digests),
        )

    def _arrived(self, digests: frozenset[str], order: int) -> None:
        with self._lock:
            for digest in digests:
                for known in (self._held, self._sent_before):
                    known[digest] = order
                    known.move_to_end(digest)
                    if len(known) > _REMEMBERED:
                        known.popitem(last=False)

    def _lost(self, digests: Sequence[str], order: int) -> None:
        """Forget what a reply reports missing, unless it was sent again since that request."""
        with self._lock:
            for digest in digests:
                if self._held.get(digest, order + 1) <= order:
                    del self._held[digest]

    def _has(self, digest: str) -> bool:
        with self._lock:
            return digest in self._held
