"""The one step in a reply that should hold one, and may hold more or less.

Chat models greet, put headings above their steps, leave blank lines inside formulas, and go on when
they were asked to stop.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from vprm_search.steps import Splitter
from vprm_search.steps.blocks import ends_inside
from vprm_search.steps.paragraphs import heading_level, is_greeting, without_greeting

_MARKED = re.compile(r"<step(?:\s[^<>]{0,40})?>(.*?)(?:</step>|\Z)", re.DOTALL | re.IGNORECASE)
_FENCED = re.compile(r"```(?:json)?\s*(\{.*\})\s*```", re.DOTALL)
_STEP_FIELDS = ("step", "next_step", "first_step", "reasoning_step", "steps")
_ANSWER_FIELDS = ("answer", "final_answer")


@dataclass(frozen=True, slots=True)
class FirstStep:
    """The first step of a reply, and whether anything follows it.

    `text` is empty where the reply only greets. `is_ready` is False where the reply stops before
    its step is written: behind a greeting, a heading or a colon, or within a formula.
    """

    text: str
    followed: bool
    is_ready: bool


def first_step(body: str, split: Splitter, *, asked: bool) -> FirstStep:
    """Return the first step of a reply.

    A step that the model marked as one (`<step>…</step>`, or the field "step" of a JSON object) is
    taken as it is. Else it is the first part that is a step: no greeting, with the heading above it
    and with the formula it leads in by a colon.

    Args:
        body: what the model wrote, without its thinking.
        split: what cuts a text into steps.
        asked: whether the model was asked for one step, so that what it says around it is no part
            of the solution.
    """
    if asked and (marked := _marked(body)):
        return FirstStep(marked, followed=False, is_ready=True)
    parts = split(body)
    while parts and is_greeting(parts[0]):
        parts = parts[1:]
    if asked and parts:
        parts = [without_greeting(parts[0]), *parts[1:]]
    parts = [part for part in parts if part.strip()]
    if not parts:
        return FirstStep("", followed=False, is_ready=False)
    text = parts.pop(0).strip()
    while parts and text.endswith((":", "\uff1a")):
        text = f"{text}\n\n{parts.pop(0).strip()}"
    waits = text.endswith((":", "\uff1a")) or bool(heading_level(text)) or ends_inside(text)
    return FirstStep(text, followed=bool(parts), is_ready=bool(parts) or not waits)


def _marked(body: str) -> str:
    """Return the step that a reply marks as one, "" if it marks none."""
    if (tagged := _MARKED.search(body)) is not None and tagged[1].strip():
        return tagged[1].strip()
    text = body.strip()
    fenced = _FENCED.search(text)
    if fenced is None and not text.startswith("{"):
        return ""
    try:
        fields = json.loads(fenced[1] if fenced else text)
    except (ValueError, RecursionError):
        return ""
    step = next((fields[name] for name in _STEP_FIELDS if fields.get(name)), "")
    step = step[0] if isinstance(step, list) else step
    answer = next((fields[name] for name in _ANSWER_FIELDS if fields.get(name) is not None), "")
    if not isinstance(step, str) or not isinstance(answer, str | int | float):
        return ""
    said = f"Answer: {answer}" if str(answer).strip() and str(answer) not in step else ""
    return "\n".join(line for line in (step.strip(), said) if line)
