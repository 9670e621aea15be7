"""What a model's context window leaves for an answer: read from a refusal, kept for later calls.

A server refuses a call whose prompt and longest answer do not fit into its context together. It
says so in words of its own; what the common ones write is read here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_LEAST = 16  # tokens: a shorter answer is none
_CHARS_PER_TOKEN = 3
_OVERHEAD = 64  # tokens of the chat template, until a refusal has told
_NUMBER = r"\(?(\d+)"

# Numbers are read from a text without quotes and thousands separators, one pattern after the other.
_WINDOW = (
    r"context limit: \d+ \+ \d+ > (\d+)",  # Anthropic
    r"(?:context|model)[ -](?:length|window|size|limit)[^\d.,;{}]{0,40}?"
    + _NUMBER,  # OpenAI, vLLM, SGLang
    r"(\d+) (?:tokens? )?maximum context length",  # Mistral
    r"n_ctx\W+(\d+)",  # llama.cpp
    r"max_(?:model_len|total_tokens)\W+(\d+)",  # vLLM from 0.20 on
    r"\+ max_new_tokens must be <= (\d+)",  # TGI
    r"maximum prompt length is (\d+)",  # xAI
    r"kv_capacity\W+(\d+)",
)
_PROMPT = (
    r"context limit: (\d+) \+ \d+ >",
    r"(\d+) (?:tokens? )?(?:in|from|of) (?:the|your) (?:input |prompt )?(?:messages?|prompt|input)",
    r"(?:has|contains|resulted in|given:) (?:at least )?(\d+) (?:inputs? )?tokens",
    r"(?:input|prompt|request)(?: length| token count)? ?\((?:length )?(\d+)",  # SGLang, llama.cpp
    r"input length (\d+)",
    r"prompt is too long: (\d+)",
    r"(?:n_prompt|input)_tokens\W+(\d+)",
)
_ANSWER = (
    r"at most (\d+) (?:completion|output) tokens",  # OpenAI
    r"max_\w*tokens: \d+ > (\d+)",  # Anthropic
    r"max_\w*tokens[^.]{0,60}\[ ?\d+ ?, ?(\d+) ?\]",  # DeepSeek, Qwen
    r"max_\w*tokens[^.]{0,40}less than or equal to (\d+)",  # Groq
    r"(?<!\+ )max_\w*tokens must be <= (\d+)",  # TGI
    r"max_?(?:output|completion)_?tokens.{0,120}to (\d+) \(exclusive\)",  # Gemini
)
_ABOUT_LENGTH = re.compile(
    r"max_?(?:new_?|completion_?|output_?)?tokens|context (?:length|window|size|limit)"
    r"|(?:too many|fewer|number of) .{0,20}tokens",
    re.IGNORECASE,
)
_ABOUT_SUPPORT = re.compile(r"unsupported|not supported|unrecogni[sz]ed|unknown|unexpected", re.I)


@dataclass(frozen=True, slots=True)
class Overrun:
    """What a refusal says, in tokens: the window, the prompt's length, the longest answer."""

    window: int | None = None
    prompt: int | None = None
    answer: int | None = None


def read_overrun(text: str) -> Overrun | None:
    """Return what a refusal says about lengths, or None if it is about something else."""
    plain = re.sub(r"[`'\"]", "", re.sub(r"(?<=\d),(?=\d{3}\b)", "", text))
    if not _ABOUT_LENGTH.search(plain) and _first(_WINDOW, plain) is None:
        return None
    found = Overrun(_first(_WINDOW, plain), _first(_PROMPT, plain), _first(_ANSWER, plain))
    if found.window is None and found.answer is None and _ABOUT_SUPPORT.search(plain):
        return None
    return found


class ContextWindow:
    """How many tokens to ask for, by what a server has said of its context window.

    Args:
        tokens: prompt and answer together, if that is known.
    """

    def __init__(self, tokens: int | None = None) -> None:
        self.tokens = tokens
        self._answer: int | None = None
        self._overhead: dict[int, int] = {}  # by the number of images: tokens beyond the text's

    def room(self, wanted: int, chars: int, images: int) -> int:
        """Return how many of the `wanted` tokens to ask for.

        Args:
            wanted: the most tokens the answer should have.
            chars: characters of the prompt; what they are in tokens is estimated, and corrected
                by every refusal.
            images: images of the prompt.
        """
        most = wanted if self._answer is None else min(wanted, self._answer)
        if self.tokens is None:
            return most
        overhead = self._overhead.get(images, max(self._overhead.values(), default=_OVERHEAD))
        left = self.tokens - chars // _CHARS_PER_TOKEN - overhead - 1  # SGLang wants one to spare
        return min(most, max(_LEAST, left))

    def learn(self, told: Overrun, asked: int, wanted: int, chars: int, images: int) -> int | None:
        """Note a refusal of `asked` tokens; return how many to ask for instead, None if none help.

        Where the server names no number the half is tried. See `room` for the other arguments.
        """
        if told.window is not None:
            self.tokens = told.window
        if told.answer is not None and told.answer < asked:
            self._answer = told.answer
        if told.prompt is not None:
            beyond = told.prompt - chars // _CHARS_PER_TOKEN
            self._overhead[images] = max(beyond, self._overhead.get(images, beyond))
            if self.tokens is not None and told.prompt + _LEAST >= self.tokens:
                return None
        now = self.room(wanted, chars, images)
        if now >= asked:
            now = asked // 2
        return now if now >= _LEAST else None

    def note(self, taken: int, wanted: int, chars: int, images: int) -> None:
        """Note that the server took a call for `taken` tokens after it had refused more."""
        if taken < self.room(wanted, chars, images):
            self._answer = taken


def _first(patterns: tuple[str, ...], text: str) -> int | None:
    for pattern in patterns:
        if match := re.search(pattern, text, re.IGNORECASE):
            return int(match[1])
    return None
