"""Images on their way to a server: bytes once, digests afterwards, bytes again if it lost them."""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

from vprm_search.scoring.vllm.transport import VllmMeter, bad_reply
from vprm_search.types import ImageData

T = TypeVar("T")

_REMEMBERED = 100_000
_SHIPMENTS = 4


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

    def __init__(self, meter: VllmMeter) -> None:
        self._meter = meter
        self._held: OrderedDict[str, int] = OrderedDict()
        self._sent_before: OrderedDict[str, int] = OrderedDict()
        self._number = 0
        self._lock = threading.Lock()

    async def deliver(
        self,
        images: Sequence[ImageData],
        moving: dict[str, asyncio.Event],
        ask: Callable[[frozenset[str]], Awaitable[T]],
    ) -> T:
        """Return what `ask` does, called with the digests of the images it must send as bytes.

        Args:
            images: all that the request needs.
            moving: `LoopState.images_moving` of the running event loop.
            ask: sends the request; raises `ImagesMissing` for those the server turns out to lack.

        Raises:
            RequestFailed: the server asks for what it was just sent; and what `ask` raises.
        """
        pixels = {image.digest: len(image.png) for image in images}
        for number in range(1, _SHIPMENTS + 1):
            everything = number > 2  # replicas behind one address hold different images
            async with self._shipment(list(pixels), moving, everything) as (order, digests):
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
        self, digests: Sequence[str], moving: dict[str, asyncio.Event], everything: bool
    ) -> AsyncIterator[tuple[int, frozenset[str]]]:
        """Yield the number of a request among all, and the images it has to carry.

        When another request of this event loop carries one of them, wait for its end first.
        `everything` carries all, whatever is known.
        """
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
        self._meter.add(
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
