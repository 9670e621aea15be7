"""LangChain's tracers, told of pictures by reference.

A policy that this package asks is given references and its pictures below the tracers
(`chat/tracing.py`). Calls that are others' (an agent's nodes and models, a user's own policy)
cannot be given references. For them the tracer itself, LangChain's one that writes to LangSmith and
to OpenTelemetry, is replaced by one that is the same but for the pictures.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from weakref import WeakSet

from langchain_core.callbacks import BaseCallbackManager
from langchain_core.messages import BaseMessage
from langchain_core.tracers.langchain import LangChainTracer
from langgraph.types import Command, Send

from vprm_search.chat.tracing import with_references

_TOLD = ("on_chat_model_start", "on_chain_start", "on_chain_end", "on_tool_start", "on_tool_end")
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


def _light_tracer(handler: Any) -> Any:
    """Return a tracer that is the same one, with the same state, and writes no picture."""
    if not isinstance(handler, LangChainTracer) or type(handler) in _kinds:
        return handler
    view = object.__new__(_light_tracer_kind(type(handler)))
    view.__dict__ = handler.__dict__
    return view


@functools.cache
def _light_tracer_kind(kind: type[LangChainTracer]) -> type[LangChainTracer]:
    own = {name: _told_light(getattr(kind, name)) for name in _TOLD}
    light = type(kind.__name__, (kind,), {"__module__": kind.__module__, **own})
    _kinds.add(light)
    return light


def _told_light(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def told(self: Any, *args: Any, **kwargs: Any) -> Any:
        light = {name: _light(value) for name, value in kwargs.items()}
        return method(self, *map(_light, args), **light)

    return told


def _light(value: Any) -> Any:
    """Return what a tracer is told with references for the pictures in its messages."""
    if isinstance(value, BaseMessage):
        return with_references(value, {})
    if isinstance(value, dict):
        return {key: _light(one) for key, one in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(_light, value))
    if isinstance(value, Command):
        return replace(value, update=_light(value.update))
    return Send(value.node, _light(value.arg)) if isinstance(value, Send) else value
