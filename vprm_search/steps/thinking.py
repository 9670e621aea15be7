"""Thinking that a model writes before its answer, put aside."""

from __future__ import annotations

import re

_NAMES = r"think|thinking|thought|reasoning|reflection|scratchpad"
_CLOSED = re.compile(rf"<({_NAMES})>.*?</\1>|\[THINK\].*?\[/THINK\]|◁think▷.*?◁/think▷", re.DOTALL)
_ENDED = re.compile(rf".*(?:</(?:{_NAMES})>|\[/THINK\]|◁/think▷)", re.DOTALL)
_BEGUN = re.compile(rf"(?:<(?:{_NAMES})>|\[THINK\]|◁think▷).*", re.DOTALL)


def put_thinking_aside(text: str) -> str:
    """Return `text` without its thinking; a text that has none is returned as it is."""
    if ">" not in text and "[" not in text and "▷" not in text:
        return text
    rest = _BEGUN.sub("", _ENDED.sub("", _CLOSED.sub("", text)))
    return text if rest == text else rest.strip()
