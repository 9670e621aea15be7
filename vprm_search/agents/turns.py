"""A turn of an agent as a step that a reward model can judge.

A turn is what tools answered since the model's last message, and the model's next message: what it
says and which tools it calls. A reward model is trained on written reasoning, so a turn is written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from langchain_core.messages import AIMessage, AnyMessage, BaseMessage, HumanMessage, ToolMessage

from vprm_search.chat.tool_calls import render_tool_calls
from vprm_search.graph.questions import FEEDBACK_NAME, asked_message, message_text
from vprm_search.images.messages import has_image, unread_kinds
from vprm_search.steps import normalise_text
from vprm_search.steps.thinking import put_thinking_aside

StepOf = Callable[[Sequence[BaseMessage]], str]
"""Writes the last message of a conversation, an `AIMessage`, as a step; "" if there is nothing."""

_MOST_OF_A_RESULT = 400


def turn_as_step(messages: Sequence[BaseMessage]) -> str:
    """Return the last turn of a conversation as text: what tools answered, what is said and called.

    For instance

        The tool calculator returned: 7
        So the red and the blue bar make 7.
        I call the tool crop with height = 20, width = 30.

    Of a result 400 characters are shown; pictures are "(picture)", and a scorer is shown them
    beside the question's. What is neither, a file or a recording, is named: "(file, not shown)".
    Thinking is left out.

    Args:
        messages: the conversation; its last message is the model's.
    """
    message = messages[-1]
    said = put_thinking_aside(normalise_text(message_text(message))).strip()
    calls = render_tool_calls(message) if isinstance(message, AIMessage) else ""
    written = [_result(m) for m in results_before(messages)] if said or calls else []
    return "\n".join(part for part in (*written, said, calls) if part)


def results_as_step(messages: Sequence[BaseMessage]) -> str:
    """Return the results of tools with which a conversation ends as text, "" if there are none."""
    return "\n".join(map(_result, results_before([*messages, AIMessage("")])))


def results_before(messages: Sequence[BaseMessage]) -> list[ToolMessage]:
    """Return what tools answered right before the last message of a conversation, in order."""
    found: list[ToolMessage] = []
    for message in reversed(messages[:-1]):
        if isinstance(message, AIMessage):
            break
        if isinstance(message, ToolMessage):
            found.append(message)
    return found[::-1]


def trajectory(messages: Sequence[BaseMessage]) -> tuple[int, list[int]]:
    """Return where the last question stands, and where the model's messages after it do.

    Raises `InputError` if there is no question.
    """
    asked = asked_message(messages)
    start = next(place for place, message in enumerate(messages) if message is asked)
    places = range(start + 1, len(messages))
    return start, [place for place in places if isinstance(messages[place], AIMessage)]


def steps_so_far(messages: Sequence[BaseMessage], step_of: StepOf) -> list[str]:
    """Return the steps of a conversation since its last question, empty ones left out.

    Raises `InputError` if there is no question.
    """
    _, places = trajectory(messages)
    written = (step_of(messages[: place + 1]) for place in places)
    return [step for step in written if step.strip()]


def feedback_turn(
    message: AIMessage, answers: Sequence[BaseMessage], text: str
) -> list[AnyMessage]:
    """Return a rejected message with feedback on it, as a model may be shown them.

    Each of its calls is answered by an error, for servers refuse a call without an answer.

    Args:
        message: what the model said.
        answers: what came with it already (a `ToolMessage` of structured output).
        text: the feedback.
    """
    known = {m.tool_call_id for m in answers if isinstance(m, ToolMessage)}
    refused = [
        ToolMessage(
            "Not run: a verifier rejected this call.",
            tool_call_id=call["id"] or "",
            name=call["name"],
            status="error",
        )
        for call in (*message.tool_calls, *message.invalid_tool_calls)
        if call["id"] not in known
    ]
    known_answers: list[Any] = list(answers)
    return [message, *known_answers, *refused, HumanMessage(text, name=FEEDBACK_NAME)]


def _result(message: ToolMessage) -> str:
    text = " ".join(normalise_text(message_text(message)).split())
    if len(text) > _MOST_OF_A_RESULT:
        text = f"{text[:_MOST_OF_A_RESULT]}… ({len(text)} characters)"
    shown = [part for part in (text, "(picture)" if has_image(message) else "") if part]
    shown += [f"({kind}, not shown)" for kind in dict.fromkeys(unread_kinds(message))]
    verb = "failed" if message.status == "error" else "returned"
    return f"The tool {message.name or 'called'} {verb}: {' '.join(shown) or 'nothing'}"
