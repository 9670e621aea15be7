"""Text of users and models made safe to show: no control characters, nothing that turns a line."""

from __future__ import annotations

import unicodedata

_KEPT_FORMAT = frozenset("\u200c\u200d")  # joiners: Persian, Indic scripts and emoji need them
_HIDDEN = frozenset({"Cc", "Cf", "Cs"})


def printable(text: str, *, lines: bool = False) -> str:
    """Return `text` without control, format (bidirectional overrides) and surrogate characters.

    Line breaks, tabs and runs of spaces become one space; with `lines` line breaks are kept.
    """
    if lines:
        return "\n".join(printable(line) for line in text.splitlines())
    spaced = "".join(_shown(character) for character in text)
    return " ".join(spaced.split())


def shortened(text: str, limit: int) -> str:
    """Return `text` on one line, cut to `limit` characters with an ellipsis."""
    line = printable(text)
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"


def _shown(character: str) -> str:
    if character.isspace():
        return " "
    if character in _KEPT_FORMAT or unicodedata.category(character) not in _HIDDEN:
        return character
    return ""
