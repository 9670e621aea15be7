"""A loopback server that stands for vLLM with the scoring plugin, with faults on demand.

Its scores are a pure function of (question, image digests, steps so far): what a test expects is
computed here again, without the server.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from vprm_search.testing import Fault, FaultProxy, ProxiedRequest
from vprm_search.types import ImageData, Problem, ScoreRequest

Body = dict[str, Any]
IDENTITY = "model-one"


def expected(question: str, images: Sequence[str], path: Sequence[str]) -> list[float]:
    """Return the scores the server gives to a path."""
    scores = []
    for stop in range(1, len(path) + 1):
        text = json.dumps([question, list(images), list(path[:stop])])
        word = hashlib.sha256(text.encode()).digest()[:6]
        scores.append(int.from_bytes(word, "big") / (1 << 48))
    return scores


def picture(name: str) -> ImageData:
    """Return bytes under the digest the server checks them by."""
    data = name.encode() * 50
    return ImageData(f"sha256-{hashlib.sha256(data).hexdigest()}", data)


def request(question: str, path: Iterable[str], *images: ImageData) -> ScoreRequest:
    """Return a request for the scores of one path."""
    return ScoreRequest(Problem(question, tuple(i.digest for i in images)), tuple(path), images)


def expected_of(asked: ScoreRequest) -> list[float]:
    """Return the right scores of a request."""
    return expected(asked.problem.question, asked.problem.images, asked.steps)


@dataclass
class Double:
    """The state of the server, open to tests.

    `faults` are used up one per request for scores. A name spoils the answer: "html", "nan",
    "infinity", "overflow", "out_of_range", "text_score", "fewer_paths", "fewer_steps", "no_data",
    "no_identity", "other_model", "huge", "gzip", "redirect", "forget_images", "stranger_image",
    "version"; a `Fault` is the network's, behind `faulty` alone. `refuses(data)` may return a
    status for a request's data. With `caches` the server leaves out rows it computed before, as
    vLLM's prefix cache does, for requests that allow it, per salt.
    """

    url: str = ""
    faults: deque[str | Fault] = field(default_factory=deque)
    refuses: Callable[[Body], int | None] = lambda data: None
    caches: bool = False
    never: Callable[[str], bool] = lambda step: False
    identity: str = IDENTITY
    root: str = "/models/prm"
    limits: Body = field(default_factory=dict)
    api_key: str = ""
    plugin: bool = True
    pooling: bool = True
    unhealthy: int = 0
    images: dict[str, bytes] = field(default_factory=dict)
    asked: list[Body] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    health_polls: int = 0
    redirected: int = 0
    connections: int = 0
    at_once: int = 0
    most_at_once: int = 0
    work_s: float = 0.0
    asked_for: threading.Event = field(default_factory=threading.Event)
    closing: threading.Event = field(default_factory=threading.Event)
    _rows: set[str] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def network_fault(self, request: ProxiedRequest) -> Fault | None:
        """Return what the network does to a request for scores; a rule for `FaultProxy`."""
        if "describe" in request.json()["data"] or not self.faults:
            return None
        return self.faults.popleft() if isinstance(self.faults[0], Fault) else None  # type: ignore[return-value]

    @property
    def pixels_sent(self) -> list[str]:
        """Return the digests that came with bytes, over all requests, in order."""
        return [digest for data in self.asked for digest in data["image_data"]]

    def forget(self) -> None:
        """Lose what a restarted server loses."""
        with self.lock:
            self.images.clear()
            self._rows.clear()

    def answer(self, data: Body) -> Body:
        """Return the plugin's answer to a request for scores."""
        with self.lock:
            for digest, text in data["image_data"].items():
                png = base64.b64decode(text, validate=True)
                digest_of_bytes = f"sha256-{hashlib.sha256(png).hexdigest()}"
                assert digest == digest_of_bytes or png.startswith(b"\x89PNG")
                self.images[digest] = png
            missing = [d for d in dict.fromkeys(data["images"]) if d not in self.images]
            if missing:
                return {"version": 1, "missing_images": missing}
            rows = [self._row(data, path) for path in data["paths"]]
            for path in data["paths"]:
                self._rows |= {self._key(data, path[:n]) for n in range(1, len(path) + 1)}
        return {
            "version": 1,
            "scores": rows,
            "prefix_tokens": 10 + 5 * len(data["images"]),
            "step_tokens": [[len(step) + 7 for step in path] for path in data["paths"]],
            "identity": self.identity,
        }

    def _row(self, data: Body, path: list[str]) -> list[float | None]:
        values: list[float | None] = list(expected(data["question"], data["images"], path))
        for place, step in enumerate(path):
            left_out = self.caches and data["use_prefix_cache"]
            if left_out and self._key(data, path[: place + 1]) in self._rows:
                values[place] = None
            if self.never(step):
                values[place] = None
        return values

    def _key(self, data: Body, path: list[str]) -> str:
        return json.dumps([data["cache_salt"], data["question"], data["images"], path])


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    double: Double

    def setup(self) -> None:
        super().setup()
        with self.double.lock:
            self.double.connections += 1
            self.server.live.add(self.connection)  # type: ignore[attr-defined]

    def finish(self) -> None:
        self.server.live.discard(self.connection)  # type: ignore[attr-defined]
        super().finish()

    def do_GET(self) -> None:
        if self.path == "/health":
            self.double.health_polls += 1
            self.double.unhealthy -= 1
            self.reply(503 if self.double.unhealthy >= 0 else 200, b"")
        elif not self._allowed():
            self.reply(401, b'{"error":"Unauthorized"}')
        elif self.path == "/v1/models":
            rows = [{"id": "prm", "root": self.double.root, "max_model_len": 4096}]
            self.reply(200, json.dumps({"object": "list", "data": rows}).encode())
        else:
            self.double.redirected += self.path == "/elsewhere"
            self.reply(404, b"{}")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path == "/elsewhere":
            self.double.redirected += 1
        if self.path != "/pooling" or not self.double.pooling:
            self.reply(404, b'{"detail":"Not Found"}')
        elif not self._allowed():
            self.reply(401, b'{"error":"Unauthorized"}')
        elif not self.double.plugin:
            message = {"error": {"message": "No IOProcessor plugin installed.", "code": 400}}
            self.reply(400, json.dumps(message).encode())
        elif body["data"].get("describe"):
            self.reply(200, json.dumps({"request_id": "r", "data": self._description()}).encode())
        else:
            self._score(body["data"])

    def _description(self) -> Body:
        from vprm_search.scoring.prompt.layout import PrmLayout

        double = self.double
        layout = PrmLayout().model_dump()
        base = {"version": 1, "identity": double.identity, "model": "prm", "layout": layout}
        return {**base, "limits": double.limits}

    def _allowed(self) -> bool:
        key = self.double.api_key
        return not key or self.headers.get("authorization") == f"Bearer {key}"

    def _score(self, data: Body) -> None:
        double = self.double
        with double.lock:
            double.asked.append(data)
            double.asked_for.set()
            double.times.append(time.monotonic())
            double.headers.append(dict(self.headers))
            spoils = double.faults and isinstance(double.faults[0], str)
            kind = str(double.faults.popleft()) if spoils else ""
            double.at_once += 1
            double.most_at_once = max(double.most_at_once, double.at_once)
        try:
            double.closing.wait(double.work_s)
            status = double.refuses(data)
            if status is not None:
                self.reply(status, json.dumps({"error": {"message": "refused here"}}).encode())
            else:
                self._misbehave(kind, data)
        finally:
            with double.lock:
                double.at_once -= 1

    def _misbehave(self, kind: str, data: Body) -> None:
        if kind == "redirect":
            self.reply(307, b"", {"location": "/elsewhere"})
        elif kind == "html":
            self.reply(200, b"<html>busy</html>", {"content-type": "text/html"})
        elif kind == "gzip":
            self.reply(200, gzip.compress(b" " * 1_000_000), {"content-encoding": "gzip"})
        else:
            if kind == "forget_images":
                self.double.forget()
            answer = self._spoiled(kind, self.double.answer(data))
            text = json.dumps({"request_id": "r", "created_at": 1, "data": answer})
            if kind == "overflow":  # a number that JSON allows and no float can hold
                text = text.replace("0.", "1e999, 0.", 1).replace("1e999, 0.", "1e999", 1)
            self.reply(200, text.encode() + b" " * 3_000_000 * (kind == "huge"))

    def _spoiled(self, kind: str, answer: Body) -> Body:
        rows = answer.get("scores")
        if kind == "version":
            return {**answer, "version": 2}
        if kind == "no_data":
            return {}
        if kind == "stranger_image":
            return {"version": 1, "missing_images": ["sha256-" + "0" * 64]}
        if rows is None:
            return answer
        if kind == "other_model":
            answer["identity"] = "model-two"
        if kind == "no_identity":
            del answer["identity"]
        if kind == "fewer_paths":
            rows.pop()
        if kind == "fewer_steps":
            rows[-1].pop()
        spoiled = {
            "nan": float("nan"),
            "infinity": float("-inf"),
            "out_of_range": 1.5,
            "text_score": "0.5",
        }
        if kind in spoiled:
            rows[-1][-1] = spoiled[kind]
        return answer

    def reply(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


class _Listener(ThreadingHTTPServer):
    request_queue_size = 128

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.live: set[socket.socket] = set()

    def handle_error(self, *_: Any) -> None:
        """A client that went away is no news."""


def listen(double: Double, port: int = 0) -> tuple[_Listener, threading.Thread]:
    """Start listening for `double`; the caller stops it with `stop`."""
    handler = type("Handler", (_Handler,), {"double": double})
    listener = _Listener(("127.0.0.1", port), handler)
    double.url = f"http://127.0.0.1:{listener.server_port}"
    thread = threading.Thread(target=listener.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    return listener, thread


def stop(listener: _Listener, thread: threading.Thread) -> None:
    """End like a killed process: connections break, and new ones are refused."""
    listener.shutdown()
    listener.server_close()
    for connection in list(listener.live):
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
    thread.join()


@contextmanager
def serving(**settings: Any) -> Iterator[Double]:
    """Run a double on a free port of this machine."""
    double = Double(**settings)
    listener, thread = listen(double)
    try:
        yield double
    finally:
        double.closing.set()
        stop(listener, thread)


@contextmanager
def faulty(**settings: Any) -> Iterator[Double]:
    """Run a double behind a network that does what `faults` says."""
    with (
        serving(**settings) as double,
        FaultProxy(double.url, double.network_fault, only="/pooling") as proxy,
    ):
        double.url = proxy.url
        yield double
