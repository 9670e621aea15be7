"""Running the tools of chosen branches: equal calls once, and none twice by accident.

One pass (`act`) brings every branch as far as it gets without a person, and returns what has to be
asked. Nothing of a branch is run while a question about it is open, and answers are kept by the
name of the question, so that a pass may be repeated after a crash.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from langchain_core.messages import AIMessage, BaseMessage, ToolMessage
from langgraph.types import Command, StateSnapshot, interrupt
from pydantic import BaseModel, RootModel

from vprm_search import ids
from vprm_search.agents.branches import (
    Branches,
    at,
    last_calls,
    last_said,
    messages_of,
    pending_calls,
)
from vprm_search.chat.failures import explain
from vprm_search.chat.tool_calls import calls_key

ToolPolicy = Literal["execute", "safe", "ask"]
_REFUSED = "Not run: this search runs only tools that are marked as safe."
_INNER = ("__", "branch:")
_TOGETHER = "Not run: another call of the same message was not to be run."


@dataclass(slots=True)
class Acts:
    """What is known of the tools of a search, as plain JSON in its state.

    `answers` are what people said, by question; `results` where the result of a call is, by what
    was called; `failed` why a branch cannot go on.
    """

    answers: dict[str, Any] = field(default_factory=dict)
    results: dict[str, list[str]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Actor:
    """Acts for a search: its tool policy, and the tools that may run again without harm."""

    policy: ToolPolicy
    safe: frozenset[str]

    async def act(self, branches: Branches, names: Sequence[str], acts: Acts) -> list[Any]:
        """Bring branches to where their model is asked next; return the questions to people.

        Branches with equal calls go one after the other: the second takes the first one's results.
        """
        questions: list[Any] = []
        todo = [name for name in names if name not in acts.failed]
        while todo:
            taken: set[str] = set()
            now: list[str] = []
            later: list[str] = []
            for name in todo:
                keys = set(call_keys(await branches.state(name)))
                (later if keys & taken else now).append(name)
                taken |= keys
            for asked in await asyncio.gather(*(self._one(branches, n, acts) for n in now)):
                questions += asked
            todo = later
        return questions

    async def _one(self, branches: Branches, name: str, acts: Acts) -> list[Any]:
        """Bring one branch as far as it gets; return what has to be asked about it."""
        try:
            state = await branches.settle(name)
            while True:
                if state.interrupts:
                    asked, resume = self._passed_on(name, state, acts)
                    if asked:
                        return asked
                    state = await branches.run(name, Command(resume=resume))
                elif at(state) & set(branches.seams.tools):
                    asked, state = await self._tools(branches, name, state, acts)
                    if asked:
                        return asked
                elif at(state) & set(branches.seams.own):
                    key = f"{name}:{state.config['configurable']['checkpoint_id']}"
                    if key not in acts.answers:
                        return [{"key": key, "type": "pause", "before": sorted(at(state))}]
                    state = await branches.run(name)
                else:
                    _remember(acts, name, state)
                    return []
        except Exception as error:  # costs this branch, not the search
            acts.failed[name] = explain(error)
            return []

    def _passed_on(
        self, name: str, state: StateSnapshot, acts: Acts
    ) -> tuple[list[Any], dict[str, Any]]:
        """Return the agent's own questions without an answer, and the answers to the others."""
        keys = {f"{name}:{asked.id}": asked for asked in state.interrupts}
        open_ones = [
            {"key": key, "type": "interrupt", "value": asked.value}
            for key, asked in keys.items()
            if key not in acts.answers
        ]
        return open_ones, {
            asked.id: acts.answers[key] for key, asked in keys.items() if key in acts.answers
        }

    async def _tools(
        self, branches: Branches, name: str, state: StateSnapshot, acts: Acts
    ) -> tuple[list[Any], StateSnapshot]:
        """Run, inject or refuse the calls at which a branch stands."""
        starts, stored = await branches.starts(name)
        ended = _ended(stored)
        done = {m.tool_call_id for m in ended}
        messages = [m for m in messages_of(state) if m.id not in {e.id for e in ended}]
        calls = pending_calls(messages)
        tasks = [task for task in state.tasks if task.name in branches.seams.tools]
        apart = len(tasks) == len(calls)
        asked: list[Any] = []
        given: dict[str, ToolMessage] = {}
        for call, key in zip(calls, _keys(messages, state.values, calls), strict=True):
            if call["id"] in done:
                continue
            known = None if starts else await _known(branches, acts, key, call)
            verdict = known or self._decide(name, messages, call, starts, acts)
            if isinstance(verdict, dict):
                asked.append(verdict)
            elif isinstance(verdict, ToolMessage):
                given[call["id"]] = verdict
        if asked:
            return asked, state
        refused = any(m.status == "error" for m in given.values())
        if given and not apart and len(given) < len(calls):
            rest = [c for c in calls if c["id"] not in given]
            given = {**given, **{c["id"]: _said(c, _TOGETHER, "error") for c in rest}}
            given = given if refused else {}
        if given:
            tool = tasks[0].name
            whole = given.keys() | done >= {call["id"] for call in calls}
            values = _with_ended(list(given.values()), stored, branches.agent.channels)
            node = tool if whole else branches.seams.before_tools[tool]
            return [], await branches.write(name, values, node)
        await branches.note_start(name, state, starts + 1)
        after = await branches.run(name)
        return [], await branches.settle(name) if not after.interrupts else after

    def _decide(
        self, name: str, said: Sequence[BaseMessage], call: Any, starts: int, acts: Acts
    ) -> dict[str, Any] | ToolMessage | None:
        """Return a question about a call, what answers it instead of its tool, or None: run it.

        A call that was started and has no result may have had its effect.
        """
        safe = call["name"] in self.safe
        if safe or (self.policy == "execute" and not starts):
            return None
        if self.policy == "safe":
            return _said(call, _REFUSED, "error")
        key = f"{name}:{said[last_said(said) or 0].id}:{call['id']}:{starts}"
        if key not in acts.answers:
            kind = "call_in_doubt" if starts else "tool_call"
            shown = {"name": call["name"], "args": call["args"]}
            choices = ["run", "skip", {"result": "what it is to have answered"}]
            return {"key": key, "type": kind, "call": shown, "answers": choices}
        answer = acts.answers[key]
        if isinstance(answer, dict):
            return _said(call, str(answer.get("result", "")), "success")
        return None if answer == "run" else _said(call, "Not run: a person refused it.", "error")


class _Result(BaseModel, extra="forbid"):
    result: Any


class CallAnswer(RootModel[Literal["run", "skip"] | _Result]):
    """What a person may answer about a call: to run it, to skip it, or what it is to have said."""


def answer_to(question: Mapping[str, Any]) -> Any:
    """Return a person's answer to a question. Of one about a call, another is refused."""
    if "answers" not in question:
        return interrupt(question)
    return interrupt(question, response_schema=CallAnswer).model_dump()


def _ended(stored: Sequence[tuple[str, str, Any]]) -> list[ToolMessage]:
    """Return the results that were stored before the step that made them had ended."""
    found = [
        one
        for _, channel, value in stored
        if channel == "messages"
        for one in (value if isinstance(value, list) else [value])
    ]
    return [one for one in found if isinstance(one, ToolMessage)]


def _with_ended(
    given: Sequence[ToolMessage], stored: Sequence[tuple[str, str, Any]], known: Collection[str]
) -> dict[str, Any]:
    """Return an update of a branch: answers to calls, and what ended before a crash."""
    values: dict[str, Any] = {}
    for _, channel, value in stored:
        if channel in known and channel != "messages" and not channel.startswith(_INNER):
            values[channel] = value
    return {**values, "messages": [*given, *_ended(stored)]}


def call_keys(state: StateSnapshot) -> list[str]:
    """Return what tells the pending calls of a branch apart from those that would answer the same.

    Tool, arguments, how many such calls came before on the path, and every channel but the
    conversation: a file that was written makes another call of the same reading.
    """
    messages = messages_of(state)
    return _keys(messages, state.values, pending_calls(messages))


def _keys(
    messages: Sequence[BaseMessage], values: Mapping[str, Any], calls: Sequence[Any]
) -> list[str]:
    """Return the keys of `calls`, which are of the model's last message."""
    others = {k: v for k, v in values.items() if k != "messages"}
    around = ids.digest(json.dumps(others, sort_keys=True, default=repr)).hex()[:16]
    counted: dict[str, int] = {}
    keys: dict[str, str] = {}
    for message in messages:
        for call in message.tool_calls if isinstance(message, AIMessage) else ():
            one = calls_key(AIMessage("", tool_calls=[call]))
            counted[one] = counted.get(one, 0) + 1
            keys[call["id"] or ""] = ids.digest(one, counted[one], around).hex()[:24]
    return [keys[call["id"] or ""] for call in calls]


async def _known(branches: Branches, acts: Acts, key: str, call: Any) -> ToolMessage | None:
    """Return the result that an equal call had in another branch, as one of this call."""
    if key not in acts.results:
        return None
    branch, number = acts.results[key]
    for message in reversed(messages_of(await branches.state(branch))):
        if isinstance(message, ToolMessage) and message.tool_call_id == number:
            return message.model_copy(update={"tool_call_id": call["id"], "id": None})
    return None


def _remember(acts: Acts, name: str, state: StateSnapshot) -> None:
    """Note where the results of a branch's last calls are, for equal calls of other branches.

    A call that has changed another channel has another key now than before it, so that nobody
    takes its result.
    """
    messages = messages_of(state)
    calls = last_calls(messages)
    answers = {m.tool_call_id: m for m in messages if isinstance(m, ToolMessage)}
    for call, key in zip(calls, _keys(messages, state.values, calls), strict=True):
        if call["id"] in answers and answers[call["id"]].status != "error":
            acts.results.setdefault(key, [name, call["id"]])


def _said(call: Any, text: str, status: Literal["success", "error"]) -> ToolMessage:
    return ToolMessage(text, tool_call_id=call["id"], name=call["name"], status=status)


def finished(state: StateSnapshot) -> bool:
    """Tell whether an agent's branch has ended by itself."""
    return not state.tasks and bool(state.values)


def new_messages(before: Sequence[BaseMessage], now: Sequence[BaseMessage]) -> list[BaseMessage]:
    """Return the messages that were not there before, by their ids."""
    known = {message.id for message in before}
    return [message for message in now if message.id not in known]
