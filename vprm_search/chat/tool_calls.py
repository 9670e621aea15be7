"""Tool calls as a step of a solution: which are the same, and the sentence that says one.

A reward model is trained on written reasoning, so it is shown a call as a sentence:

    I call the tool crop with height = 20, picture = "chart.png", width = 30.

Arguments stand in the order of their names and values are JSON; a value longer than 400 characters
is shown by its beginning, its length and a digest. Calls that one message makes together are one
step, a line each, in an order of their own: nothing says which runs first. So two messages have the
same sentences exactly if they make the same calls.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from langchain_core.messages import AIMessage

from vprm_search import ids

_SHOWN_WHOLE, _SHOWN = 400, 300
_PLAIN_NAME = re.compile(r"[A-Za-z_][\w.-]*(?<![.])", re.ASCII)


def render_tool_calls(message: AIMessage) -> str:
    """Return the calls of a message as sentences, one a line; "" if it makes none.

    The text of the message is no part of it. Arguments that the client could not read are shown as
    the model wrote them.
    """
    return "\n".join(sentence for _, sentence in sorted(_calls(message)))


def calls_key(message: AIMessage) -> str:
    """Return a key that is equal for the same calls; "" for a message that makes none.

    The ids of calls, the order of arguments and the order of calls made together do not count; 3.0
    is 3, and neither is "3".
    """
    keys = sorted(key for key, _ in _calls(message))
    return json.dumps(keys) if keys else ""


def same_calls(a: AIMessage, b: AIMessage) -> bool:
    """Return whether two messages make the same calls (`calls_key`); False if they make none."""
    return calls_key(a) == calls_key(b) != ""


def _calls(message: AIMessage) -> list[tuple[str, str]]:
    """Return the key and the sentence of each call."""
    read = [(call["name"], _plain(call["args"])) for call in message.tool_calls]
    found = [(json.dumps(["call", name, args]), _sentence(name, args)) for name, args in read]
    for call in message.invalid_tool_calls:
        name, written = call.get("name") or "", call.get("args") or ""
        sentence = f"I call the tool {_name(name)} with what is no JSON: {_value(written)}."
        found.append((json.dumps(["unread", name, written]), sentence))
    return found


def _plain(value: Any) -> Any:
    """Return a value as JSON holds it, whole numbers as integers, names in their order."""
    if isinstance(value, Mapping):
        return {name: _plain(value[name]) for name in sorted(value, key=str)}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    known = value is None or isinstance(value, str | int | float)
    return value if known else str(value)


def _sentence(name: str, args: dict[str, Any]) -> str:
    if not args:
        return f"I call the tool {_name(name)} without arguments."
    shown = ", ".join(f"{_name(key)} = {_value(value)}" for key, value in args.items())
    return f"I call the tool {_name(name)} with {shown}."


def _name(name: str) -> str:
    return name if _PLAIN_NAME.fullmatch(name) else json.dumps(name)


def _value(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    if len(text) <= _SHOWN_WHOLE:
        return text
    digest = ids.digest(json.dumps(value)).hex()[:16]
    return f"{text[:_SHOWN]}… ({len(text)} characters, sha256 {digest})"
