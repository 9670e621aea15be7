"""Cut a solution into steps, merge steps into groups, and make text safe to hash and to store.

A step is one paragraph: VisualPRM cuts a response at every `"\\n\\n"` and, when there are more than
`max_steps` of them, merges consecutive ones into equally large groups (arXiv 2503.10291, its public
pipeline). Both rules are kept here, and one flag brings back the original's empty steps.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from vprm_search.errors import ConfigError, InputError

STEP_SEPARATOR = "\n\n"
REFERENCE_MAX_STEPS = 12
"""Steps a whole solution has at most when VisualPRM's own code selects among solutions."""

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

Splitter = Callable[[str], list[str]]

_SURROGATE_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_WORD_START = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|_+")
_DEEPEST = 8  # objects inside objects; what lies deeper is shown as JSON


class StepLimits(BaseModel):
    """What a solution may measure before it is refused; None switches a limit off."""

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
        """Raise `InputError` if there are too many steps or one of them is too long."""
        if self.max_steps is not None and len(steps) > self.max_steps:
            raise InputError(
                f"the solution has {len(steps)} steps, the limit is {self.max_steps}; "
                "merge them (merge_steps) or raise max_steps"
            )
        if self.max_step_chars is None:
            return
        for number, step in enumerate(steps, start=1):
            if len(step) > self.max_step_chars:
                raise InputError(
                    f"step {number} has {len(step)} characters, the limit is "
                    f"{self.max_step_chars}; cut it at blank lines or raise max_step_chars"
                )


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


def split_at_blank_lines(text: str) -> list[str]:
    r"""Cut `text` at every `"\n\n"`; this is also where a policy stops a step."""
    return text.split(STEP_SEPARATOR)


def split_steps(
    text: str,
    *,
    max_steps: int | None = None,
    splitter: Splitter = split_at_blank_lines,
    keep_empty: bool = False,
    limits: StepLimits = DEFAULT_LIMITS,
) -> list[str]:
    r"""Normalise a solution and return its steps, at most `max_steps` if that is given.

    Steps are stripped and empty ones dropped. With `keep_empty=True` they stay exactly as cut,
    as in VisualPRM's own code, where a trailing `"\n\n"` gives one more, empty, scored step.

    Raises:
        InputError: the text, a step (after merging) or the number of steps exceeds `limits`.
        ConfigError: `max_steps` is below 1.
    """
    limits.check_text(text, "the solution")
    steps = splitter(normalise_text(text))
    if not keep_empty:
        steps = [stripped for step in steps if (stripped := step.strip())]
    if max_steps is not None:
        steps = merge_steps(steps, max_steps)
    limits.check_steps(steps)
    return steps


def split_solution(
    text: str,
    *,
    max_steps: int | None = REFERENCE_MAX_STEPS,
    splitter: Splitter = split_at_blank_lines,
    limits: StepLimits = DEFAULT_LIMITS,
) -> list[str]:
    r"""Return the steps of a whole solution as VisualPRM's own code cuts them, to score it.

    The text is cut at every `"\n\n"` and merged (`merge_steps`); nothing is stripped and empty
    steps stay, so a trailing `"\n\n"` gives one more, empty, step that is scored.

    Args:
        text: the solution, used as it is; `normalise_text` comes before if it will be stored.
        max_steps: the most steps to merge into; None merges nothing.
        splitter: what cuts the text; by default every blank line does.
        limits: what the text and its steps may measure.

    Raises:
        InputError: the text, a step (after merging) or the number of steps exceeds `limits`.
        ConfigError: `max_steps` is below 1.
    """
    limits.check_text(text, "the solution")
    steps = splitter(text)
    if max_steps is not None:
        steps = merge_steps(steps, max_steps)
    limits.check_steps(steps)
    return steps


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
