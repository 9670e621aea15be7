"""Thinking that a model writes before its answer, put aside."""

from __future__ import annotations

import re

_MARK = re.compile(
    r"<(/?)(?:think|thinking|thought|reasoning|reflection|scratchpad)>|\[(/?)THINK\]|◁(/?)think▷"
)


def put_thinking_aside(text: str) -> str:
    """Return `text` without its thinking; a text that has none is returned as it is.

    Thinking that is not closed goes to the end of the text, and one that was not opened (some chat
    templates open it in the prompt) from its beginning.
    """
    kept: list[str] = []
    begin: int | None = 0  # of what is no thinking; None within thinking
    for mark in _MARK.finditer(text):
        closes = any(mark.groups())
        if closes and begin is not None:
            kept = []
        elif not closes and begin is not None:
            kept.append(text[begin : mark.start()])
        begin = mark.end() if closes else None
    if begin == 0:
        return text
    return "".join([*kept, "" if begin is None else text[begin:]]).strip()
