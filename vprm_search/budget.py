"""Limits of a search, what was spent, and what that costs.

Usage is derived from the tree's records, so a replayed round cannot be counted twice. Only the
seconds come from outside, because a clock would make two equal searches differ.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import Literal
from weakref import WeakKeyDictionary

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vprm_search.errors import ConfigError
from vprm_search.records import first_wrong
from vprm_search.tree import SearchTree
from vprm_search.types import NodeId, NodeRecord, Usage

_TOKENS = ("generated_tokens", "scored_tokens")
_LIMITED = ("candidates", "generated_tokens", "scored_tokens", "requests", "rounds", "seconds")
_MILLION = 1_000_000


class Budget(BaseModel):
    """Limits of a search; None means unlimited.

    A search ends, with the best answer found so far, before the first round that would start at
    or above a limit, and says which one ran out. As long as no path has finished, every limit but
    `seconds` keeps a reserve with which one can be: no round spends it, and when nothing else is
    left the search asks for the whole rest of its best path. Of `generated_tokens` a quarter is
    kept at the least, so a path finishes wherever they pay for four of the dearest. Slots of merged
    or failed siblings are asked for again only where every later level could still be paid in full.

    `candidates` and `rounds` are exact: the last round is cut to fit. `requests` counts calls to
    the policy's model; no round asks for more candidates than calls are left, so only repeats of
    failed calls can exceed it. Under a limit on tokens the first round proposes a single candidate,
    which tells what one costs; then a round proposes no more than fit, each at the cost of the
    dearest so far. `generated_tokens` are shared out to the candidates as the most that each may
    have, so it is a hard limit for a policy that keeps to `ProposeRequest.max_tokens`; else it may
    be exceeded by candidates longer than any before them. `scored_tokens` may be, too. At the
    limit of `seconds` whatever the search waits for is given up: calls of the policy, which cost
    their own candidates only, and scoring, whose steps stay without a score.
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

    @property
    def limits_work(self) -> bool:
        """Whether there is a limit other than seconds."""
        return any(getattr(self, name) is not None for name in _LIMITED[:-1])

    def room(self, tree: SearchTree, wanted: int) -> int:
        """Return how many of `wanted` candidates may be proposed now (see the class)."""
        usage = usage_of(tree)
        left = self.candidates_left(usage)
        return min(
            [wanted if left is None else left]
            + [spent.fitting(left, wanted) for left, spent in self._tokens(tree, usage)]
        )

    def affords(self, tree: SearchTree, *, rounds: int, candidates: int, steps: int) -> bool:
        """Tell whether so much more is within every limit, a step at the mean cost so far."""
        usage = usage_of(tree)
        left = self.candidates_left(usage)
        return (
            (self.rounds is None or usage.rounds + rounds <= self.rounds)
            and (left is None or candidates <= left)
            and all(steps * spent.mean <= left for left, spent in self._tokens(tree, usage))
        )

    def paths_affordable(self, tree: SearchTree, steps: float) -> float | None:
        """Return how many paths (no whole number) the tokens left take on by `steps`; None: all."""
        kinds = [(left, spent.mean) for left, spent in self._tokens(tree, usage_of(tree))]
        if not kinds:
            return None
        return min(left / (steps * mean) + 1e-9 if mean else 1 for left, mean in kinds)

    def share(self, tree: SearchTree, candidates: int, *, kept: int = 0) -> int | None:
        """Return the tokens that each of so many candidates may have now, None if unlimited.

        `kept` are the tokens that none of them may have.
        """
        if self.generated_tokens is None:
            return None
        left = self.generated_tokens - tree.totals.generated_tokens - kept
        return max(0, left // max(1, candidates))

    def dearest(self, tree: SearchTree) -> int:
        """Return the generated tokens of the dearest step so far, rests of paths left out."""
        return _costs(tree).kinds["generated_tokens"].dearest

    def last_steps_affordable(self, tree: SearchTree) -> int | None:
        """Return how many last steps of paths the generated tokens left pay for; None: all."""
        if self.generated_tokens is None or not (dearest := _costs(tree).last):
            return None
        return int((self.generated_tokens - tree.totals.generated_tokens) / dearest)

    def short(self, tree: SearchTree) -> str:
        """Say which tokens are left in too small a number for one more candidate."""
        usage = usage_of(tree)
        for name in _TOKENS:
            limit, spent = getattr(self, name), _costs(tree).kinds[name]
            if limit is not None and not spent.fitting(limit - getattr(usage, name), 1):
                used = f"{name} {getattr(usage, name)} of {limit}"
                return f"{used}, and a candidate may cost {spent.dearest}"
        return "no candidate is left"

    def _tokens(self, tree: SearchTree, usage: Usage) -> list[tuple[int, Spending]]:
        limits = ((name, getattr(self, name)) for name in _TOKENS)
        return [
            (limit - getattr(usage, name), _costs(tree).kinds[name])
            for name, limit in limits
            if limit is not None
        ]

    def seconds_left(self, seconds: float) -> float | None:
        """Return how many of the seconds are left after `seconds`, or None if unlimited."""
        return None if self.seconds is None else max(0.0, self.seconds - seconds)


class Prices(BaseModel):
    """What the models cost, in `currency`: per million tokens, per image and per request.

    `prompt` and `generated` are the policy's tokens; `cached` is for tokens of its prompts that the
    provider had remembered, in place of `prompt` (None: the same price). `scored` is for the
    reward model's, counted as `scored_as` says: "scored_tokens" (as if every shared prefix were
    computed once, the same for every scorer), "tokens_sent" (a server that bills whole prompts) or
    "tokens_computed" (one that bills what its cache did not hold). `image` is for images the
    scorer encodes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    per_million_prompt_tokens: float = Field(default=0.0, ge=0)
    per_million_cached_tokens: float | None = Field(default=None, ge=0)
    per_million_generated_tokens: float = Field(default=0.0, ge=0)
    per_million_scored_tokens: float = Field(default=0.0, ge=0)
    per_image: float = Field(default=0.0, ge=0)
    per_request: float = Field(default=0.0, ge=0)
    scored_as: Literal["scored_tokens", "tokens_sent", "tokens_computed"] = "scored_tokens"
    currency: str = Field(default="USD", pattern=r"^[A-Za-z]{1,12}$")

    def cost_of(self, usage: Usage) -> float:
        """Return what `usage` costs, in `currency`."""
        cached, price = usage.cached_tokens, self.per_million_cached_tokens
        tokens = (
            self.per_million_prompt_tokens * (usage.prompt_tokens - cached)
            + (self.per_million_prompt_tokens if price is None else price) * cached
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
            field, why = first_wrong(error)
            raise ConfigError(f"{where}: {field or 'it'}: {why}") from error
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{where} is not JSON: {error}") from error


def usage_of(tree: SearchTree, seconds: float = 0.0) -> Usage:
    """Return what the search recorded in `tree` has spent."""
    return replace(tree.totals, seconds=seconds) if seconds else tree.totals


# --- what a candidate costs ----------------------------------------------------------------------

_FEW = 8
_LEAST_MARGIN = 0.5  # where costs differ: the last step, not yet seen, is often the longest


@dataclass(slots=True)
class Spending:
    """What the candidates so far cost in one kind of token: failed ones and completions apart.

    `paid` are those that cost anything: a step whose very path was scored before costs no scoring.
    """

    seen: int = 0
    paid: int = 0
    failed: int = 0
    total: int = 0
    dearest: int = 0

    @property
    def mean(self) -> float:
        """The mean cost of a candidate that costs anything; 0 while none has been paid for."""
        return self.total / max(1, self.paid)

    def fitting(self, left: int, wanted: int) -> int:
        """Return how many of `wanted` further candidates fit into the tokens that are left.

        Each is taken to cost as much as the dearest so far, and the more of them are asked for at
        once, and the more the costs differ, the more is kept as a margin: half as much again at
        the least, unless all cost the same. While none has been paid for it is one, or one for
        every two that failed.
        """
        if not self.seen:
            return min(wanted, max(1, self.failed // 2))
        if not self.dearest:
            return wanted  # the policy, or the scorer, does not say what it spends
        spread = 1.0 if self.seen < _FEW else min(1.0, self.dearest / self.mean - 1)
        least = _LEAST_MARGIN if spread else 0.0
        count = max(0, min(wanted, left // self.dearest))
        while count > 1 and left < count * self.dearest * (
            1 + max(least, spread * math.sqrt(count / self.seen))
        ):
            count -= 1
        return count


@dataclass(slots=True)
class _Costs:
    """The spendings of one tree, by kind; `read` of its records are in them.

    `last` is what the dearest last step of a path cost: generated tokens, estimated where it came
    with others.
    """

    read: int = 0
    last: float = 0.0
    kinds: dict[str, Spending] = field(default_factory=lambda: defaultdict(Spending))
    scored: dict[NodeId, int] = field(default_factory=lambda: defaultdict(int))


_KNOWN: WeakKeyDictionary[SearchTree, _Costs] = WeakKeyDictionary()


def _costs(tree: SearchTree) -> _Costs:
    """Return what the candidates of a tree cost; each record is read once, when it is settled."""
    costs = _KNOWN.setdefault(tree, _Costs())
    for record in tree.arrived_since(costs.read):
        costs.read += 1
        if record.parent is not None and record.role != "completion":
            _add(tree, costs, record)
        if record.status == "finished":
            costs.last = max(costs.last, _last_step(tree, costs, record))
    return costs


def _last_step(tree: SearchTree, costs: _Costs, record: NodeRecord) -> float:
    """Return the generated tokens of the last step of a path; the others cost what steps do."""
    first, others = record, 0
    while not first.seed and first.parent is not None:
        first, others = tree[first.parent], others + 1
    known = costs.kinds["generated_tokens"].mean
    return max(first.generated_tokens / (others + 1), first.generated_tokens - others * known)


def _add(tree: SearchTree, costs: _Costs, record: NodeRecord) -> None:
    generated, scored = costs.kinds["generated_tokens"], costs.kinds["scored_tokens"]
    if record.seed:
        for spent in (generated, scored):
            spent.seen += record.status != "failed"
            spent.failed += record.status == "failed"
        generated.paid += record.status != "failed" and record.generated_tokens > 0
        generated.total += record.generated_tokens
        generated.dearest = max(generated.dearest, record.generated_tokens)
    first = record  # the steps of a whole solution count for its first one
    while not first.seed and first.parent is not None:
        first = tree[first.parent]
    scored.total += record.scored_tokens
    scored.paid += record.scored_tokens > 0 and not costs.scored[first.id]
    costs.scored[first.id] += record.scored_tokens
    scored.dearest = max(scored.dearest, costs.scored[first.id])
