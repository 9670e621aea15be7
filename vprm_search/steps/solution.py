"""The steps of a whole solution: cut, merged, bounded; and text made fit to be stored."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field

from vprm_search.errors import ConfigError, InputError
from vprm_search.steps.splitters import (
    STEP_SEPARATOR,
    Splitter,
    split_at_blank_lines,
    split_paragraphs,
    splitter_of,
)
from vprm_search.steps.thinking import put_thinking_aside

REFERENCE_MAX_STEPS = 12
"""Steps a whole solution has at most when VisualPRM's own code selects among solutions."""

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

_SURROGATE_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


_ENDS = ("\n", "。", "！", "？")
_SPACE = re.compile(r"\s")


class StepLimits(BaseModel):
    """What a solution may measure; None switches a limit off.

    A whole solution is not refused for its steps: more than `max_steps` are merged, and one of
    more than `max_step_chars` is cut at its lines. Refused is a text of more than `max_text_bytes`,
    a step without white space to cut at, and a step proposed alone above `max_step_chars`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_step_chars: int | None = Field(default=8_000, ge=1)
    max_steps: int | None = Field(default=128, ge=1)
    max_text_bytes: int | None = Field(default=200_000, ge=1)

    def check_text(self, text: str, what: str = "the text") -> None:
        """Raise `InputError` if `text` is longer than `max_text_bytes` in UTF-8."""
        limit = self.max_text_bytes
        if limit is None:
            return
        # A character takes at least one byte, so a huge text is refused without encoding it.
        size = len(text) if len(text) > limit else len(text.encode("utf-8", "surrogatepass"))
        if size > limit:
            raise InputError(
                f"{what} has at least {size} bytes, the limit is {limit}; "
                "shorten it or raise max_text_bytes"
            )

    def check_steps(self, steps: Sequence[str]) -> None:
        """Raise `InputError` if one of the steps is longer than `max_step_chars`."""
        if self.max_step_chars is None:
            return
        for number, step in enumerate(steps, start=1):
            if len(step) > self.max_step_chars:
                raise InputError(
                    f"step {number} has {len(step)} characters, the limit is "
                    f"{self.max_step_chars}; cut it at blank lines or raise max_step_chars"
                )

    def bounded(self, steps: Sequence[str]) -> list[str]:
        """Return the steps; one longer than `max_step_chars` in pieces.

        It is cut at the last line end before the limit, else at the last white space. Raises
        `InputError` where there is neither.
        """
        found: list[str] = []
        for step in steps:
            rest = step
            while self.max_step_chars is not None and len(rest) > self.max_step_chars:
                place = max(rest.rfind(end, 1, self.max_step_chars) for end in _ENDS) + 1 or max(
                    (m.end() for m in _SPACE.finditer(rest, 1, self.max_step_chars)), default=0
                )
                if not place:
                    break
                found.append(rest[:place].rstrip())
                rest = rest[place:].lstrip()
            found.append(rest)
        self.check_steps(found)
        return found


DEFAULT_LIMITS = StepLimits()
NO_LIMITS = StepLimits(max_step_chars=None, max_steps=None, max_text_bytes=None)


def normalise_text(text: str) -> str:
    r"""Return `text` in the form in which it is hashed, stored and shown.

    Lone surrogates and NUL become U+FFFD, because a checkpoint or a database would change them
    silently and content ids would no longer match; a surrogate *pair* becomes the character it
    stands for, as JSON would read it. `\r\n` and `\r` become `\n`. Idempotent; the result always
    encodes to UTF-8 and survives a JSON round trip unchanged.

    Unicode composition (NFC) is not applied: the model that wrote a step is asked to continue
    exactly what it wrote, and the scorer must score those tokens, not equivalent ones.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if "\0" not in text and text.isascii():
        return text
    text = _SURROGATE_PAIR.sub(_join_pair, text)
    return _UNSTORABLE.sub(REPLACEMENT, text)


def split_steps(
    text: str,
    *,
    max_steps: int | None = None,
    splitter: str | Splitter = split_paragraphs,
    keep_empty: bool = False,
    limits: StepLimits = DEFAULT_LIMITS,
) -> list[str]:
    r"""Normalise a solution and return its steps, at most `max_steps` if that is given.

    Thinking (`<think>…</think>`) is put aside, steps are stripped and empty ones dropped; by
    default the text is cut at blank lines and no block inside. With `keep_empty=True` it is cut at
    every `"\n\n"` and nothing is dropped, as in VisualPRM's own code, where a trailing `"\n\n"`
    gives one more, empty, scored step. More steps than `limits` allows are merged.

    Raises:
        InputError: the text is too long, or a part of it without white space is (`StepLimits`).
        ConfigError: `max_steps` is below 1, or no splitter has this name.
    """
    text = normalise_text(text)
    if keep_empty:
        return split_solution(text, max_steps=max_steps, limits=limits)
    limits.check_text(text, "the solution")
    parts = splitter_of(splitter)(put_thinking_aside(text))
    steps = limits.bounded([stripped for part in parts if (stripped := part.strip())])
    return _merged(steps, max_steps, limits)


def split_solution(
    text: str,
    *,
    max_steps: int | None = REFERENCE_MAX_STEPS,
    splitter: str | Splitter = split_at_blank_lines,
    limits: StepLimits = DEFAULT_LIMITS,
) -> list[str]:
    r"""Return the steps of a whole solution as VisualPRM's own code cuts them, to score it.

    The text is cut at every `"\n\n"` and merged (`merge_steps`); nothing is stripped and empty
    steps stay, so a trailing `"\n\n"` gives one more, empty, step that is scored. A long solution
    is merged, whatever its steps then measure.

    Args:
        text: the solution, used as it is; `normalise_text` comes before if it will be stored.
        max_steps: the most steps to merge into; None merges what is above `limits` only.
        splitter: what cuts the text, or its name (`SPLITTERS`, "auto"). Default: "exact".
        limits: what the text may measure, and how many steps it may have.

    Raises:
        InputError: the text is too long, or a part of it without white space is (`StepLimits`).
        ConfigError: `max_steps` is below 1, or no splitter has this name.
    """
    limits.check_text(text, "the solution")
    steps = limits.bounded(splitter_of(splitter)(text))
    return _merged(steps, max_steps, limits)


def _merged(steps: list[str], max_steps: int | None, limits: StepLimits) -> list[str]:
    bounds = [bound for bound in (max_steps, limits.max_steps) if bound is not None]
    return merge_steps(steps, min(bounds)) if bounds else steps


def merge_steps(steps: Sequence[str], max_steps: int) -> list[str]:
    """Merge consecutive steps into at most `max_steps` groups of equal size (the last may be less).

    The group size is ceil(len / max_steps), as in VisualPRM, so `max_steps` is an upper bound and
    not a target: with 12, 12 steps stay 12, 13 become 7 and 25 become 9. Raises `ConfigError` if
    `max_steps` is below 1.
    """
    if max_steps < 1:
        raise ConfigError(f"max_steps is {max_steps}; it must be at least 1")
    size = max(1, -(-len(steps) // max_steps))
    return [join_steps(steps[start : start + size]) for start in range(0, len(steps), size)]


def join_steps(steps: Sequence[str]) -> str:
    """Return the steps as one text, a blank line between them."""
    return STEP_SEPARATOR.join(steps)


def _join_pair(match: re.Match[str]) -> str:
    return match.group().encode("utf-16-le", "surrogatepass").decode("utf-16-le")
