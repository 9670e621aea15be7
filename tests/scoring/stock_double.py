"""A loopback server that stands for a stock vLLM server that classifies every token of a chat.

Prompts are rendered with the checkpoint's own chat template and tokenized with control tokens on,
as vLLM does it. A token's probability is a pure function of the tokens up to it and the images.
"""

from __future__ import annotations

import array
import base64
import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from transformers import AutoTokenizer

from tests.json_server import Asked, Reply, json_server
from vprm_search.tiny.weights import weights_path

Body = dict[str, Any]
IMAGE_TOKENS = 16


def probabilities(ids: Sequence[int], images: Sequence[str]) -> list[float]:
    """Return P('+') behind every token, as float32 numbers."""
    state = hashlib.sha256(json.dumps(list(images)).encode())
    values = array.array("f")
    for token in ids:
        state.update(f"{token},".encode())
        values.append(int.from_bytes(state.digest()[:3], "big") / (1 << 24))
    return values.tolist()


class Refused(Exception):
    """Answer with this status and text."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass
class StockDouble:
    """The state of the server. `spoil` changes a reply before it is sent."""

    url: str = ""
    model: Body = field(
        default_factory=lambda: {"id": "prm", "root": "/m/prm", "max_model_len": 1024}
    )
    spoil: Callable[[Body], Body] = lambda reply: reply
    template_tail: str = ""
    tells_tokens: bool = True
    tell: Callable[[list[int]], list[int]] = lambda ids: ids
    fail_next: int = 0
    images: dict[str, bytes] = field(default_factory=dict)
    pixels_sent: list[str] = field(default_factory=list)
    bodies: list[Body] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(weights_path("prm"))
        self.context, self.start, self.end = map(
            self.tokenizer.convert_tokens_to_ids, ("<IMG_CONTEXT>", "<img>", "</img>")
        )

    def pooling(self, body: Body) -> Body:
        if "messages" not in body:
            raise Refused(400, "No IOProcessor plugin installed.")
        lists = [m["content"] for m in body["messages"] if isinstance(m["content"], list)]
        parts = [part for content in lists for part in content]
        images = [part for part in parts if part["type"] == "image_url"]
        uuids = self._take([{**p, "url": (p["image_url"] or {}).get("url")} for p in images])
        for part in parts:
            part["type"] = "image" if part["type"] == "image_url" else part["type"]
        text = self.tokenizer.apply_chat_template(body["messages"], tokenize=False)
        folded = self.tokenizer(text + self.template_tail, add_special_tokens=False)["input_ids"]
        ids = self._expanded(folded)
        rows = array.array("f", probabilities(ids, uuids))
        data = base64.b64encode(rows.tobytes()).decode()
        usage = {"prompt_tokens": len(ids)}
        return {"object": "list", "data": [{"index": 0, "data": data}], "usage": usage}

    def tokenize(self, body: Body) -> Body:
        if not self.tells_tokens:
            raise Refused(404, "Not Found")
        text = self.tokenizer.apply_chat_template(body["messages"], tokenize=False)
        ids = self.tokenizer(text + self.template_tail, add_special_tokens=False)["input_ids"]
        return {"tokens": self.tell(ids), "count": len(ids)}

    def _take(self, parts: Sequence[Body]) -> list[str]:
        with self.lock:
            for place, part in enumerate(parts):
                if part["url"] is not None:
                    head, _, data = part["url"].partition(",")
                    assert head == "data:image/png;base64"
                    self.images[part["uuid"]] = base64.b64decode(data, validate=True)
                    self.pixels_sent.append(part["uuid"])
                elif part["uuid"] not in self.images:
                    text = f"Cache miss for image at index {place} but data is not provided."
                    raise Refused(400, text)
        return [part["uuid"] for part in parts]

    def _expanded(self, ids: Sequence[int]) -> list[int]:
        image = [self.start, *[self.context] * IMAGE_TOKENS, self.end]
        return [t for token in ids for t in (image if token == self.context else [token])]

    def reply(self, asked: Asked) -> Reply:
        """Answer a request; a rule for `json_server`."""
        if asked.method == "GET":
            known = asked.path in ("/health", "/v1/models")
            return Reply({"data": [self.model]}, 200 if known else 404)
        with self.lock:
            if asked.path != "/tokenize":
                self.bodies.append(asked.body)
            self.fail_next -= 1
            fails = self.fail_next >= 0
        if fails:
            return Reply({"error": "restarting"}, 503)
        routes = {"/pooling": self.pooling, "/tokenize": self.tokenize}
        try:
            return Reply(self.spoil(routes[asked.path](asked.body)))
        except Refused as refused:
            return Reply({"error": {"message": str(refused)}}, refused.status)


@contextmanager
def stock_server() -> Iterator[StockDouble]:
    """Run a double on a free port."""
    double = StockDouble()
    with json_server(double.reply) as double.url:
        yield double
