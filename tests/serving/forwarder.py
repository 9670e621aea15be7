"""One address for servers that come and go: passes bytes on, and counts connections."""

from __future__ import annotations

import asyncio
import socket
import threading
from contextlib import suppress


class Forwarder:
    """Listens on a free port, in a thread of its own, and passes on to `target`, a port.

    `target` may be changed: connections that are made from then on go there, and `cut` ends those
    there are. `opened` counts the clients' connections, `most_open` is how many there were at once.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self.opened = self.open = self.most_open = 0
        self._links: set[asyncio.Task[None]] = set()

    def __enter__(self) -> Forwarder:
        listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        ready = threading.Event()
        work = self._run(listener, ready)
        self._thread = threading.Thread(target=asyncio.run, args=(work,), daemon=True)
        self._thread.start()
        ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._closing.set)
        self._thread.join()

    def cut(self) -> None:
        """End all connections, as a server does that goes away."""
        asyncio.run_coroutine_threadsafe(self._cut(), self._loop).result()

    async def _run(self, listener: socket.socket, ready: threading.Event) -> None:
        self._loop, self._closing = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._connected, sock=listener)
        ready.set()
        await self._closing.wait()
        server.close()
        await self._cut()

    async def _cut(self) -> None:
        links = list(self._links)
        for link in links:
            link.cancel()
        await asyncio.gather(*links, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._links.add(task)
        self.opened += 1
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            with suppress(OSError, asyncio.CancelledError):
                there, out = await asyncio.open_connection("127.0.0.1", self.target)
                try:
                    ways = (_pass_on(reader, out), _pass_on(there, writer))
                    _, other = await asyncio.wait(
                        [asyncio.create_task(way) for way in ways],
                        return_when=asyncio.FIRST_COMPLETED,
                    )
                    for way in other:
                        way.cancel()
                finally:
                    out.close()
        finally:
            writer.close()
            self.open -= 1
            self._links.discard(task)


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
