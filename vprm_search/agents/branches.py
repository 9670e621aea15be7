"""Branches of an agent: threads of its own checkpointer, one for every path of a search.

A branch is copied whole, every channel of it, and stopped at the agent's own seams: before its
model, and before its tools. So an action is in the state before it is run, and a tool runs in
branches that were chosen only. All of it is in the saver: another process finds each branch where
it was, with the results of the tools that had ended.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langchain_core.runnables.config import ensure_config, var_child_runnable_config
from langgraph.channels.delta import DeltaChannel
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.constants import TAG_NOSTREAM
from langgraph.graph.state import CompiledStateGraph
from langgraph.prebuilt import ToolNode
from langgraph.types import StateSnapshot

from vprm_search.chat.tracing import held
from vprm_search.errors import ConfigError
from vprm_search.graph.light_tracers import callbacks_without_pictures

Agent = CompiledStateGraph[Any, Any, Any, Any]
Saver = BaseCheckpointSaver[Any]

_MODELS = ("model", "agent", "llm", "chatbot", "call_model")
_STARTED = "vprm_started"
_MOST_STEPS = 10_000

in_threads: ContextVar[bool] = ContextVar("vprm_search_agent_in_threads", default=False)
"""Whether the search was called synchronously: then the agent is, too, in threads."""


@dataclass(frozen=True, slots=True)
class Seams:
    """Where an agent is stopped: the names of its model nodes and of its tool nodes.

    `before_tools` are the nodes whose edge leads to each tool node; `own` are the breakpoints that
    the agent was compiled with.
    """

    models: tuple[str, ...]
    tools: tuple[str, ...]
    before_tools: Mapping[str, str] = field(default_factory=dict)
    own: tuple[str, ...] = ()

    @classmethod
    def of(cls, agent: Agent, models: Sequence[str] = (), tools: Sequence[str] = ()) -> Seams:
        """Find the seams of an agent. Raises `ConfigError` if a node is not there or not found."""
        nodes = agent.builder.nodes
        for name in (*models, *tools):
            if name not in nodes:
                raise ConfigError(f"the agent has no node {name!r}; its nodes: {', '.join(nodes)}")
        found = tuple(models) or tuple(name for name in nodes if name in _MODELS)
        if not found:
            raise ConfigError(
                "no node of the agent is called " + ", ".join(_MODELS) + "; name those that call "
                f"the model as model_nodes (its nodes: {', '.join(nodes)})"
            )
        acting = tuple(tools) or tuple(
            name for name, node in nodes.items() if isinstance(node.runnable, ToolNode)
        )
        before = {
            end: start
            for start, branches in agent.builder.branches.items()
            for branch in branches.values()
            for end in (branch.ends or {}).values()
            if end in acting
        }
        own = agent.interrupt_before_nodes
        every = tuple(nodes) if own == "*" else tuple(own)
        return cls(found, acting, before, tuple(n for n in every if n not in (*found, *acting)))

    @property
    def stops(self) -> list[str]:
        """Every node before which a branch stops."""
        return [*self.models, *self.tools, *self.own]


@dataclass(slots=True)
class Branches:
    """The branches of one search, by name, through the agent's own saver.

    Args:
        agent: the agent, with `saver` as its checkpointer.
        saver: where the branches are.
        seams: where they are stopped.
        prefix: begins the thread ids of this search.
        context: the run's context, which the agent's runs get, too.
        configurable: the run's configurable values, which the agent's runs get, too.
    """

    agent: Agent
    saver: Saver
    seams: Seams
    prefix: str
    context: Any = None
    configurable: Mapping[str, Any] = field(default_factory=dict)

    def _config(self, name: str, checkpoint_id: str = "") -> Any:
        place = {"thread_id": f"{self.prefix}/{name}", "checkpoint_ns": ""}
        if checkpoint_id:
            place["checkpoint_id"] = checkpoint_id
        return {"configurable": {**self.configurable, **place}, "recursion_limit": _MOST_STEPS}

    async def state(self, name: str) -> StateSnapshot:
        """Return where a branch is; without values if there is none."""
        with _apart():
            if in_threads.get():
                return await asyncio.to_thread(self.agent.get_state, self._config(name))
            return await self.agent.aget_state(self._config(name))

    async def run(self, name: str, given: Any = None) -> StateSnapshot:
        """Run a branch up to the next seam, and return where it is. Raises what the agent does."""
        options: dict[str, Any] = {
            "interrupt_before": self.seams.stops,
            "durability": "sync",
            "context": self.context,
        }
        with _apart():
            if in_threads.get():
                run: Any = self.agent.invoke  # overloaded
                await asyncio.to_thread(run, given, self._config(name), **options)
            else:
                await self.agent.ainvoke(given, self._config(name), **options)
        return await self.state(name)

    async def settle(self, name: str) -> StateSnapshot:
        """Run what stands before the next seam (`before_model` hooks); nothing at a seam."""
        state = await self.state(name)
        while state.tasks and not state.interrupts and not at(state) & set(self.seams.stops):
            state = await self.run(name)
        return state

    async def write(self, name: str, values: Mapping[str, Any], as_node: str) -> StateSnapshot:
        """Write into a branch as if a node of the agent had, and settle it."""
        with _apart():
            if in_threads.get():
                update = self.agent.update_state
                await asyncio.to_thread(update, self._config(name), dict(values), as_node)
            else:
                await self.agent.aupdate_state(self._config(name), dict(values), as_node)
        return await self.settle(name)

    async def copy(self, source: str, name: str) -> None:
        """Make a branch that is where `source` is, in every channel."""
        kept, state = await self._tuple(source), await self.state(source)
        if kept is None:
            raise ConfigError(
                f"branch {source!r} of the search is not in the checkpointer: branches are removed "
                "when a search ends, and one from another saver cannot go on"
            )
        values = dict(kept.checkpoint["channel_values"])
        values |= {  # such a channel is stored as what each checkpoint added
            key: state.values[key]
            for key, channel in self.agent.channels.items()
            if isinstance(channel, DeltaChannel) and key in state.values
        }
        checkpoint: Any = {**kept.checkpoint, "channel_values": values}
        place, versions = self._config(name), checkpoint["channel_versions"]
        if in_threads.get():
            put = self.saver.put
            await asyncio.to_thread(put, place, checkpoint, kept.metadata, versions)
        else:
            await self.saver.aput(place, checkpoint, kept.metadata, versions)

    async def is_copy(self, source: str, name: str) -> bool:
        """Tell whether nothing has happened in a branch since it was copied from `source`."""
        mine, other = await self._tuple(name), await self._tuple(source)
        return bool(mine and other and mine.checkpoint["id"] == other.checkpoint["id"])

    async def starts(self, name: str) -> tuple[int, list[tuple[str, str, Any]]]:
        """Return how often tools were started at this place, and what is stored of their results.

        The latter are (task id, channel, value), as the agent's saver keeps them.
        """
        kept = await self._tuple(name)
        writes = [] if kept is None else list(kept.pending_writes or [])
        marks = sum(1 for _, channel, _ in writes if channel == _STARTED)
        return marks, [write for write in writes if write[1] != _STARTED]

    async def note_start(self, name: str, state: StateSnapshot, number: int) -> None:
        """Note, durably, that the tools at this place are being started for the number-th time."""
        place = self._config(name, state.config["configurable"]["checkpoint_id"])
        task = f"vprm-start-{number}"
        if in_threads.get():
            put = self.saver.put_writes
            await asyncio.to_thread(put, place, [(_STARTED, number)], task)
        else:
            await self.saver.aput_writes(place, [(_STARTED, number)], task)

    async def remove(self, names: Sequence[str]) -> None:
        """Remove branches from the saver."""
        for name in names:
            thread = f"{self.prefix}/{name}"
            if in_threads.get():
                await asyncio.to_thread(self.saver.delete_thread, thread)
            else:
                await self.saver.adelete_thread(thread)

    async def _tuple(self, name: str) -> Any:
        if in_threads.get():
            return await asyncio.to_thread(self.saver.get_tuple, self._config(name))
        return await self.saver.aget_tuple(self._config(name))


@contextlib.contextmanager
def _apart() -> Iterator[None]:
    """Run a block as no part of the graph around it: it would take the agent for a subgraph.

    Callbacks, tags and metadata stay, so that traces are nested, but the pictures that a branch has
    in its state are not traced; candidates are not streamed.
    """
    around = ensure_config()
    config: Any = {
        "callbacks": callbacks_without_pictures(around.get("callbacks")),
        "tags": [*(around.get("tags") or []), TAG_NOSTREAM],
        "metadata": {
            key: value
            for key, value in (around.get("metadata") or {}).items()
            if not key.startswith(("langgraph_", "checkpoint_", "thread_id"))
        },
    }
    with held(var_child_runnable_config, config):
        yield


# --- reading a branch ----------------------------------------------------------------------------


def at(state: StateSnapshot) -> set[str]:
    """Return the nodes before which a branch stands, those that ended before a crash included."""
    return {task.name for task in state.tasks}


def messages_of(state: StateSnapshot) -> list[BaseMessage]:
    """Return the conversation of a branch."""
    return list(state.values.get("messages") or [])


def last_said(messages: Sequence[BaseMessage]) -> int | None:
    """Return where the model's last message stands, None if it has said nothing."""
    places = range(len(messages) - 1, -1, -1)
    return next((i for i in places if isinstance(messages[i], AIMessage)), None)


def last_calls(messages: Sequence[BaseMessage]) -> list[Any]:
    """Return the calls of the model's last message."""
    place = last_said(messages)
    said = None if place is None else messages[place]
    return list(said.tool_calls) if isinstance(said, AIMessage) else []


def pending_calls(messages: Sequence[BaseMessage]) -> list[Any]:
    """Return the calls of the model's last message that have no answer yet."""
    place = last_said(messages) or 0
    done = {m.tool_call_id for m in messages[place:] if isinstance(m, ToolMessage)}
    return [call for call in last_calls(messages) if call["id"] not in done]
