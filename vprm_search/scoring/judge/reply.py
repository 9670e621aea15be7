"""What a judge answered: P(yes) from token probabilities, or a verdict."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.messages import BaseMessage
from pydantic import BaseModel, Field

_EDGES = " \t\r\n.,:;!\"'`*_()[]{}▁Ġ"


class Verdict(BaseModel):
    """The verdict on one step of a solution."""

    reason: str = Field(description="Why the step is right or wrong, in one or two sentences.")
    correct: bool = Field(description="Whether the step is correct.")


class NoLogprobsError(Exception):
    """The reply carries no token probabilities at all: this model does not give them."""


def probability_of_yes(message: BaseMessage, words: tuple[str, str]) -> float | None:
    """Return P(yes) = p(yes) / (p(yes) + p(no)) at the last token that says one of the words.

    All spellings of a word count (case, blanks, punctuation); a word that is not among the listed
    alternatives counts as 0. Returns None when no token says one of the words, raises
    `NoLogprobsError` when there are no probabilities.
    """
    listed = message.response_metadata.get("logprobs")
    tokens = listed.get("content") if isinstance(listed, Mapping) else None
    if not isinstance(tokens, Sequence) or not tokens:
        raise NoLogprobsError
    for token in reversed(tokens):
        if _said(token, words) is None:
            continue
        options = list(token.get("top_logprobs") or ())
        if not any(option.get("token") == token["token"] for option in options):
            options.append(token)
        sums = [0.0, 0.0]
        for option in options:
            place = _said(option, words)
            if place is not None:
                sums[place] += _probability(option)
        return sums[0] / sum(sums) if sum(sums) > 0 else None
    return None


def line_verdict(text: str, words: tuple[str, str]) -> float | None:
    """Return 1.0 or 0.0 for the last 'Verdict: …' of a text, or for a text of one word; or None."""
    names = "|".join(re.escape(word) for word in words)
    found = re.findall(rf"verdict\W{{0,6}}({names})\b", text, re.IGNORECASE)
    word = found[-1] if found else text
    place = _said({"token": word}, words)
    return None if place is None else 1.0 - place


def structured_verdict(reply: Any) -> float | None:
    """Return 1.0 or 0.0 from `with_structured_output(Verdict, include_raw=True)`, or None."""
    parsed = reply.get("parsed") if isinstance(reply, Mapping) else reply
    if isinstance(parsed, Mapping):
        parsed = parsed.get("correct")
        return float(parsed) if isinstance(parsed, bool) else None
    return float(parsed.correct) if isinstance(parsed, Verdict) else None


def _said(token: Mapping[str, Any], words: tuple[str, str]) -> int | None:
    """Return 0 for yes, 1 for no, None for anything else."""
    text = str(token.get("token", "")).strip(_EDGES).casefold()
    names = [word.casefold() for word in words]
    return names.index(text) if text in names else None


def _probability(token: Mapping[str, Any]) -> float:
    try:
        value = math.exp(min(0.0, float(token["logprob"])))
    except (KeyError, TypeError, ValueError):
        return 0.0
    return value if math.isfinite(value) else 0.0
