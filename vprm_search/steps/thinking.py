"""Put a model's thinking aside, so that only what it says is read, split and scored.

Reasoning models think in their reply, between marks of their own; some templates write the opening
mark into the prompt, so that only the closing one is in the reply, and a reply that ran out of
tokens has only the opening one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_NAMES = r"(?:think|thinking|thoughts?|seed:think|reasoning|reflection|scratchpad|inner_monologue)"
_OPENING = (
    rf"<{_NAMES}>",  # DeepSeek-R1, Qwen3, GLM, Claude in prose, Seed
    r"\[THINK\]",  # Magistral
    r"\u25c1think\u25b7",  # Kimi
    r"<\|begin_of_thought\|>",  # QwQ's and Sky-T1's long answers
    r"<\|START_THINKING\|>",  # Command
    r"<\|channel\|>(?:analysis|commentary)[^<>\n]{0,80}<\|message\|>",  # gpt-oss
    r"<\|channel>thought\n?|<unused94>thought\n?",  # Gemma
)
_CLOSING = (
    rf"</{_NAMES}>",
    r"\[/THINK\]",
    r"\u25c1/think\u25b7",
    r"<\|end_of_thought\|>",
    r"<\|END_THINKING\|>",
    r"(?:<\|end\|>)?(?:<\|start\|>assistant)?<\|channel\|>final[^<>\n]{0,80}<\|message\|>",
    r"<channel\|>|<unused95>",
)
_MARK = re.compile(
    rf"(?<!`)(?:(?P<open>{'|'.join(_OPENING)})|(?P<close>{'|'.join(_CLOSING)}))(?!`)",
    re.IGNORECASE,
)


def thinking_spans(text: str) -> list[tuple[int, int]]:
    """Return where the thinking stands, its marks included, in order and without overlap.

    What was opened and not closed goes to the end of the text. A closing mark alone closes a
    thought that began with the text; alone at the end, behind a thought already closed, it is
    just a stray mark.
    """
    if "<" not in text and "[" not in text and "\u25c1" not in text:
        return []  # no mark begins with anything else
    spans: list[tuple[int, int]] = []
    opened: int | None = None
    end = len(text.rstrip())
    for mark in _MARK.finditer(text):
        if mark["open"]:
            opened = mark.start() if opened is None else opened
        elif opened is not None:
            spans.append((opened, mark.end()))
            opened = None
        elif spans and mark.end() >= end:
            spans.append(mark.span())
        else:
            spans = [(0, mark.end())]
    if opened is not None:
        spans.append((opened, len(text)))
    return spans


def put_thinking_aside(text: str) -> str:
    """Return what `text` says without what it thinks, "" if it only thinks.

    A text without marks of thinking is returned as it is. Otherwise the parts between the
    thoughts are stripped and stand as paragraphs of their own. A mark in backticks is a word.
    """
    spans = thinking_spans(text)
    if not spans:
        return text
    parts = (text[start:end].strip() for start, end in _between(spans, len(text)))
    return "\n\n".join(part for part in parts if part)


def _between(spans: list[tuple[int, int]], length: int) -> Iterator[tuple[int, int]]:
    """Return the gaps between spans, before the first and behind the last."""
    ends = [0, *(end for _, end in spans)]
    starts = [*(start for start, _ in spans), length]
    return zip(ends, starts, strict=True)
