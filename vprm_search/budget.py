"""Limits of a search, and what was spent.

Usage is derived from the tree's records, so a replayed round cannot be counted twice. Only the
seconds come from outside, because a clock would make two equal searches differ.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from vprm_search.tree import SearchTree
from vprm_search.types import Usage

_LIMITED = ("candidates", "generated_tokens", "scored_tokens", "rounds", "seconds")


class Budget(BaseModel):
    """Limits of a search; None means unlimited.

    A search ends, with the best answer found so far, before the first round that would start at
    or above a limit; `candidates` is exact (the last round is cut to fit), the other limits may
    be exceeded by what one round costs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    candidates: int | None = Field(default=None, ge=1)
    generated_tokens: int | None = Field(default=None, ge=1)
    scored_tokens: int | None = Field(default=None, ge=1)
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
        """Return how many more candidates may be proposed, or None if unlimited."""
        if self.candidates is None:
            return None
        return max(0, self.candidates - usage.candidates)


def usage_of(tree: SearchTree, seconds: float = 0.0) -> Usage:
    """Return what the search recorded in `tree` has spent."""
    totals = tree.totals
    return Usage(
        candidates=totals.candidates,
        generated_tokens=totals.generated_tokens,
        prompt_tokens=totals.prompt_tokens,
        scored_tokens=totals.scored_tokens,
        scored_steps=totals.scored_steps,
        requests=totals.requests,
        rounds=totals.rounds,
        seconds=seconds,
    )
