"""Chat models whose calls are traced without their pictures.

LangChain gives every tracer the messages of every call as they are: a search that asks a model two
hundred times about one picture would send it two hundred times to LangSmith, to an OpenTelemetry
collector, to whatever listens. Here tracers are given references, the same as the state of a search
graph holds, and the pictures are put back below them, where the model is really called. That needs
nothing of a tracer, so it works for all of them.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar, cast
from weakref import WeakSet

from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import BaseMessage

from vprm_search.chat.failures import secrets_of, without_secrets
from vprm_search.images.messages import reference_to, referenced_url

Model = TypeVar("Model", bound=BaseChatModel)
T = TypeVar("T")
Pictures = Mapping[str, Any]
"""Content blocks by the reference that stands for each."""

_NONE: Pictures = {}
_pictures: ContextVar[Pictures] = ContextVar("vprm_search_pictures", default=_NONE)
_kinds: WeakSet[type[BaseChatModel]] = WeakSet()
_CALLS = (
    "_generate",
    "_agenerate",
    "_stream",
    "_astream",
    "_stream_chat_model_events",
    "_astream_chat_model_events",
)
_TOLD = ("to_json", "_get_invocation_params", "_get_ls_params")  # what a trace says of a model
_SECRET_NAMES = re.compile(
    r"authorization|cookie|api.?key|secret|password|(?:auth|access|bearer).?token", re.IGNORECASE
)


def without_pictures_in_traces(model: Model) -> Model:
    """Return `model` as one whose calls under `pictures_aside` are traced without pictures.

    What traces say of its settings holds no keys, either: no header of a request, no value that is
    named or looks like a secret (LangChain leaves out `SecretStr` fields alone). It is the same
    model: both have one state, and their classes have one name. A class that does
    LangChain's own part of a call by itself is left as it is, and `pictures_aside` with it.
    """
    kind = type(model)
    own = (kind.generate, kind.agenerate) != (BaseChatModel.generate, BaseChatModel.agenerate)
    if own or kind in _kinds:
        return model
    view = object.__new__(_light_kind(kind))
    for base in kind.__mro__:
        for name in base.__dict__.get("__slots__", ()):
            object.__setattr__(view, name, getattr(model, name, None))
    return cast("Model", view)


@contextmanager
def held(variable: ContextVar[T], value: T) -> Iterator[None]:
    """Run a block in which a context variable has a value of its own."""
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


@contextmanager
def pictures_aside(
    model: BaseChatModel, messages: list[BaseMessage]
) -> Iterator[list[BaseMessage]]:
    """Give `messages` with references for pictures, for calls to `model` inside the block.

    They are given as they are where `model` does not come from `without_pictures_in_traces`.
    """
    pictures: dict[str, Any] = {}
    light = [with_references(message, pictures) for message in messages]
    if not pictures or type(model) not in _kinds:
        yield messages
        return
    with held(_pictures, pictures):
        yield light


@functools.cache
def _light_kind(kind: type[BaseChatModel]) -> type[BaseChatModel]:
    """Return a class like `kind` that puts pictures back where a model is really called.

    Only what `kind` itself has is wrapped: LangChain asks a class what it can do.
    """
    own: dict[str, Any] = {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
    for name in _CALLS:
        method = getattr(kind, name, None)
        if method is not None and method is not getattr(BaseChatModel, name, None):
            own[name] = _with_pictures(method)
    own |= {name: _without_keys(getattr(kind, name)) for name in _TOLD}
    light: Any = cast("Any", type(kind))(kind.__name__, (kind,), own)
    _kinds.add(light)
    return cast("type[BaseChatModel]", light)


def _with_pictures(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(self: Any, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> Any:
        pictures = _pictures.get()
        whole = [_restored(message, pictures) for message in messages] if pictures else messages
        return method(self, whole, *args, **kwargs)

    return call


def _without_keys(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def told(self: Any, *args: Any, **kwargs: Any) -> Any:
        return _hidden(method(self, *args, **kwargs), secrets_of(self))

    return told


def _hidden(value: Any, secrets: Sequence[str], name: str = "") -> Any:
    if isinstance(value, Mapping):
        inside = name if "header" in name.lower() else ""
        return {k: _hidden(v, secrets, f"{inside} {k}".strip()) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_hidden(one, secrets, name) for one in value]
    if not isinstance(value, str):
        return value
    secret = "header" in name.lower() or _SECRET_NAMES.search(name)
    return "[secret]" if secret else without_secrets(value, secrets)


def with_references(message: BaseMessage, pictures: dict[str, Any]) -> BaseMessage:
    """Return a message with references for pictures; note in `pictures` what they stand for."""
    if isinstance(message.content, str):
        return message
    blocks: list[Any] = []
    for block in message.content:
        url = reference_to(block) if isinstance(block, dict) else None
        while url is not None and pictures.get(url, block) != block:
            url += "+"  # the same picture in another block, with a mark for caches for example
        if url is not None:
            pictures[url] = block
        blocks.append(block if url is None else {"type": "image", "url": url})
    return message.model_copy(update={"content": blocks})


def _restored(message: BaseMessage, pictures: Pictures) -> BaseMessage:
    if isinstance(message.content, str):
        return message
    blocks = [
        pictures.get(referenced_url(block) or "", block) if isinstance(block, dict) else block
        for block in message.content
    ]
    return message.model_copy(update={"content": blocks})
