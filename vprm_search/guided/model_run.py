"""The run of one call of a guided model: what is nested under it, and what it tells meanwhile.

Candidates are runs below the model's own. Only tracers see them: any other handler would take their
tokens for the model's (LangGraph's `messages` stream), or count them again (usage). Events of the
search go to every handler as custom events (`on_custom_event`, "vprm_search"), and to the `custom`
stream of a LangGraph run; where there is neither, they go nowhere.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from langchain_core.callbacks import (
    AsyncCallbackManager,
    AsyncCallbackManagerForLLMRun,
    CallbackManagerForLLMRun,
)
from langchain_core.callbacks.base import BaseCallbackHandler, BaseCallbackManager
from langchain_core.outputs import ChatGenerationChunk
from langchain_core.runnables.config import ensure_config, patch_config, var_child_runnable_config
from langchain_core.tracers import context as tracing
from langchain_core.tracers._streaming import _StreamingCallbackHandler
from langchain_core.tracers.base import AsyncBaseTracer, BaseTracer
from langchain_core.utils.utils import LC_ID_PREFIX

from vprm_search.chat.calls import HIDDEN
from vprm_search.chat.tracing import held
from vprm_search.graph.events import Event

EVENT_NAME = "vprm_search"
"""The name of the custom events by which a guided model tells of its search."""

LLMManager = CallbackManagerForLLMRun | AsyncCallbackManagerForLLMRun


@dataclass(frozen=True, slots=True)
class ModelRun:
    """The run of one call of a guided model; without an id, a call that nobody follows.

    Attributes:
        run_id: the id of the run.
        handlers: all handlers of it.
        inheritable: those that runs below it have, too.
        tags: of the runs below it.
        metadata: of the runs below it.
        write: writes to the `custom` stream of the graph that the call is made in.
    """

    run_id: UUID | None = None
    handlers: tuple[BaseCallbackHandler, ...] = ()
    inheritable: tuple[BaseCallbackHandler, ...] = ()
    tags: tuple[str, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)
    write: Callable[[Any], None] | None = None

    @classmethod
    def of(
        cls, manager: LLMManager | BaseCallbackManager | None, run_id: UUID | None = None
    ) -> ModelRun:
        """Return the run that a manager is of, or the one with `run_id` that it is to begin."""
        if manager is None:
            return cls(write=_graph_writer())
        if isinstance(manager, LLMManager):
            run_id = manager.run_id
        return cls(
            run_id,
            tuple(manager.handlers),
            tuple(manager.inheritable_handlers),
            tuple(manager.inheritable_tags),
            dict(manager.inheritable_metadata),
            _graph_writer(),
        )

    @property
    def message_id(self) -> str | None:
        """The id that LangChain gives the message of this run in a stream."""
        return None if self.run_id is None else f"{LC_ID_PREFIX}-{self.run_id}"

    @property
    def streams(self) -> bool:
        """Whether a handler takes the answer in pieces, as LangGraph's `messages` stream does."""
        return any(isinstance(handler, _StreamingCallbackHandler) for handler in self.handlers)

    @contextlib.contextmanager
    def nested(self) -> Iterator[None]:
        """Run a block whose model calls are runs below this one.

        Handlers that LangChain would add to every run by themselves, usage counters foremost, see
        this run alone. To be used in a context of its own: a task, a thread.
        """
        tracers = [h for h in self.inheritable if isinstance(h, BaseTracer | AsyncBaseTracer)]
        below = AsyncCallbackManager(
            handlers=list(tracers),
            inheritable_handlers=list(tracers),
            parent_run_id=self.run_id,
            tags=list(self.tags),
            inheritable_tags=list(self.tags),
            metadata=dict(self.metadata),
            inheritable_metadata=dict(self.metadata),
        )
        config = patch_config(ensure_config(), callbacks=below)
        config["tags"] = [*(config.get("tags") or []), HIDDEN]
        config.pop("recursion_limit", None)
        with contextlib.ExitStack() as stack:
            stack.enter_context(held(var_child_runnable_config, config))
            stack.enter_context(held(_bare_stream, None))
            for hook in getattr(tracing, "_configure_hooks", ()):
                if not isinstance(hook[0].get(), BaseTracer | AsyncBaseTracer | None):
                    stack.enter_context(held(hook[0], None))
            yield

    async def tell(self, event: Event) -> None:
        """Tell handlers and the graph's stream of an event of the search."""
        if self.write is not None:
            self.write(event)
        if self.run_id is not None:
            manager = AsyncCallbackManager(list(self.handlers), tags=list(self.tags))
            await manager.on_custom_event(EVENT_NAME, event, run_id=self.run_id)

    async def stream(self, chunk: ChatGenerationChunk) -> None:
        """Give a piece of the answer to the handlers, as a streaming call does."""
        if self.run_id is not None:
            manager = AsyncCallbackManagerForLLMRun(
                run_id=self.run_id,
                handlers=list(self.handlers),
                inheritable_handlers=list(self.inheritable),
            )
            await manager.on_llm_new_token(str(chunk.text), chunk=chunk)


def _graph_writer() -> Callable[[Any], None] | None:
    """Return what writes to the `custom` stream of the LangGraph run around, None without one."""
    if "langgraph.pregel" not in sys.modules:
        return None
    from langgraph.config import get_stream_writer

    try:
        return get_stream_writer()
    except (RuntimeError, KeyError):  # no run, or one of a chain
        return None


# --- calls of `stream` ---------------------------------------------------------------------------

_bare_stream: ContextVar[ModelRun | None] = ContextVar("vprm_search_bare_stream", default=None)


def stream_run() -> ModelRun:
    """Return the run of the `stream` call under way, whose model is told nothing of it."""
    return _bare_stream.get() or ModelRun.of(None, None)


def as_stream_run(run: ModelRun) -> AbstractContextManager[None]:
    """Run a block in which `stream_run` is `run`."""
    return held(_bare_stream, run)
