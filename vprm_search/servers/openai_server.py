"""An OpenAI-compatible server whose every chat completion is a search.

`/v1/chat/completions` and `/v1/models`, for whatever speaks that protocol. A model's name stands
for a `GuidedChatModel`: a policy, a reward model, a strategy. A stream has unnamed `data:` lines
only, because named events break the official client and the AI SDK; the search's progress comes as
`reasoning_content`, which clients fold away or drop.

Requests carry pictures as data URIs; nothing is fetched for a client, and nothing of one request is
kept for another.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from typing import Annotated, Any

from langchain_core.messages import AIMessage, BaseMessage, convert_to_messages
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from vprm_search.budget import Budget
from vprm_search.chat.failures import explain
from vprm_search.compare.entrants import ENTRANTS
from vprm_search.errors import ConfigError, InputError, VprmError
from vprm_search.guided.chat_model import GuidedChatModel
from vprm_search.records import first_wrong
from vprm_search.servers.access import AccessMiddleware, Tenants
from vprm_search.servers.openai_completion import Completion, sse_data

_PASSED_ON = (
    "temperature",
    "top_p",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "parallel_tool_calls",
    "response_format",
    "reasoning_effort",
)
_KEEP_ALIVE_S = 15.0
_LOOK_S = 0.25  # how often a caller that waits for a whole answer is looked for
_UPSTREAM = 424
"""What a failed policy or reward model is answered with: clients repeat 5xx, and not this."""


class OpenAILimits(BaseModel):
    """What one request may ask for.

    `max_n` bounds the size of a search and the number of choices, `max_seconds` its time,
    `max_searches` how many run side by side; `max_waiting` more wait, and others get 429.
    `max_messages` (each with parts counts as many), `max_text_chars` (of all its texts together)
    and `max_body_bytes` bound the conversation.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_n: int = Field(default=64, ge=1)
    max_seconds: float = Field(default=600.0, gt=0)
    max_searches: int = Field(default=8, ge=1)
    max_waiting: int = Field(default=64, ge=0)
    max_messages: int = Field(default=1000, ge=1)
    max_text_chars: int = Field(default=1_000_000, ge=1)
    max_body_bytes: int = Field(default=64_000_000, ge=1)


class SearchOptions(BaseModel):
    """The key `vprm` of a request: this search's own strategy, size, time and progress."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    strategy: str | None = None
    n: int | None = Field(default=None, ge=1)
    max_seconds: float | None = Field(default=None, gt=0)
    progress: bool | None = None


class StreamOptions(BaseModel):
    """The key `stream_options` of a request."""

    include_usage: bool = False


class ChatRequest(BaseModel):
    """What is read of a request; what is not named here is passed over."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    model: str
    messages: list[dict[str, Any]] = Field(min_length=1)
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: int | None = Field(default=None, ge=1)
    stop: str | Annotated[list[str], Field(max_length=64)] | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0)
    top_p: float | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    logprobs: bool | None = None
    vprm: SearchOptions = SearchOptions()


class _RefusedError(Exception):
    """A request that gets no search: its status, and the words and code of the error."""

    def __init__(self, status: int, message: str, code: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param


def create_openai_app(
    models: Mapping[str, GuidedChatModel],
    *,
    limits: OpenAILimits | None = None,
    keys: Sequence[str] = (),
) -> Starlette:
    """Return the server as an ASGI application, to be run by uvicorn or mounted in another.

    Args:
        models: what the names in requests stand for.
        limits: what one request may ask for. Default: `OpenAILimits()`.
        keys: the API keys that are let in; none: everybody is.

    Raises:
        ConfigError: there is no model, or a key is empty.
    """
    tenants = Tenants.unnamed(keys)
    if not models:
        raise ConfigError("an OpenAI server needs at least one model")
    bounds = limits or OpenAILimits()
    server = _Server(dict(models), bounds)
    return Starlette(
        routes=[
            Route("/health", server.health),
            Route("/v1/models", server.list_models),
            Route("/v1/models/{name:path}", server.show_model),
            Route("/v1/chat/completions", server.complete, methods=["POST"]),
            Route("/v1/responses", server.no_responses, methods=["POST"]),
        ],
        middleware=[
            Middleware(AccessMiddleware, tenants=tenants, max_body_bytes=bounds.max_body_bytes)
        ],
        exception_handlers={
            _RefusedError: _refusal,
            HTTPException: _no_route,
            Exception: _bug,
        },
    )


class _Server:
    """The routes, and how many searches are under way."""

    def __init__(self, models: dict[str, GuidedChatModel], limits: OpenAILimits) -> None:
        self._models, self._limits = models, limits
        self._began = int(time.time())
        self._free = asyncio.Semaphore(limits.max_searches)
        self._under_way = 0

    async def health(self, request: Request) -> JSONResponse:
        return JSONResponse({"status": "ok", "searches": self._under_way})

    async def list_models(self, request: Request) -> JSONResponse:
        return JSONResponse({"object": "list", "data": [self._card(name) for name in self._models]})

    async def show_model(self, request: Request) -> JSONResponse:
        name = request.path_params["name"]
        self._model(name)
        return JSONResponse(self._card(name))

    async def no_responses(self, request: Request) -> JSONResponse:
        message = "the Responses API is not served; use /v1/chat/completions"
        raise _RefusedError(404, message, "unknown_url")

    def _card(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._began, "owned_by": "vprm-search"}

    def _model(self, name: str) -> GuidedChatModel:
        if name not in self._models:
            known = ", ".join(self._models)
            message = f"the model {name!r} does not exist; there are: {known}"
            raise _RefusedError(404, message, "model_not_found", "model")
        return self._models[name]

    async def complete(self, request: Request) -> JSONResponse | StreamingResponse:
        asked = _read(await request.body())
        model = self._searching(asked)
        messages = _messages(asked)
        most = self._limits.max_searches + self._limits.max_waiting
        if self._under_way >= most:
            message = f"{self._under_way} searches are under way or wait; try again later"
            raise _RefusedError(429, message, "rate_limit_exceeded")
        self._under_way += 1
        with_usage = bool(asked.stream_options and asked.stream_options.include_usage)
        reply = Completion(asked.model, n=asked.n or 1, with_usage=with_usage)
        if asked.stream:
            return _Stream(self._streamed(model, messages, asked, reply), self._ended)
        task = asyncio.ensure_future(self._candidates(model, messages, asked))
        try:
            while not task.done():
                await asyncio.wait([task], timeout=_LOOK_S)
                if not task.done() and await request.is_disconnected():
                    return JSONResponse({}, status_code=499)  # nobody reads it
            body, headers = reply.whole(task.result())
            return JSONResponse(body, headers=headers)
        except Exception as error:
            raise _refused(error) from error
        finally:
            self._ended()
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task

    def _ended(self) -> None:
        self._under_way -= 1

    def _searching(self, asked: ChatRequest) -> GuidedChatModel:
        """Return the model with the search that the request asks for, within the limits."""
        model, own, limits = self._model(asked.model), asked.vprm, self._limits
        parts, characters = _size(asked.messages)
        for name, given, most, where in (
            ("vprm.n", own.n or 0, limits.max_n, "vprm.n"),
            ("n", asked.n or 0, limits.max_n, "n"),
            ("the number of messages or parts", parts, limits.max_messages, "messages"),
            ("the length of all texts", characters, limits.max_text_chars, "messages"),
        ):
            if given > most:
                raise _bad(f"{name} is {given}; at most {most} here", where)
        if own.strategy is not None and own.strategy not in ENTRANTS:
            raise _bad(
                f"vprm.strategy {own.strategy!r} is not known; one of {', '.join(ENTRANTS)}",
                "vprm.strategy",
            )
        if asked.logprobs:
            raise _bad("logprobs are not served: an answer is chosen among many", "logprobs")
        changes: dict[str, Any] = {}
        if own.n is not None or own.strategy is not None:
            size = own.n or max(16, asked.n or 1)
            changes["strategy"] = ENTRANTS[own.strategy or "auto"].make(min(size, limits.max_n))
        budget = model.budget or Budget()
        times = (own.max_seconds, budget.seconds, limits.max_seconds)
        seconds = min(limit for limit in times if limit is not None)
        changes["budget"] = budget.model_copy(update={"seconds": seconds})
        if own.progress is not None:
            changes["progress"] = own.progress
        return model.model_copy(update=changes)

    async def _candidates(
        self, model: GuidedChatModel, messages: list[BaseMessage], asked: ChatRequest
    ) -> list[AIMessage]:
        """Search; return the candidates, best first."""
        bound, arguments = _bound(model, asked)
        async with self._free:
            result = await bound.agenerate([messages], **arguments)
        found = [generation.message for generation in result.generations[0]]
        return [message for message in found if isinstance(message, AIMessage)]

    async def _streamed(
        self,
        model: GuidedChatModel,
        messages: list[BaseMessage],
        asked: ChatRequest,
        reply: Completion,
    ) -> AsyncIterator[bytes]:
        """Yield the lines of a stream; while the search is silent, comments keep it open."""
        lines: asyncio.Queue[bytes | None] = asyncio.Queue()

        async def search() -> None:
            try:
                if (asked.n or 1) > 1:
                    choices = (await self._candidates(model, messages, asked))[: asked.n]
                    for index, message in enumerate(choices):
                        for data in reply.pieces(message, index):
                            lines.put_nowait(data)
                    reply.spent(choices)
                else:
                    bound, arguments = _bound(model, asked)
                    async with (
                        self._free,
                        aclosing(bound.astream(messages, **arguments)) as chunks,
                    ):
                        async for chunk in chunks:
                            for data in reply.pieces(chunk, 0):
                                lines.put_nowait(data)
                            reply.spent([chunk])
                for data in reply.ending():
                    lines.put_nowait(data)
            except Exception as error:
                lines.put_nowait(sse_data(_error_json(_refused(error))))
            finally:
                lines.put_nowait(None)

        task = asyncio.ensure_future(search())
        try:
            while True:
                try:
                    line = await asyncio.wait_for(lines.get(), _KEEP_ALIVE_S)
                except TimeoutError:
                    yield b": searching\n\n"
                    continue
                if line is None:
                    return
                yield line
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


class _Stream(StreamingResponse):
    """A stream of events, and what is to be done when it has ended, in whatever way."""

    def __init__(self, events: AsyncIterator[bytes], ended: Callable[[], None]) -> None:
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._ended = ended

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._ended()


def _bound(model: GuidedChatModel, asked: ChatRequest) -> tuple[Any, dict[str, Any]]:
    """Return the model and the arguments of a call, tools bound as the policy's client does it."""
    arguments = {name: getattr(asked, name) for name in _PASSED_ON}
    limit = asked.max_completion_tokens or asked.max_tokens
    arguments["max_tokens"] = limit
    arguments["stop"] = [asked.stop] if isinstance(asked.stop, str) else asked.stop
    given = {name: value for name, value in arguments.items() if value is not None}
    if not asked.tools:
        return model, given
    choice = {} if asked.tool_choice is None else {"tool_choice": asked.tool_choice}
    bound: Any = model.bind_tools(asked.tools, **choice)
    return model, {**bound.kwargs, **given}


# --- what is asked, and what is wrong with it ----------------------------------------------------


def _read(body: bytes) -> ChatRequest:
    try:
        return ChatRequest.model_validate_json(body)
    except ValidationError as error:
        place, why = first_wrong(error)
        raise _bad(f"{place}: {why}" if place else why, place or None) from error


def _size(messages: list[dict[str, Any]]) -> tuple[int, int]:
    """Return how many messages and parts there are, and how long their texts are together."""
    parts, characters = 0, 0
    for message in messages:
        content = message.get("content")
        inside = content if isinstance(content, list) else [content]
        parts += max(1, len(inside))
        texts = [part.get("text") if isinstance(part, dict) else part for part in inside]
        characters += sum(len(text) for text in texts if isinstance(text, str))
        characters += len(str(message.get("tool_calls") or ""))
    return parts, characters


def _messages(asked: ChatRequest) -> list[BaseMessage]:
    try:
        return convert_to_messages(asked.messages)
    except Exception as error:  # LangChain raises several kinds for a message it cannot read
        said = str(error).partition("\nFor troubleshooting")[0]
        raise _bad(f"messages: {said[:300]}", "messages") from error


def _bad(message: str, param: str | None) -> _RefusedError:
    return _RefusedError(400, message, "invalid_value", param)


def _refused(error: Exception) -> _RefusedError:
    """Return what a failed search is answered with; no secret of the models behind is in it."""
    if isinstance(error, _RefusedError):
        return error
    if isinstance(error, InputError):
        return _bad(str(error), None)
    said = str(error) if isinstance(error, VprmError) else explain(error)
    return _RefusedError(_UPSTREAM, said, "upstream_failed")


def _error_json(refused: _RefusedError) -> dict[str, Any]:
    kind = "invalid_request_error" if refused.status in (400, 401, 404) else "api_error"
    kind = "rate_limit_error" if refused.status == 429 else kind
    told = {"message": str(refused), "type": kind, "param": refused.param, "code": refused.code}
    return {"error": told}


async def _refusal(request: Request, error: Exception) -> JSONResponse:
    refused = _refused(error)
    headers = {"x-request-id": uuid.uuid4().hex}
    headers |= {"retry-after": "5"} if refused.status == 429 else {}
    return JSONResponse(_error_json(refused), status_code=refused.status, headers=headers)


async def _no_route(request: Request, error: Exception) -> JSONResponse:
    message = f"{request.method} {request.url.path} is not served; POST /v1/chat/completions is"
    return await _refusal(request, _RefusedError(404, message, "unknown_url"))


async def _bug(request: Request, error: Exception) -> JSONResponse:
    message = f"an error of this server ({type(error).__name__}); its log says more"
    return await _refusal(request, _RefusedError(500, message, "internal_error"))


__all__ = ["OpenAILimits", "create_openai_app"]
