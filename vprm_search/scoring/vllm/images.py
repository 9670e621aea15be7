"""Which images a server holds, so that their bytes travel once and their digests afterwards."""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

_REMEMBERED = 100_000


@dataclass(frozen=True, slots=True)
class Shipment:
    """The images one request carries as bytes; `number` orders it among all shipments."""

    number: int
    digests: frozenset[str]


class ImageLedger:
    """Keeps book of what a server was sent; shared by all event loops and threads of a client.

    A server may forget (it was restarted, or its store is full): what it reports missing is struck
    off, unless it was sent again since the request that reports it.
    """

    def __init__(self) -> None:
        self._held: OrderedDict[str, int] = OrderedDict()
        self._sent_before: OrderedDict[str, int] = OrderedDict()
        self._number = 0
        self._lock = threading.Lock()

    @asynccontextmanager
    async def shipment(
        self, digests: Sequence[str], moving: dict[str, asyncio.Event], *, everything: bool = False
    ) -> AsyncIterator[Shipment]:
        """Yield what a request that needs `digests` has to carry.

        When another request of this event loop (`moving`) carries one of them, wait for its end
        first. `everything` carries all, whatever the book says.
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
            yield Shipment(number, mine)
        finally:
            for digest in mine:
                if moving.get(digest) is arrived:
                    del moving[digest]
            arrived.set()

    def arrived(self, shipment: Shipment) -> None:
        """Note that the server took the images of a shipment."""
        with self._lock:
            for digest in shipment.digests:
                for book in (self._held, self._sent_before):
                    book[digest] = shipment.number
                    book.move_to_end(digest)
                    if len(book) > _REMEMBERED:
                        book.popitem(last=False)

    def missing(self, digests: Iterable[str], shipment: Shipment) -> None:
        """Strike off images the server does not hold, as the reply to `shipment` says."""
        with self._lock:
            for digest in digests:
                if self._held.get(digest, shipment.number + 1) <= shipment.number:
                    del self._held[digest]

    def sent_before(self, digest: str) -> bool:
        """Tell whether the server was sent this image at some time."""
        with self._lock:
            return digest in self._sent_before

    def _has(self, digest: str) -> bool:
        with self._lock:
            return digest in self._held
