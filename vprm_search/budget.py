"""Limits of a search, what was spent, and what that costs.

Usage is derived from the tree's records, so a replayed round cannot be counted twice. Only the
seconds come from outside, because a clock would make two equal searches differ.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vprm_search.errors import ConfigError
from vprm_search.tree import SearchTree
from vprm_search.types import Usage

_LIMITED = ("candidates", "generated_tokens", "scored_tokens", "requests", "rounds", "seconds")
_MILLION = 1_000_000


class Budget(BaseModel):
    """Limits of a search; None means unlimited.

    A search ends, with the best answer found so far, before the first round that would start at
    or above a limit, and says which one ran out.

    `candidates` is exact: the last round is cut to fit. `requests` counts calls to the policy's
    model; no round asks for more candidates than calls are left, so only repeats of failed calls
    can exceed it. `rounds` is exact. Tokens may be exceeded by what one round costs. At the limit
    of `seconds` whatever the search waits for is given up: calls of the policy, which cost their
    own candidates only, and scoring, whose steps stay without a score.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    candidates: int | None = Field(default=None, ge=1)
    generated_tokens: int | None = Field(default=None, ge=1)
    scored_tokens: int | None = Field(default=None, ge=1)
    requests: int | None = Field(default=None, ge=1)
    rounds: int | None = Field(default=None, ge=1)
    seconds: float | None = Field(default=None, gt=0)

    def exhausted(self, usage: Usage) -> str | None:
        """Return which limit `usage` has reached ("generated_tokens 512 of 500"), or None."""
        for name in _LIMITED:
            limit = getattr(self, name)
            spent = getattr(usage, name)
            if limit is not None and spent >= limit:
                shown = f"{spent:.1f}" if name == "seconds" else str(spent)
                return f"{name} {shown} of {limit}"
        return None

    def candidates_left(self, usage: Usage) -> int | None:
        """Return how many more candidates may be proposed, or None if unlimited.

        A candidate may take a request of its own, so the requests left bound the candidates, too.
        """
        left = []
        if self.candidates is not None:
            left.append(self.candidates - usage.candidates)
        if self.requests is not None:
            left.append(self.requests - usage.requests)
        return max(0, min(left)) if left else None

    def seconds_left(self, seconds: float) -> float | None:
        """Return how many of the seconds are left after `seconds`, or None if unlimited."""
        return None if self.seconds is None else max(0.0, self.seconds - seconds)


class Prices(BaseModel):
    """What the models cost, in `currency`: per million tokens, per image and per request.

    `prompt` and `generated` are the policy's tokens. `scored` is for the reward model's, counted
    as `scored_as` says: "scored_tokens" (as if every shared prefix were computed once, the same
    for every scorer), "tokens_sent" (a server that bills whole prompts) or "tokens_computed" (one
    that bills what its cache did not hold). `image` is for images the scorer encodes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    per_million_prompt_tokens: float = Field(default=0.0, ge=0)
    per_million_generated_tokens: float = Field(default=0.0, ge=0)
    per_million_scored_tokens: float = Field(default=0.0, ge=0)
    per_image: float = Field(default=0.0, ge=0)
    per_request: float = Field(default=0.0, ge=0)
    scored_as: Literal["scored_tokens", "tokens_sent", "tokens_computed"] = "scored_tokens"
    currency: str = Field(default="USD", pattern=r"^[A-Za-z]{1,12}$")

    def cost_of(self, usage: Usage) -> float:
        """Return what `usage` costs, in `currency`."""
        tokens = (
            self.per_million_prompt_tokens * usage.prompt_tokens
            + self.per_million_generated_tokens * usage.generated_tokens
            + self.per_million_scored_tokens * int(getattr(usage, self.scored_as))
        )
        calls = self.per_request * usage.requests + self.per_image * usage.images_encoded
        return tokens / _MILLION + calls

    @classmethod
    def loads(cls, text: str, where: str = "the price list") -> Prices:
        """Read prices from JSON text. Raises `ConfigError` naming `where` and what is wrong."""
        try:
            return cls.model_validate(json.loads(text))
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"])) or "it"
            raise ConfigError(f"{where}: {field}: {first['msg']}") from error
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{where} is not JSON: {error}") from error


def usage_of(tree: SearchTree, seconds: float = 0.0) -> Usage:
    """Return what the search recorded in `tree` has spent."""
    return replace(tree.totals, seconds=seconds)
