"""A proxy that stands in front of any HTTP server and lets its replies go wrong.

It knows nothing of what it carries, except how to cut JSON and event streams so that they are
still well-formed HTTP: chat servers, vLLM and plain files are the same to it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from itertools import chain, repeat
from typing import Any, Literal, NoReturn

import h11
import httpx

from vprm_search.testing.script import Script, chance

FaultKind = Literal["late", "hang", "reset", "status", "truncated", "slow", "malformed"]

_PIECE_BYTES = 64
_HOP_BY_HOP = frozenset(
    {b"connection", b"keep-alive", b"transfer-encoding", b"te", b"trailer", b"upgrade"}
)
_NOT_PASSED_ON = _HOP_BY_HOP | {b"host", b"content-length", b"accept-encoding", b"expect"}


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong with one request.

    - "late": the reply comes `seconds` later.
    - "hang": no reply ever comes; the connection stays open.
    - "reset": the connection is reset (RST) before the reply.
    - "status": the proxy replies with `status` and, if given, `Retry-After: retry_after`, seconds
      or an HTTP date.
    - "truncated": the connection is closed after half of the body.
    - "slow": the body comes in pieces of 64 bytes, an event stream event by event, with `seconds`
      between them.
    - "malformed": the reply is whole HTTP, but its body is cut: to the first half, in an event
      stream one event to its first half.

    `reaches` tells whether the server receives a request whose reply is lost by "hang", "reset"
    or "status": True is work done and lost, False a request that never came.
    """

    kind: FaultKind
    seconds: float = 0.0
    status: int = 503
    retry_after: float | str | None = None
    reaches: bool = False


@dataclass(frozen=True, slots=True)
class ProxiedRequest:
    """A request that came to the proxy. `number` is its place in the order of arrival, from 0."""

    number: int
    method: str
    path: str
    headers: tuple[tuple[str, str], ...]
    body: bytes = field(repr=False)

    def json(self) -> Any:
        """Return the body read as JSON."""
        return json.loads(self.body)


DEFAULT_FAULTS = (
    Fault("late", seconds=0.05),
    Fault("reset"),
    Fault("reset", reaches=True),
    Fault("status", status=429, retry_after=0.05),
    Fault("status", status=500),
    Fault("status", status=503, retry_after=0.05),
    Fault("truncated"),
    Fault("slow", seconds=0.002),
    Fault("malformed"),
)
"""One of each kind that ends by itself, made for tests that do not wait long."""


@dataclass(frozen=True, slots=True)
class SeededFaults:
    """A rule for `FaultProxy`: a share of the requests meets a fault, each as likely as another.

    Which request meets which fault depends on `seed` and the request's number alone.
    """

    seed: int = 0
    share: float = 0.3
    faults: tuple[Fault, ...] = DEFAULT_FAULTS

    def __call__(self, request: ProxiedRequest) -> Fault | None:
        """Return the fault that `request` meets, if any."""
        if chance("meets", self.seed, request.number) >= self.share:
            return None
        return self.faults[int(chance("which", self.seed, request.number) * len(self.faults))]


class FaultProxy:
    """Passes requests on to a server, and lets some of them meet a fault.

    It listens on a free port of this machine, in a thread of its own, so that it serves
    synchronous and asynchronous tests alike:

        with FaultProxy("http://127.0.0.1:8000", SeededFaults(seed=1)) as proxy:
            model = ChatOpenAI(base_url=f"{proxy.url}/v1", max_retries=0)

    Args:
        upstream: address of the server, without the path.
        faults: a rule `(request)`, which may be async, such as `SeededFaults`; or a fault or None
            for each request in the order of arrival, after which all goes well.
        only: faults meet only requests whose path begins with this, and only they are counted;
            health checks then do not use up the faults. Default: all.
        timeout_s: seconds that the server may take before the proxy replies 504.

    `met` keeps every counted request with its fault. Replies are passed on as they come. A server
    that cannot be reached is a 502.
    """

    def __init__(
        self,
        upstream: str,
        faults: Callable[[ProxiedRequest], Fault | Awaitable[Fault | None] | None]
        | Iterable[Fault | None] = (),
        *,
        only: str = "/",
        timeout_s: float = 60.0,
    ) -> None:
        self._upstream = upstream.rstrip("/")
        endless = faults if callable(faults) else chain(faults, repeat(None))
        self._script: Script[[ProxiedRequest], Fault | None] = Script(endless)
        self._only, self._timeout_s = only, timeout_s
        self.met: list[tuple[ProxiedRequest, Fault | None]] = []
        self.url = ""

    def __enter__(self) -> FaultProxy:
        listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        ready = threading.Event()
        work = self._run(listener, ready)
        self._thread = threading.Thread(target=asyncio.run, args=(work,), daemon=True)
        self._thread.start()
        ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Break every connection and refuse new ones, as a server that was killed."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._closing.set)
            self._thread.join()

    async def _run(self, listener: socket.socket, ready: threading.Event) -> None:
        self._loop, self._closing = asyncio.get_running_loop(), asyncio.Event()
        ready.set()
        # One connection a request: none that the server gives up meanwhile, a fault nobody made.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        secure = self._upstream.startswith("https:")  # reading certificates takes its time
        async with httpx.AsyncClient(
            timeout=self._timeout_s, limits=limits, trust_env=False, verify=secure
        ) as self._client:
            server = await asyncio.start_server(self._connected, sock=listener)
            await self._closing.wait()
            server.close()
            links = asyncio.all_tasks() - {asyncio.current_task()}
            for link in links:
                link.cancel()
            await asyncio.gather(*links, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            link = _Link(reader, writer)
            while (read := await link.request()) is not None:
                await self._reply(link, *read)
                if not link.next():
                    break
        except (ConnectionError, h11.RemoteProtocolError, asyncio.CancelledError):
            pass  # the client went away, or the fault cut it off, or the test is over
        finally:
            writer.close()

    async def _reply(self, link: _Link, head: h11.Request, body: bytes) -> None:
        method, path = head.method.decode(), head.target.decode()
        headers = tuple((name.decode(), value.decode("latin-1")) for name, value in head.headers)
        fault: Fault | None = None
        if path.startswith(self._only):
            request = ProxiedRequest(len(self.met), method, path, headers, body)
            place = len(self.met)
            self.met.append((request, None))
            (fault,) = await self._script.awaited([self._script(request)])
            self.met[place] = (request, fault)
        if fault is not None and fault.kind in ("hang", "reset", "status"):
            await self._lost(link, fault, head, body)
            return
        if fault is not None and fault.kind == "late":
            await asyncio.sleep(fault.seconds)
        try:
            async with self._asked(head, body) as response:
                await link.send(_head(response, fault), _pieces(response, fault))
        except httpx.TransportError as error:
            late = isinstance(error, httpx.TimeoutException)
            why = f"no reply within {self._timeout_s:g} s" if late else f"no reply: {error}"
            await link.say(504 if late else 502, f"{self._upstream}: {why}")

    async def _lost(self, link: _Link, fault: Fault, head: h11.Request, body: bytes) -> None:
        if fault.reaches:
            with contextlib.suppress(httpx.TransportError):
                async with self._asked(head, body) as response:
                    await response.aread()
        if fault.kind == "hang":
            await asyncio.Event().wait()
        if fault.kind == "reset":
            link.reset()
        asks = [] if fault.retry_after is None else [("Retry-After", str(fault.retry_after))]
        await link.say(fault.status, "a fault made for a test", asks)

    def _asked(
        self, head: h11.Request, body: bytes
    ) -> contextlib.AbstractAsyncContextManager[httpx.Response]:
        headers = [(name, value) for name, value in head.headers if name not in _NOT_PASSED_ON]
        return self._client.stream(
            head.method.decode(),
            self._upstream + head.target.decode(),
            headers=[*headers, (b"accept-encoding", b"identity")],
            content=body or None,
        )


def _head(response: httpx.Response, fault: Fault | None) -> h11.Response:
    dropped = set(_HOP_BY_HOP)
    if fault is not None and fault.kind == "malformed":  # whole HTTP all the same
        dropped.add(b"content-length")
    headers = [(name, value) for name, value in response.headers.raw if name.lower() not in dropped]
    return h11.Response(status_code=response.status_code, headers=headers)


async def _pieces(response: httpx.Response, fault: Fault | None) -> AsyncIterator[bytes | None]:
    """Yield the body as it comes, or spoilt; None where the connection is to break."""
    kind = None if fault is None else fault.kind
    stream = response.headers.get("content-type", "").startswith("text/event-stream")
    if fault is None or kind not in ("truncated", "slow", "malformed"):
        async for piece in response.aiter_raw():
            yield piece
        return
    body = b"".join([piece async for piece in response.aiter_raw()])
    if kind == "truncated":
        yield body[: len(body) // 2]
        yield None
    elif kind == "malformed":
        yield _spoilt(body, stream)
    else:
        for piece in _cut(body, stream):
            yield piece
            await asyncio.sleep(fault.seconds)


def _cut(body: bytes, stream: bool) -> list[bytes]:
    if stream:
        return [event + b"\n\n" for event in body.split(b"\n\n") if event]
    return [body[start : start + _PIECE_BYTES] for start in range(0, len(body), _PIECE_BYTES)]


def _spoilt(body: bytes, stream: bool) -> bytes:
    if not stream:
        return body[: len(body) // 2]
    events = _cut(body, stream)
    middle = len(events) // 2
    events[middle] = events[middle][: len(events[middle]) // 2] + b"\n\n"
    return b"".join(events)


class _Link:
    """One client's connection: requests in, replies out, one after the other."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._http = h11.Connection(h11.SERVER)

    async def request(self) -> tuple[h11.Request, bytes] | None:
        """Return the next request and its body, or None when the client is done."""
        head: h11.Request | None = None
        body = bytearray()
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                if self._http.they_are_waiting_for_100_continue:
                    await self._write(h11.InformationalResponse(status_code=100, headers=[]))
                self._http.receive_data(await self._reader.read(65536))
            elif isinstance(event, h11.Request):
                head = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage) and head is not None:
                return head, bytes(body)
            else:
                return None

    async def send(self, head: h11.Response, pieces: AsyncIterator[bytes | None]) -> None:
        """Send a reply piece by piece; a None ends it, and the connection, too early."""
        await self._write(head)
        async for piece in pieces:
            if piece is None:
                raise ConnectionAbortedError("the proxy cut the reply short")
            await self._write(h11.Data(data=piece))
        await self._write(h11.EndOfMessage())

    async def say(
        self, status: int, text: str, headers: list[tuple[str, str]] | None = None
    ) -> None:
        """Send an error of the proxy's own, in the shape of OpenAI's errors.

        Raises `ConnectionResetError` if a reply has begun already: the connection is reset.
        """
        if self._http.our_state is not h11.SEND_RESPONSE:
            self.reset()
        data = json.dumps({"error": {"message": text, "code": status}}).encode()
        told = [
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(data))),
            *(headers or []),
        ]
        await self._write(h11.Response(status_code=status, headers=told))
        await self._write(h11.Data(data=data))
        await self._write(h11.EndOfMessage())

    def next(self) -> bool:
        """Make ready for the next request; return whether one can come."""
        if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
            return False
        self._http.start_next_cycle()
        return True

    def reset(self) -> NoReturn:
        """Reset the connection (RST instead of FIN). Raises `ConnectionResetError`, always."""
        connection = self._writer.get_extra_info("socket")
        linger = struct.pack("ii", 1, 0)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self._writer.transport.abort()
        raise ConnectionResetError("the proxy broke the connection")

    async def _write(self, event: h11.Event) -> None:
        self._writer.write(self._http.send(event) or b"")
        await self._writer.drain()
