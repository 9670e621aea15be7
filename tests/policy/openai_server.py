"""A loopback server with vLLM's manners on `/v1/chat/completions`, scripted per request."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Body = dict[str, Any]


@dataclass
class Failure:
    """Answer with this status, or hang until the server is closed (status 0)."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    text: str = "failed"


class Server:
    """What was asked, and how to answer: `solve(body, child)` is the model's whole text.

    The server continues a trailing assistant message only if told to, cuts at stop strings and
    keeps them in the output if told to, and counts usage once per request, as vLLM does.
    """

    def __init__(self, solve: Callable[[Body, int], str], address: str) -> None:
        self.solve, self.url = solve, f"{address}/v1"
        self.bodies: list[Body] = []
        self.headers: list[dict[str, str]] = []
        self.failures: Callable[[int, Body], Failure | None] = lambda number, body: None
        self.models: list[Body] | None = None  # what `/v1/models` lists; None: there is no list
        self.models_hang = False
        self.listings = 0  # how often that was asked
        self.closing = threading.Event()

    def answer(self, body: Body) -> Body:
        texts = [self.solve(body, child) for child in range(body.get("n", 1))]
        cuts = [self._cut(body, text) for text in texts]
        generated = sum(len(text.split()) for text, _ in cuts)
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": text},
                "finish_reason": finish,
                "stop_reason": None,
            }
            for index, (text, finish) in enumerate(cuts)
        ]
        usage = {"prompt_tokens": 40, "completion_tokens": generated, "total_tokens": 0}
        usage["total_tokens"] = usage["prompt_tokens"] + generated
        return {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": body["model"],
            "choices": choices,
            "usage": usage,
        }

    def _cut(self, body: Body, text: str) -> tuple[str, str]:
        for stop in body.get("stop") or []:
            before, found, _ = text.partition(stop)
            if found:
                kept = body.get("include_stop_str_in_output") or body.get("no_stop_trim")
                return before + (stop if kept else ""), "stop"
        limit = body.get("max_completion_tokens", 10**6)
        words = text.split(" ")
        return (" ".join(words[:limit]), "length") if len(words) > limit else (text, "stop")


@contextmanager
def serving(solve: Callable[[Body, int], str]) -> Iterator[Server]:
    """Run a server on a free port of this machine."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            number = len(server.bodies)
            server.bodies.append(body)
            server.headers.append(dict(self.headers))
            failure = server.failures(number, body)
            if failure is None:
                self._send(200, {}, server.answer(body))
            elif failure.status == 0:
                server.closing.wait(60)
            else:
                error = {"error": {"message": failure.text, "code": failure.status}}
                self._send(failure.status, failure.headers, error)

        def do_GET(self) -> None:
            server.listings += 1
            if server.models_hang:
                server.closing.wait(60)
            if server.models is None:
                self._send(404, {}, {"error": {"message": "not found"}})
            else:
                self._send(200, {}, {"object": "list", "data": server.models})

        def _send(self, status: int, headers: dict[str, str], reply: Any) -> None:
            data = json.dumps(reply).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server = Server(solve, f"http://127.0.0.1:{listener.server_port}")
    thread = threading.Thread(target=listener.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        listener.shutdown()
        listener.server_close()
        thread.join()
