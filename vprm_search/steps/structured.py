"""The steps of a structured answer: what its fields say, and not how JSON spells it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from vprm_search.steps.splitters import Splitter, split_at_blank_lines

_FENCED = re.compile(r"```(?:json)?\s*(\{.*\})\s*```", re.DOTALL)
_WORD_START = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|_+")
_DEEPEST = 8  # objects inside objects; what lies deeper is shown as JSON


def json_object(text: str) -> dict[str, Any] | None:
    """Return the JSON object that a text is, perhaps in a fence, or None."""
    text = text.strip()
    fenced = _FENCED.fullmatch(text)
    if fenced is None and not text.startswith("{"):
        return None
    try:
        value = json.loads(fenced[1] if fenced else text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def structured_steps(
    fields: Mapping[str, Any], *, splitter: Splitter = split_at_blank_lines
) -> list[str]:
    """Return the steps of a structured answer, in the order in which its fields were written.

    A reward model is trained on written reasoning, so it is shown what a field says and not how
    JSON spells it. Prose (whole sentences, or more than one line) is cut into steps as a
    solution is. A short text or a number becomes one step with its name, "final_answer": 3 the
    step "Final answer: 3". Of a list, every text and every object is a step; numbers stand
    together. Fields of an inner object carry its name, too. Empty values say nothing.

    Args:
        fields: the answer, as parsed JSON.
        splitter: what cuts prose; by default every blank line does.
    """
    return [step for name, value in fields.items() for step in _spoken(name, value, splitter, 1)]


def _spoken(name: str, value: Any, splitter: Splitter, depth: int) -> list[str]:
    """Return what one field says, as steps."""
    if value is None or value in ("", [], {}):
        return []
    if isinstance(value, str) and _is_prose(value.strip()):
        return [stripped for step in splitter(value) if (stripped := step.strip())]
    if isinstance(value, Mapping) and depth < _DEEPEST:
        inner = ((f"{name} {key}", item) for key, item in value.items())
        return [step for key, item in inner for step in _spoken(key, item, splitter, depth + 1)]
    if isinstance(value, list) and depth < _DEEPEST:
        if not any(isinstance(item, str | Mapping | list) for item in value):
            return [f"{_label(name)}: {', '.join(map(_shown, value))}"]
        return [step for item in value for step in _item(name, item, splitter, depth + 1)]
    return [f"{_label(name)}: {_shown(value)}"]


def _item(name: str, value: Any, splitter: Splitter, depth: int) -> list[str]:
    """Return what one item of a list says: an object is one step, its fields are the lines."""
    if not isinstance(value, Mapping):
        return _spoken(name, value, splitter, depth)
    lines = [
        line for key, item in value.items() for line in _spoken(key, item, splitter, depth + 1)
    ]
    return ["\n".join(lines)] if lines else []


def _is_prose(text: str) -> bool:
    """Tell a sentence from a value: it has a line break, an introduction, or a full stop."""
    sentence = text.endswith((".", "!", "?", "…")) and len(text.split()) > 2
    return sentence or text.endswith(("。", "！", "？")) or "\n" in text or ": " in text


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return value.strip()
    return json.dumps(value, ensure_ascii=False, default=str)


def _label(name: str) -> str:
    """Return a field's name as words: "final_answer" and "finalAnswer" as "Final answer"."""
    words = _WORD_START.sub(" ", str(name)).split()
    text = " ".join(word if word.isupper() else word.lower() for word in words)
    return text[:1].upper() + text[1:]
