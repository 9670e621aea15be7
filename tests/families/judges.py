"""Hand-written chat models that judge: what a real one would do, without a server."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import Runnable, RunnableLambda
from pydantic import Field

Answer = Callable[[str, int], Any]
"""(text of the human message, number of the call) -> what the judge says."""


class _Judge(BaseChatModel):
    """A chat model that keeps what it was asked and answers by a rule."""

    answer: Any
    asked: list[list[BaseMessage]] = Field(default_factory=list)
    given: list[dict[str, Any]] = Field(default_factory=list)
    running: int = 0
    most_running: int = 0

    @property
    def _llm_type(self) -> str:
        return "judge"

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kw: Any) -> Any:
        raise AssertionError("judges are asked asynchronously")

    async def _agenerate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kw: Any
    ) -> ChatResult:
        self.asked.append(messages)
        self.given.append(kw)
        number = len(self.asked)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await asyncio.sleep(0)
            return ChatResult(
                generations=[ChatGeneration(message=self._reply(messages, kw, number))]
            )
        finally:
            self.running -= 1

    def _reply(self, messages: list[BaseMessage], kw: dict[str, Any], number: int) -> AIMessage:
        said = self.answer(human_text(messages), number)
        if isinstance(said, Exception):
            raise said
        return AIMessage(said, usage_metadata=usage())


class TextJudge(_Judge):
    """Says a text and knows nothing else."""


class LogprobJudge(_Judge):
    """Gives the probabilities of its last token, as OpenAI's models and vLLM do."""

    logprobs: bool | None = None
    top_logprobs: int | None = None

    def _reply(self, messages: list[BaseMessage], kw: dict[str, Any], number: int) -> AIMessage:
        said = self.answer(human_text(messages), number)
        if isinstance(said, Exception):
            raise said
        if not isinstance(said, dict):
            return AIMessage(said, usage_metadata=usage())
        assert kw["logprobs"] is True
        assert kw["top_logprobs"] == 20
        options = [{"token": token, "logprob": math.log(p)} for token, p in said.items()]
        content = [{**options[0], "top_logprobs": options}]
        return AIMessage(
            options[0]["token"],
            response_metadata={"logprobs": {"content": content}},
            usage_metadata=usage(),
        )


class StructuredJudge(_Judge):
    """Can be asked for structured output; its answer is True, False, or something broken."""

    def with_structured_output(
        self, schema: Any, *, include_raw: bool = False, **kwargs: Any
    ) -> Runnable[Any, Any]:
        assert include_raw

        async def ask(messages: Sequence[BaseMessage]) -> dict[str, Any]:
            raw = (await self.ainvoke(list(messages))).text
            known = {"True": True, "False": False}
            parsed = schema(reason="so", correct=known[raw]) if raw in known else None
            error = None if parsed else ValueError("no JSON")
            return {"raw": AIMessage(raw), "parsed": parsed, "parsing_error": error}

        return RunnableLambda(ask)

    def _reply(self, messages: list[BaseMessage], kw: dict[str, Any], number: int) -> AIMessage:
        said = self.answer(human_text(messages), number)
        if isinstance(said, Exception):
            raise said
        return AIMessage(str(said))


class HttpError(Exception):
    """What an HTTP client raises."""

    def __init__(self, status: int, text: str = "no") -> None:
        super().__init__(text)
        self.status_code = status


def human_text(messages: Sequence[BaseMessage]) -> str:
    """Return the text of the last message."""
    return messages[-1].text


def last_step(text: str) -> str:
    """Return what stands in the last fence."""
    key = re.findall(r"^FENCE ([0-9a-f]+) problem$", text, re.MULTILINE)[0]
    return re.findall(rf"FENCE {key} step \d+\n(.*?)\nFENCE {key} end", text, re.DOTALL)[-1]


def usage() -> Any:
    return {"input_tokens": 10, "output_tokens": 2, "total_tokens": 12}
