"""A loopback server with vLLM's manners on `/v1/chat/completions`, scripted per request."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.json_server import Asked, Reply, json_server

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

    def __init__(self, solve: Callable[[Body, int], str]) -> None:
        self.solve, self.url = solve, ""
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

    def reply(self, asked: Asked) -> Reply:
        """Answer a request; a rule for `json_server`."""
        if asked.method == "GET":
            self.listings += 1
            if self.models_hang:
                self.closing.wait(60)
            listed = {"object": "list", "data": self.models}
            return NOT_FOUND if self.models is None else Reply(listed)
        number = len(self.bodies)
        self.bodies.append(asked.body)
        self.headers.append(dict(asked.headers))
        failure = self.failures(number, asked.body)
        if failure is None:
            return Reply(self.answer(asked.body))
        if failure.status == 0:
            self.closing.wait(60)
        error = {"error": {"message": failure.text, "code": failure.status}}
        return Reply(error, failure.status or 500, failure.headers)


NOT_FOUND = Reply({"error": {"message": "not found"}}, 404)


@contextmanager
def serving(solve: Callable[[Body, int], str]) -> Iterator[Server]:
    """Run a server on a free port of this machine."""
    server = Server(solve)
    with json_server(server.reply) as address:
        server.url = f"{address}/v1"
        try:
            yield server
        finally:
            server.closing.set()
