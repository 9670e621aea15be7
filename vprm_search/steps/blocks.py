r"""What is not cut inside: code fences, display maths, LaTeX environments, HTML tables and lists.

A block that is opened and never closed is none, so that a forgotten `\]` does not swallow the rest
of a solution; `ends_inside` tells of a text that stops within one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_FENCE = re.compile(r"[ \t>]*(?:(?:[-*+]|\d{1,3}[.)])[ \t]+)?(`{3,}|~{3,})(.*)")
_INLINE_CODE = re.compile(r"(?<!`)(`{1,2})(?!`)[^`\n]+\1(?!`)")
_MARK = re.compile(
    r"""\\\\ | \\\$                                         # a line break, a dollar: no marks
    | (?P<open>\\\[) | (?P<close>\\\]) | (?P<dollars>\$\$)
    | \\(?P<what>begin|end)\s?\{(?P<name>[A-Za-z]{1,20}\*?)\}
    | <(?P<slash>/?)(?P<tag>table|pre|details|ul|ol|math)\b[^<>]{0,200}>""",
    re.VERBOSE | re.IGNORECASE,
)

_DEEPEST = 20  # blocks inside blocks

Span = tuple[int, int]
"""The first and the last line of a block."""


def block_spans(lines: Sequence[str]) -> list[Span]:
    """Return the closed blocks of more than one line, in the order in which they close."""
    return _scan(lines)[0]


def ends_inside(text: str) -> bool:
    """Tell whether `text` stops within a block: one that was opened and not closed."""
    return _scan(text.splitlines())[1]


def _scan(lines: Sequence[str]) -> tuple[list[Span], bool]:
    """Return the closed blocks, and whether one is open at the end."""
    spans, fenced = _fences(lines)
    code = {line for first, last in spans for line in range(first, last + 1)}
    opened: list[tuple[str, int]] = []
    for number, line in enumerate(lines):
        if number in code or number == fenced:
            continue
        plain = _INLINE_CODE.sub("", line) if "`" in line else line
        for match in _MARK.finditer(plain):
            if (start := _mark(match, opened, number)) is not None and start < number:
                spans.append((start, number))
    return spans, fenced is not None or bool(opened)


def _fences(lines: Sequence[str]) -> tuple[list[Span], int | None]:
    """Return the code fences, and the line of one that is still open."""
    spans: list[Span] = []
    mark, start = "", 0
    for number, line in enumerate(lines):
        match = _FENCE.match(line) if "```" in line or "~~~" in line else None
        if match is None or "`" in match[2]:
            continue
        if mark and match[1].startswith(mark) and not match[2].strip():
            spans.append((start, number))
            mark = ""
        elif not mark or match[2].strip():  # a new beginning: the one before was never closed
            mark, start = match[1], number
    return spans, start if mark else None


def _mark(match: re.Match[str], opened: list[tuple[str, int]], number: int) -> int | None:
    """Open or close a block; return where the one that is closed began."""
    kind, closes = _kind(match)
    if not kind:
        return None
    names = [name for name, _ in opened]
    if kind == "$$":
        closes = kind in names
    place = len(names) - 1 - names[::-1].index(kind) if kind in names else None
    if closes:
        if place is None:
            return None
        start = opened[place][1]
        del opened[place:]
        return start
    if kind == "[" and place is not None:  # it does not nest: the one before was never closed
        del opened[place:]
    opened.append((kind, number))
    del opened[:-_DEEPEST]
    return None


def _kind(match: re.Match[str]) -> tuple[str, bool]:
    if match["open"] or match["close"]:
        return "[", bool(match["close"])
    if match["dollars"]:
        return "$$", False
    if match["name"]:
        name = match["name"].lower()
        return ("" if name == "document" else name), match["what"].lower() == "end"
    if match["tag"]:
        return f"<{match['tag'].lower()}", bool(match["slash"])
    return "", False
