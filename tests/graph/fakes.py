"""A user's chat model and a user's scorer, both decided by hashes: equal questions, equal words."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import random
from collections.abc import Sequence
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from PIL import Image
from pydantic import Field

from vprm_search.chat.capabilities import ModelCapabilities
from vprm_search.types import ScoreRequest, ScoreResult, StepScore

QUESTION = "How many red tiles are on the board, and what is their sum?"


def chance(*parts: object) -> float:
    """Return a number in [0, 1) that depends on `parts` alone."""
    word = "\x1f".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.sha256(word).digest()[:6], "big") / (1 << 48)


class HashChatModel(BaseChatModel):
    """Writes made-up steps; the words depend on the conversation and the seed alone.

    `sleep_s` is spent in every call, `fail` is the share of calls that fail (by the first seed).
    """

    sleep_s: float = 0.0
    fail: float = 0.0
    max_steps: int = 6
    spread: int = 40
    calls: list[list[BaseMessage]] = Field(default_factory=list)

    @property
    def policy_capabilities(self) -> ModelCapabilities:
        return ModelCapabilities(
            prefill="message", many=True, seeds="children", instructions=False, in_process=True
        )

    @property
    def _llm_type(self) -> str:
        return "hash"

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        seeds: Sequence[int] = kwargs.get("seeds") or [0]
        self.calls.append(messages)
        prefix = str(messages[-1].text) if isinstance(messages[-1], AIMessage) else ""
        if chance("fail", prefix, seeds[0]) < self.fail:
            raise ValueError("this call was made to fail")
        return ChatResult(
            generations=[self._answer(messages, prefix, seed, stop) for seed in seeds]
        )

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        await asyncio.sleep(self.sleep_s)
        return self._generate(messages, stop, None, **kwargs)

    def _answer(
        self, messages: list[BaseMessage], prefix: str, seed: int, stop: list[str] | None
    ) -> ChatGeneration:
        done = len([step for step in prefix.split("\n\n") if step.strip()])
        words = hashlib.sha256(repr([m.content for m in messages[:-1]]).encode()).hexdigest()[:4]
        steps: list[str] = []
        while True:
            number = done + len(steps) + 1
            ends = number > 1 and chance("end", seed, number, prefix) < 0.3
            if ends or number >= self.max_steps:
                steps.append(f"Answer: {int(chance('answer', seed, prefix) * 5)}")
                break
            tile = int(chance("tile", seed, number, prefix) * self.spread)
            steps.append(f"Step {number}: tile {tile} is red ({words}).")
        ended = not stop or len(steps) == 1
        text = "\n\n".join(steps) if not stop else steps[0]
        finish = {"finish_reason": "stop", "stop_reason": None if ended else "\n\n"}
        if chance("cut", seed, prefix) < 0.05:
            text, finish = text[:9], {"finish_reason": "length"}
        message = AIMessage(
            text,
            response_metadata=finish,
            usage_metadata={
                "input_tokens": 100,
                "output_tokens": len(text),
                "total_tokens": 100 + len(text),
            },
        )
        return ChatGeneration(message=message)


class HashScorer:
    """P('+') of a step depends on the problem and the steps up to it alone.

    `fail` is the share of steps that get no score; `sleep_s` is spent in every batch.
    """

    def __init__(self, sleep_s: float = 0.0, fail: float = 0.0) -> None:
        self.sleep_s = sleep_s
        self.fail = fail
        self.images: list[tuple[str, ...]] = []

    async def score(self, requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
        await asyncio.sleep(self.sleep_s)
        return [self._score(request) for request in requests]

    def _score(self, request: ScoreRequest) -> ScoreResult:
        self.images.append(tuple(image.digest for image in request.images))
        scores = []
        for end in range(1, len(request.steps) + 1):
            key = (request.problem.question, request.problem.images, *request.steps[:end])
            if chance("unscored", *key) < self.fail:
                scores.append(StepScore(None, "made to fail"))
            else:
                scores.append(StepScore(chance("score", *key)))
        tokens = tuple(len(step) for step in request.steps)
        return ScoreResult(tuple(scores), prefix_tokens=50, step_tokens=tokens)


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
