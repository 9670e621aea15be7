"""A LangChain chat model that says what a test wants it to say."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from pydantic import Field, PrivateAttr

from vprm_search.chat.capabilities import ModelCapabilities
from vprm_search.images.messages import read_message
from vprm_search.testing.script import Script, words_in
from vprm_search.types import ImageData

Written = str | AIMessage | Exception | None
"""What a model answers: a text, a message as it is, None for no answer at all (a reply without
choices), or the exception that the call raises."""


def http_error(status: int, text: str = "failed", **headers: str) -> httpx.HTTPStatusError:
    """Return what an HTTP client raises for a reply with this status: for scripts.

    `headers` are those of the reply, with underscores for hyphens: `retry_after="2"`.
    """
    request = httpx.Request("POST", "http://127.0.0.1/")
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    response = httpx.Response(status, headers=named, request=request)
    return httpx.HTTPStatusError(text, request=request, response=response)


@dataclass(frozen=True, slots=True)
class ChatCall:
    """One answer that was asked for.

    `number` is its place in the order of asking, from 0. `seed` is that of the answer (an entry
    of `seeds`) or of the call, 0 without. `options` holds the other call arguments, bound ones
    and tools included, and `tags` the run's.
    """

    messages: tuple[BaseMessage, ...]
    number: int
    seed: int
    stop: tuple[str, ...]
    options: Mapping[str, Any]
    tags: tuple[str, ...]

    @property
    def text(self) -> str:
        """All texts of the conversation, one after the other."""
        return "\n".join(str(message.text) for message in self.messages)

    @property
    def prefix(self) -> str:
        """The model's own unfinished message, which it is to continue, or ""."""
        last = self.messages[-1]
        return str(last.text) if isinstance(last, AIMessage) else ""

    @property
    def images(self) -> tuple[ImageData, ...]:
        """The pictures of the conversation, normalised, in order."""
        return tuple(image for message in self.messages for image in read_message(message)[1])


class ScriptedChatModel(BaseChatModel):
    """Answers by a script; notes every call.

    A text is cut at stop strings and at the token limit (a token is a word), as a server does it,
    and says so in `response_metadata` (`finish_reason`, and vLLM's `stop_reason`) and
    `usage_metadata`. A message is given as it is: write one to call tools, to give log
    probabilities, or to say nothing about its end. An exception is raised. The model also streams,
    word by word.

    Args:
        script: a rule `(call)`, which may be async, asked once for every answer; or answers in the
            order of asking; or one text for all.
        delay_s: seconds that every call takes.
        capabilities: what a search may ask of the model (`n` answers, a seed for each, prefill).
            Default: nothing but a call.

    `calls` keeps what was asked; `running` and `most_running` count the calls under way.
    Raises `ConfigError` when the answers are used up.
    """

    script: Any
    delay_s: float = 0.0
    capabilities: ModelCapabilities | None = None
    calls: list[ChatCall] = Field(default_factory=list, repr=False)
    running: int = 0
    most_running: int = 0
    _script: Script[[ChatCall], Written] = PrivateAttr()

    def __init__(
        self,
        script: Callable[[ChatCall], Written | Awaitable[Written]] | Iterable[Written],
        **fields: Any,
    ) -> None:
        super().__init__(**{"script": script, **fields})
        self._script = Script(script)

    @property
    def policy_capabilities(self) -> ModelCapabilities | None:
        """What a search may ask of the model."""
        return self.capabilities

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Any:
        """Return the model with tools, which its calls then find in `options`."""
        return self.bind(tools=list(tools), **kwargs)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        with self._under_way():
            time.sleep(self.delay_s)
            said = self._said(messages, stop, run_manager, kwargs)
            ready = [one for one in said if isinstance(one, Written)]
            if len(ready) < len(said):
                ready = asyncio.run(self._script.awaited(said))
            return _result(messages, ready, stop, kwargs)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        with self._under_way():
            await asyncio.sleep(self.delay_s)
            said = await self._script.awaited(self._said(messages, stop, run_manager, kwargs))
            return _result(messages, said, stop, kwargs)

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        yield from _chunks(self._generate(messages, stop, run_manager, **kwargs))

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        for chunk in _chunks(await self._agenerate(messages, stop, run_manager, **kwargs)):
            yield chunk

    @contextmanager
    def _under_way(self) -> Iterator[None]:
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            yield
        finally:
            self.running -= 1

    def _said(
        self, messages: list[BaseMessage], stop: list[str] | None, run: Any, options: dict[str, Any]
    ) -> list[Written | Awaitable[Written]]:
        seeds = options.get("seeds") or [options.get("seed") or 0] * (options.get("n") or 1)
        tags = tuple(run.tags) if run else ()
        said = []
        for seed in seeds:
            call = ChatCall(
                tuple(messages), len(self.calls), seed, tuple(stop or ()), options, tags
            )
            self.calls.append(call)
            said.append(self._script(call))
        return said


def _result(
    messages: Sequence[BaseMessage],
    said: Sequence[Written],
    stop: Sequence[str] | None,
    options: Mapping[str, Any],
) -> ChatResult:
    limit = options.get("max_tokens") or options.get("max_completion_tokens")
    for one in said:
        if isinstance(one, Exception):
            raise one
    cut = [_cut(one, stop or (), limit) if isinstance(one, str) else one for one in said]
    written = [message for message in cut if isinstance(message, AIMessage)]
    asked = words_in(*(str(message.text) for message in messages))
    spent = words_in(*(str(message.text) for message in written))
    usage = UsageMetadata(input_tokens=asked, output_tokens=spent, total_tokens=asked + spent)
    for message, one in zip(cut, said, strict=True):
        if isinstance(message, AIMessage) and isinstance(one, str):
            message.usage_metadata = usage
    return ChatResult(generations=[ChatGeneration(message=message) for message in written])


def _cut(text: str, stop: Sequence[str], limit: int | None) -> AIMessage:
    """Return the message of a server that wrote `text` until something stopped it."""
    ends = {word: text.find(word) for word in stop if word in text}
    stopped = min(ends, key=lambda word: ends[word], default=None)
    kept = text if stopped is None else text[: ends[stopped]]
    why: dict[str, Any] = {"finish_reason": "stop", "stop_reason": stopped}
    if limit is not None and words_in(kept) > limit:
        words = list(re.finditer(r"\S+", kept))
        kept, why = kept[: words[limit - 1].end()], {"finish_reason": "length"}
    return AIMessage(kept, response_metadata={**why, "generated_tokens": words_in(kept)})


def _chunks(result: ChatResult) -> Iterator[ChatGenerationChunk]:
    """Yield an answer word by word; all that is no text comes with an empty chunk at the end."""
    message = result.generations[0].message
    rest = message.model_dump(exclude={"type"})
    if isinstance(message.content, str):
        for word in re.findall(r"\S+\s*|^\s+", message.content):
            yield ChatGenerationChunk(message=AIMessageChunk(content=word, id=message.id))
        rest["content"] = ""
    yield ChatGenerationChunk(message=AIMessageChunk(**rest))
