r"""Ways to cut a solution into steps, by name: the one place where they are chosen.

"exact" is VisualPRM's: at every `"\n\n"`, nothing stripped. All others strip their steps, have no
empty one, and cut no block (`blocks`). "auto" looks at the text (`choose_splitter`).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from vprm_search.errors import ConfigError
from vprm_search.steps.blocks import block_spans
from vprm_search.steps.paragraphs import (
    LABEL,
    NOT_SEEN,
    Tail,
    heading_level,
    is_greeting,
    is_rule,
)
from vprm_search.steps.phrases import opening_mark

STEP_SEPARATOR = "\n\n"

Splitter = Callable[[str], list[str]]

TOKENS_PER_STEP = 64
_BLANK = re.compile(rf"[\s{NOT_SEEN}]*")
_PARAGRAPH_END = "\u2029"  # Unicode's paragraph separator: it needs no empty line
_CJK = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"


def split_at_blank_lines(text: str) -> list[str]:
    r"""Cut `text` at every `"\n\n"`; this is also where a policy stops a step."""
    return text.split(STEP_SEPARATOR)


def split_paragraphs(text: str) -> list[str]:
    """Cut `text` at blank lines, and no block inside.

    A line of white space or of characters that are not seen is blank, whatever ends it (NEL,
    U+2028, …), and U+2029 ends a paragraph by itself. Lists and tables stay whole, a heading
    belongs to the paragraph after it, and rules across the page are left out.
    """
    steps: list[list[str]] = []
    heads, tail = 0, Tail()  # the level of the heading that the last step ends with, and its end
    for paragraph in _paragraphs(text):
        bare = paragraph.strip()
        if is_rule(bare):
            continue
        level = heading_level(bare)
        first, *others = paragraph.splitlines()
        if heads and (not level or level > heads):
            steps[-1].append(bare)
            tail = Tail().after([first.lstrip(), *others])
        elif steps and not level and tail.goes_on(first):
            steps[-1].append(paragraph.rstrip())
            tail = tail.after([first, *others])
        else:
            steps.append([bare])
            tail = Tail().after([first.lstrip(), *others])
        heads = level
    return [STEP_SEPARATOR.join(parts) for parts in steps]


def _paragraphs(text: str) -> Iterator[str]:
    """Yield what stands between blank lines outside of blocks, indentation included."""
    lines = text.splitlines(keepends=True)
    held: list[str] = []
    for line, within in zip(lines, _within(lines), strict=True):
        if not within and held and _BLANK.fullmatch(line):
            yield from _written("".join(held))
            held = []
            continue
        if held or not _BLANK.fullmatch(line):
            held.append(line)
        if line.endswith(_PARAGRAPH_END) and not within:
            yield from _written("".join(held))
            held = []
    yield from _written("".join(held))


def _written(paragraph: str) -> list[str]:
    text = paragraph.strip("\r\n\v\f\x1c\x1d\x1e\x85\u2028\u2029")
    return [text] if text.strip() else []


def _within(lines: Sequence[str]) -> list[bool]:
    """Tell of each line whether it lies in a block, below its first line."""
    found = [False] * len(lines)
    for first, last in block_spans(lines):
        found[first + 1 : last + 1] = [True] * (last - first)
    return found


# --- by the lines that begin a step ---------------------------------------------------------------

_MARKUP = r"[ \t]{0,3}(?:[-*+\u2022>#]{1,6}[ \t]+)?[*_]{0,3}"
_STEP_LABEL = re.compile(
    rf"{_MARKUP}(?:{LABEL}(?=\s*(?:[:.)\]*_(,\u2013\u2014\uff1a\u3001-]|$))|step\s\d{{1,3}}\b)",
    re.IGNORECASE,
)
_NUMBER = re.compile(
    r"[ \t]{0,3}(?:#{1,6}[ \t]+)?[*_]{0,2}"
    r"(?:(\d{1,3})[.)\uff0e\u3001]|[(\uff08](\d{1,3})[)\uff09])[*_]{0,2}(?=\s|[^\W\d])"
)
_CONCLUSION = re.compile(r"[ \t]*#{4}[ \t]*[-+$\\\d]|[ \t$*]*\\boxed")


def split_numbered(text: str) -> list[str]:
    """Cut `text` where a line begins with the number of a step: "Step 2: …", "2. …", "(2) …".

    A line that states the final answer is a step of its own; what stands before the first number
    is one, too, unless it only leads in.
    """
    lines = text.splitlines(keepends=True)
    return _sections(lines, _numbered_lines(lines) or [])


def _numbered_lines(lines: Sequence[str]) -> list[int]:
    """Return the lines that begin with a step's number: labels if there are two, else numbers."""
    outside = [n for n, within in enumerate(_within(lines)) if not within]
    labelled = [n for n in outside if _STEP_LABEL.match(lines[n])]
    if len(labelled) > 1:
        return labelled
    found: list[int] = []
    last: int | None = None
    for n in outside:
        match = _NUMBER.match(lines[n])
        if match is None:
            continue
        number = int(match[1] or match[2])
        if last is None or number == last + 1:
            found.append(n)
            last = number
    return found if len(found) > 1 else labelled or found


def split_headings(text: str) -> list[str]:
    """Cut `text` at headings (`### …`, a line in bold); each belongs to what stands below it."""
    lines = text.splitlines(keepends=True)
    return _sections(lines, _heading_lines(lines))


def _heading_lines(lines: Sequence[str]) -> list[int]:
    """Return the lines that are headings, without those right below another one."""
    found: list[int] = []
    bare = True  # nothing but headings since the last one that counts
    for n, within in enumerate(_within(lines)):
        if _BLANK.fullmatch(lines[n]) or is_rule(lines[n]):
            continue
        heading = not within and heading_level(lines[n])
        if heading and not (found and bare):
            found.append(n)
        bare = bool(heading)
    return found


def _sections(lines: Sequence[str], starts: Sequence[int]) -> list[str]:
    """Return the lines in parts that begin at `starts`, and at a stated answer after the first."""
    if not starts:
        return split_paragraphs("".join(lines))
    answers = [
        n
        for n, within in enumerate(_within(lines))
        if n > starts[0]
        and not within
        and n not in starts
        and (_CONCLUSION.match(lines[n]) or opening_mark(lines[n]))
        and not (n - 1 in starts and heading_level(lines[n - 1]))
    ]
    cuts = sorted({*starts, *answers[-1:]})
    parts = [
        _without_rules("".join(lines[a:b]))
        for a, b in zip([0, *cuts], [*cuts, len(lines)], strict=True)
    ]
    first, *rest = parts
    if first and (first.endswith((":", "\uff1a")) or heading_level(first) or is_greeting(first)):
        rest[0] = f"{first}\n{rest[0]}"
        first = ""
    return [part for part in (first, *rest) if part]


def _without_rules(part: str) -> str:
    paragraphs = part.strip().split("\n")
    while paragraphs and (is_rule(paragraphs[-1]) or not paragraphs[-1].strip()):
        paragraphs.pop()
    return "\n".join(paragraphs).strip()


def split_lines(text: str) -> list[str]:
    """Make every line of `text` a step, blocks, lists and tables excepted."""
    steps: list[str] = []
    for paragraph in split_paragraphs(text):
        lines = paragraph.splitlines(keepends=True)
        held, tail = [lines[0]], Tail().after(lines[:1])
        for line, within in zip(lines[1:], _within(lines)[1:], strict=True):
            begins = not within and line.strip() and not tail.goes_on(line)
            if begins and not (len(held) < 4 and heading_level("".join(held))):
                steps.append("".join(held).strip())
                held, tail = [], Tail()
            held.append(line)
            tail = tail.after([line])
        steps.append("".join(held).strip())
    return steps


# --- by length ------------------------------------------------------------------------------------

_ASIDE = re.compile(
    r"\$\$.{1,1000}?\$\$|\$[^$\n]{1,200}\$|\\\(.{1,1000}?\\\)|\\\[.{1,1000}?\\\]|```.{1,1000}?```"
    r"|`[^`\n]{1,200}`|\\begin\{(\w{1,20}\*?)\}.{1,1000}?\\end\{\1\}",
    re.DOTALL,
)
_SENTENCE_END = re.compile(
    r"(?:[.!?\u2026]+[\"'\u201d\u2019)\]*_]*(?=\s)|[\u3002\uff01\uff1f][\u201d\u2019\u300d)*_]*)\s*"
)
_ABBREVIATION = re.compile(
    r"(?:^|[\s(])(?:e\.g|i\.e|cf|vs|etc|approx|resp|figs?|eqs?|nos?|sec|ch|pp?|dr|mrs?|ms|prof|st|"
    r"jr|sr|ca|al|bzw|z\.b|d\.h)\.$",
    re.IGNORECASE,
)


def split_sentences(text: str) -> list[str]:
    """Cut `text` behind every sentence, and at blank lines; mathematics and code stay whole."""
    return [step for paragraph in split_lines(text) for step in _sentences(paragraph)]


_NOWHERE = (sys.maxsize, sys.maxsize)


def _sentences(paragraph: str) -> Iterator[str]:
    if heading_level(paragraph.partition("\n")[0]) and "\n" in paragraph:
        yield paragraph
        return
    asides = (match.span() for match in _ASIDE.finditer(paragraph))
    aside, start = next(asides, _NOWHERE), 0
    for match in _SENTENCE_END.finditer(paragraph):
        while aside[1] <= match.start():
            aside = next(asides, _NOWHERE)
        if aside[0] < match.start() or match.end() == len(paragraph):
            continue
        before = paragraph[max(start, match.start() - 20) : match.start() + 1]
        lower = paragraph[match.end()].islower()
        short = _ABBREVIATION.search(before) and match.group().startswith(".")
        if lower or short or re.fullmatch(r"[\W_]*(?:\d{1,3}|[a-z])[.)]", before, re.IGNORECASE):
            continue
        yield paragraph[start : match.end()].strip()
        start = match.end()
    yield paragraph[start:].strip()


def split_tokens(text: str, *, size: int = TOKENS_PER_STEP) -> list[str]:
    """Cut `text` at white space into pieces of about `size` tokens, the last one shorter.

    No tokenizer is asked: four letters of a word count as a token, and so does each CJK character.
    """
    steps: list[str] = []
    start = tokens = 0
    for match in re.finditer(rf"[{_CJK}]|[^\s{_CJK}]+", text):
        tokens += -(-len(match.group()) // 4)
        if tokens >= size:
            steps.append(text[start : match.end()].strip())
            start, tokens = match.end(), 0
    return [step for step in (*steps, text[start:].strip()) if step]


# --- by name --------------------------------------------------------------------------------------

SPLITTERS: dict[str, Splitter] = {
    "exact": split_at_blank_lines,
    "blank-lines": split_paragraphs,
    "numbered": split_numbered,
    "headings": split_headings,
    "lines": split_lines,
    "sentences": split_sentences,
    "tokens": split_tokens,
}
"""What cuts a solution into steps, by name; besides these there is "auto", and "tokens:32"."""


def choose_splitter(text: str) -> str:
    """Return the name of the splitter that suits `text`, as "auto" takes it.

    Headings, if there are two; numbered steps; paragraphs, if there are two; lines that are
    sentences; else sentences, if there are three.
    """
    lines = text.splitlines(keepends=True)
    numbered, paragraphs = _numbered_lines(lines), split_paragraphs(text)
    labels = sum(_STEP_LABEL.match(lines[n]) is not None for n in numbered)
    if labels > 1:
        return "numbered"
    if len(_heading_lines(lines)) > 1:
        return "headings"
    begin = sum(_NUMBER.match(paragraph) is not None for paragraph in paragraphs)
    if len(numbered) > 1 and (len(paragraphs) <= 2 or 2 * begin >= len(paragraphs)):
        return "numbered"
    if len(paragraphs) > 1:
        return "blank-lines"
    if len(split_lines(text)) > 1:
        return "lines"
    return "sentences" if len(split_sentences(text)) > 2 else "blank-lines"


def split_auto(text: str) -> list[str]:
    """Cut `text` with the splitter that suits it (`choose_splitter`)."""
    return SPLITTERS[choose_splitter(text)](text)


def splitter_of(split: str | Splitter) -> Splitter:
    """Return a splitter given by name, or itself. Raises `ConfigError` for an unknown name."""
    if not isinstance(split, str):
        return split
    name, colon, size = split.partition(":")
    if name == "tokens" and colon:
        if not size.isdecimal() or int(size) < 1:
            raise ConfigError(f"split {split!r}: write the tokens of a step, as in 'tokens:64'")
        return partial(split_tokens, size=int(size))
    if split == "auto":
        return split_auto
    if split not in SPLITTERS:
        known = ", ".join(["auto", *SPLITTERS])
        raise ConfigError(f"split {split!r} is not known; there are: {known}, tokens:NUMBER")
    return SPLITTERS[split]


def proposed_by(split: str | Splitter) -> Splitter:
    """Return what cuts a step off a reply where steps are proposed one by one.

    The same as for whole solutions, except that "exact" keeps blocks there, as "blank-lines" does:
    a step of half a formula is of no use. Raises `ConfigError` for an unknown name.
    """
    return split_paragraphs if split == "exact" else splitter_of(split)


def ends_at_blank_lines(split: str | Splitter) -> bool:
    """Tell whether a blank line ends a step, so that a model may be stopped there."""
    name = split.partition(":")[0] if isinstance(split, str) else ""
    return name in ("exact", "blank-lines", "lines", "sentences", "tokens")
