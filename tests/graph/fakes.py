"""A user's chat model and a user's scorer, both decided by hashes: equal questions, equal words."""

from __future__ import annotations

import base64
import hashlib
import io
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.messages.ai import UsageMetadata
from PIL import Image

from vprm_search.chat.capabilities import ModelCapabilities
from vprm_search.testing import ChatCall, ScriptedChatModel, ScriptedScorer
from vprm_search.types import ScoreRequest, ScoreResult

QUESTION = "How many red tiles are on the board, and what is their sum?"


def chance(*parts: object) -> float:
    """Return a number in [0, 1) that depends on `parts` alone."""
    word = "\x1f".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.sha256(word).digest()[:6], "big") / (1 << 48)


class HashChatModel(ScriptedChatModel):
    """Writes made-up steps; the words depend on the conversation and the seed alone.

    `fail` is the share of calls that fail (by the first seed). A token is a letter.
    """

    fail: float = 0.0
    max_steps: int = 6
    spread: int = 40
    capabilities: ModelCapabilities | None = ModelCapabilities(
        prefill="message", many=True, seeds="children", instructions=False, in_process=True
    )

    def __init__(self, **fields: Any) -> None:
        super().__init__(lambda call: self.written(call), **fields)

    def written(self, call: ChatCall) -> AIMessage:
        """Return one answer. Raises `ValueError` for a call that is made to fail."""
        prefix, seed = call.prefix, call.seed
        first = (call.options.get("seeds") or [seed])[0]
        if chance("fail", prefix, first) < self.fail:
            raise ValueError("this call was made to fail")
        done = len([step for step in prefix.split("\n\n") if step.strip()])
        shown = repr([message.content for message in call.messages[:-1]])
        words = hashlib.sha256(shown.encode()).hexdigest()[:4]
        steps: list[str] = []
        while True:
            number = done + len(steps) + 1
            ends = number > 1 and chance("end", seed, number, prefix) < 0.3
            if ends or number >= self.max_steps:
                steps.append(f"Answer: {int(chance('answer', seed, prefix) * 5)}")
                break
            tile = int(chance("tile", seed, number, prefix) * self.spread)
            steps.append(f"Step {number}: tile {tile} is red ({words}).")
        ended = not call.stop or len(steps) == 1
        text = "\n\n".join(steps) if not call.stop else steps[0]
        finish = {"finish_reason": "stop", "stop_reason": None if ended else "\n\n"}
        if chance("cut", seed, prefix) < 0.05:
            text, finish = text[:9], {"finish_reason": "length"}
        usage = UsageMetadata(
            input_tokens=100, output_tokens=len(text), total_tokens=100 + len(text)
        )
        return AIMessage(text, response_metadata=finish, usage_metadata=usage)


class HashScorer(ScriptedScorer):
    """P('+') of a step depends on the problem and the steps up to it alone.

    `fail` is the share of steps that get no score. A token is a letter.
    """

    def __init__(self, fail: float = 0.0, **options: Any) -> None:
        super().__init__(self._said, **options)
        self.fail = fail

    def _said(self, request: ScoreRequest) -> float | str:
        key = (request.problem.question, request.problem.images, *request.steps)
        return "made to fail" if chance("unscored", *key) < self.fail else chance("score", *key)

    async def score(self, requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
        return [
            replace(result, prefix_tokens=50, step_tokens=tuple(map(len, request.steps)))
            for request, result in zip(requests, await super().score(requests), strict=True)
        ]


def noisy_png(side: int, seed: int = 0) -> bytes:
    """Return a PNG of random pixels, which no compression makes smaller."""
    pixels = random.Random(seed).randbytes(side * side * 3)
    buffer = io.BytesIO()
    Image.frombytes("RGB", (side, side), pixels).save(buffer, "PNG")
    return buffer.getvalue()


def asked(question: str = QUESTION, png: bytes | None = None) -> dict[str, Any]:
    """Return the input of a graph: one human message, with a picture if there is one."""
    if png is None:
        return {"messages": [HumanMessage(question, id="question")]}
    data = base64.b64encode(png).decode()
    blocks: list[Any] = [
        {"type": "image", "base64": data, "mime_type": "image/png"},
        {"type": "text", "text": question},
    ]
    return {"messages": [HumanMessage(blocks, id="question")]}
