"""How a problem and the steps so far are put to a chat model, and what is undone in its reply.

A model that can continue a partial answer gets the steps as its own unfinished message. Any other
model is shown the steps in the user turn and asked for exactly the next one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage

from vprm_search.chat.capabilities import Prefill, StopWords
from vprm_search.images.messages import image_message
from vprm_search.types import ProposeRequest

# Small models take up whatever a request says about its own form and write about that ("the blank
# line"), so these say what is wanted of the solution and nothing about how it is read.
DEFAULT_INSTRUCTION = (
    "Solve the problem step by step, one short paragraph for each step. "
    'Finish with "Answer:" and the final answer.'
)
_IF_LAST = 'If that settles the problem, finish with "Answer:" and the final answer.'
FIRST_STEP = f"Give only the first step of the solution, in one or two sentences. {_IF_LAST}"
NEXT_STEP = f"Give exactly one step, the next, in one or two sentences. {_IF_LAST}"
REST = "Go on from the last step above to the final answer."


@dataclass(frozen=True, slots=True)
class PromptStyle:
    """How prompts are written for one model."""

    separator: str
    prefill: Prefill
    prefill_whitespace: bool
    system_prompt: str | None
    instruction: str


def build_messages(request: ProposeRequest, style: PromptStyle) -> list[BaseMessage]:
    """Return the conversation that asks for the continuations of `request`.

    In a conversation (`request.messages`) what is asked for follows the question in its message,
    or makes a message of its own behind tool results; the style's system prompt is for
    conversations without one. A question that stands alone has its images first, in the problem's
    order, and the problem's own system text in place of the style's.
    """
    parts = []
    asked = _asked_steps(request, style) if style.prefill == "none" else []
    # Who is asked for one step is not told to solve the whole problem.
    if style.instruction and not (
        asked and request.until == "step" and style.instruction == DEFAULT_INSTRUCTION
    ):
        parts.append(style.instruction)
    parts += asked
    if request.messages:
        messages = _with_text(list(request.messages), "\n\n".join(parts))
        system = "" if any(isinstance(m, SystemMessage) for m in messages) else style.system_prompt
    else:
        text = "\n\n".join([request.problem.question, *parts])
        messages = [image_message(text, *request.images)]
        system = request.problem.system or style.system_prompt
    if system:
        messages.insert(0, SystemMessage(system))
    if style.prefill != "none" and request.steps:
        prefix = style.separator.join(request.steps) + style.separator
        messages.append(AIMessage(prefix if style.prefill_whitespace else prefix.rstrip()))
    return messages


def _with_text(messages: list[BaseMessage], text: str) -> list[BaseMessage]:
    """Return a conversation that ends with `text`, in the last message where a human wrote it."""
    last = messages[-1]
    if not text:
        return messages
    if not isinstance(last, HumanMessage):
        return [*messages, HumanMessage(text)]
    if isinstance(last.content, str):
        content: Any = f"{last.content}\n\n{text}"
    else:
        content = [*last.content, {"type": "text", "text": text}]
    return [*messages[:-1], last.model_copy(update={"content": content})]


def _asked_steps(request: ProposeRequest, style: PromptStyle) -> list[str]:
    if not request.steps:
        return [FIRST_STEP] if request.until == "step" else []
    so_far = style.separator.join(request.steps)
    ask = NEXT_STEP if request.until == "step" else REST
    return [f"Solution so far:\n\n{so_far}", ask]


def strip_echo(text: str, steps: Sequence[str], separator: str) -> str:
    """Return `text` without a repetition of the path it should continue.

    A model may repeat all steps so far, or the last few of them, before it goes on. The longest
    such beginning is removed, if it is followed by the separator or nothing: a step that merely
    starts like an earlier one stays.
    """
    body = text.lstrip()
    for first in range(len(steps)):
        echo = separator.join(steps[first:]).strip()
        if not echo or not body.startswith(echo):
            continue
        rest = body[len(echo) :]
        if not rest.strip() or rest.startswith(separator):
            return rest
    return text


def stop_strings(separator: str, accepted: StopWords) -> tuple[str, ...]:
    """Return the stop strings to send for one step, as far as the model accepts them."""
    if accepted == "none" or (accepted == "non_blank" and not separator.strip()):
        return ()
    return (separator,)
