"""LangChain's tracers, told of pictures by reference.

A policy that this package asks is given references and its pictures below the tracers
(`chat/tracing.py`). Calls that are others' (an agent's nodes and models, a user's own policy)
cannot be given references. For them the tracer itself, LangChain's one that writes to LangSmith and
to OpenTelemetry, is replaced by one that is the same but for the pictures. Runs around a search are
not ours to change: for them `without_pictures` is a rule that users give to LangSmith's client.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, TypeVar
from weakref import WeakSet

from langchain_core.callbacks import AsyncCallbackManager, BaseCallbackManager, CallbackManager
from langchain_core.messages import BaseMessage
from langchain_core.prompt_values import ChatPromptValue
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import (
    ensure_config,
    patch_config,
    var_child_runnable_config,
)
from langchain_core.tracers.langchain import LangChainTracer
from langgraph.types import Command, Send

from vprm_search.chat.tracing import held, with_references
from vprm_search.images.messages import REFERENCE_SCHEME, reference_to

_WRITTEN = re.compile(  # a data URI, or the beginning of a PNG, a JPEG, a WEBP
    r"(?:data:image/[\w.+-]+;base64,|iVBORw0KGgo|/9j/|UklGR)[A-Za-z0-9+/]{100,}={0,2}"
)
_SHORT = 110
_HOLD_PICTURES = ("content", "additional_kwargs", "artifact")
_TOLD = ("on_chat_model_start", "on_chain_start", "on_chain_end", "on_tool_start", "on_tool_end")
Manager = TypeVar("Manager", CallbackManager, AsyncCallbackManager)
_kinds: WeakSet[type[LangChainTracer]] = WeakSet()


def callbacks_without_pictures(callbacks: Any) -> Any:
    """Return a run's callbacks with LangChain's tracers replaced: they write no picture.

    Args:
        callbacks: a callback manager, a list of handlers, or None.
    """
    if isinstance(callbacks, list):
        return [_light_tracer(handler) for handler in callbacks]
    if not isinstance(callbacks, BaseCallbackManager):
        return callbacks
    light = callbacks.copy()
    light.handlers = [_light_tracer(handler) for handler in light.handlers]
    light.inheritable_handlers = [_light_tracer(handler) for handler in light.inheritable_handlers]
    return light


def light_manager(kind: type[Manager], *callbacks: Any, **inherited: Any) -> Manager:
    """Return a callback manager like the one LangChain would make, whose tracers write no picture.

    Args:
        kind: the class of the manager.
        callbacks: the inheritable callbacks and the local ones, as `kind.configure` takes them.
        inherited: further arguments of `kind.configure`.
    """
    light: Manager = callbacks_without_pictures(kind.configure(*callbacks, **inherited))
    return light


def light_config(
    kind: type[Manager], config: RunnableConfig | None, callbacks: Any = None
) -> RunnableConfig:
    """Return the config of a run that is traced, if it is, without pictures.

    Args:
        kind: the class of the manager that its callbacks become.
        config: the config of the run.
        callbacks: those of the object whose run it is.
    """
    config = ensure_config(config)
    callbacks = light_manager(kind, config.get("callbacks"), callbacks)
    return RunnableConfig(**{**config, "callbacks": callbacks})


@contextlib.contextmanager
def untraced_pictures() -> Iterator[None]:
    """Run a block whose calls are traced without the pictures that they show."""
    config = ensure_config()
    callbacks = callbacks_without_pictures(config.get("callbacks"))
    with held(var_child_runnable_config, patch_config(config, callbacks=callbacks)):
        yield


def _light_tracer(handler: Any) -> Any:
    """Return a tracer that is the same one, with the same state, and writes no picture."""
    if not isinstance(handler, LangChainTracer) or type(handler) in _kinds:
        return handler
    view = object.__new__(_light_tracer_kind(type(handler)))
    view.__dict__ = handler.__dict__
    return view


@functools.cache
def _light_tracer_kind(kind: type[LangChainTracer]) -> type[LangChainTracer]:
    own: dict[str, Any] = {name: _told_light(getattr(kind, name)) for name in _TOLD}
    own |= {"__module__": kind.__module__, "__eq__": _is_same, "__hash__": _hash}
    light = type(kind.__name__, (kind,), own)
    _kinds.add(light)
    return light


def _is_same(view: LangChainTracer, other: object) -> bool:
    """Tell whether both are one tracer: LangChain adds none that it finds among the handlers."""
    return isinstance(other, LangChainTracer) and view.__dict__ is other.__dict__


def _hash(view: LangChainTracer) -> int:
    return id(view.__dict__)


def _told_light(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def told(self: Any, *args: Any, **kwargs: Any) -> Any:
        light = {name: without_pictures(value) for name, value in kwargs.items()}
        return method(self, *map(without_pictures, args), **light)

    return told


def without_pictures(value: Any) -> Any:
    """Return what a tracer is told with a reference for every picture in it.

    For runs that are not this package's own: `Client(anonymizer=without_pictures)` is a LangSmith
    client that sends no picture, whoever's run shows it. The references name the digests by which
    an image store has the pictures that it was given.

    Args:
        value: inputs or outputs of a run: messages, content blocks, texts, and what holds them.
    """
    if isinstance(value, BaseMessage):
        return _light_message(value)
    if isinstance(value, ChatPromptValue):
        return value.model_copy(update={"messages": list(map(_light_message, value.messages))})
    if isinstance(value, str):
        return value if len(value) < _SHORT else _WRITTEN.sub(_reference, value)
    if isinstance(value, dict):
        url = reference_to(value) if isinstance(value.get("type"), str) else None
        if url is not None:
            return {"type": "image", "url": url}
        return {key: without_pictures(one) for key, one in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(without_pictures, value))
    if isinstance(value, Command):
        return replace(value, update=without_pictures(value.update))
    return Send(value.node, without_pictures(value.arg)) if isinstance(value, Send) else value


def _light_message(message: BaseMessage) -> BaseMessage:
    light = with_references(message, {})
    told = {n: getattr(light, n) for n in _HOLD_PICTURES if getattr(light, n, None)}
    changed = {name: without_pictures(value) for name, value in told.items()}
    return light if changed == told else light.model_copy(update=changed)


def _reference(written: re.Match[str]) -> str:
    data = written[0].rpartition(",")[2]
    return reference_to({"type": "image", "base64": data}) or REFERENCE_SCHEME
