"""Chat models as a user might bring them, and requests to try them with."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from PIL import Image
from pydantic import Field

from vprm_search.images import normalise_image
from vprm_search.types import ImageData, Problem, ProposeRequest, Until

RED = normalise_image(Image.new("RGB", (32, 32), "red"))
BLUE = normalise_image(Image.new("RGB", (32, 32), "blue"))


def request(
    *steps: str,
    n: int = 1,
    until: Until = "step",
    images: tuple[ImageData, ...] = (),
    question: str = "How many?",
    system: str = "",
    first_seed: int = 100,
) -> ProposeRequest:
    problem = Problem(question, tuple(image.digest for image in images), system)
    return ProposeRequest(problem, steps, tuple(range(first_seed, first_seed + n)), until, images)


class Script(BaseChatModel):
    """Answers with what `write` makes of the messages and call arguments; notes every call.

    `write` returns texts, messages or an exception to raise. The model cuts at stop strings, as
    servers do, and knows neither `n` nor prefill.
    """

    write: Callable[..., Any]
    calls: list[dict[str, Any]] = Field(default_factory=list)
    running: list[int] = Field(default_factory=lambda: [0, 0])
    pause_s: float = 0.0

    def __init__(self, write: Callable[..., Any], **options: Any) -> None:
        super().__init__(write=write, **options)

    @property
    def _llm_type(self) -> str:
        return "script"

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        self.calls.append(
            {"messages": messages, "stop": stop, "tags": _tags(run_manager), **kwargs}
        )
        written = self.write(messages, **kwargs)
        if isinstance(written, BaseException):
            raise written
        written = written if isinstance(written, list) else [written]
        return ChatResult(generations=[ChatGeneration(message=_cut(w, stop)) for w in written])

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: Any = None,
        **kwargs: Any,
    ) -> ChatResult:
        self.running[0] += 1
        self.running[1] = max(self.running)
        try:
            await asyncio.sleep(self.pause_s)
            return self._generate(messages, stop, run_manager, **kwargs)
        finally:
            self.running[0] -= 1


def _cut(written: str | AIMessage, stop: list[str] | None) -> AIMessage:
    if isinstance(written, AIMessage):
        return written
    for word in stop or []:
        written = written.partition(word)[0]
    return AIMessage(written)


def _tags(run_manager: Any) -> list[str]:
    return list(run_manager.tags) if run_manager else []


def texts_of(messages: list[BaseMessage]) -> str:
    return "\n".join(str(message.text) for message in messages)
