"""What a strategy answers: which nodes to expand, which to close, or that the search is over.

With it the one rule object for pruning that every strategy shares.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field

from vprm_search.tree import SearchTree
from vprm_search.types import Cause, NodeId, NodeRecord, Role, Until


@dataclass(frozen=True, slots=True)
class Expand:
    """Propose `count` children of `node`, at the indices from `first_index` on.

    `policy` names which of several policies proposes them ("": the first one); `role` is written
    on their records (see `NodeRecord`), and so is `round` (0: the next round of the whole tree; a
    `PartwiseStrategy` counts the rounds of each part). `temperature_scale` multiplies the
    policy's temperature.
    """

    node: NodeId
    count: int
    first_index: int = 0
    until: Until = "step"
    policy: str = ""
    role: Role = ""
    round: int = 0
    temperature_scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Close:
    """Take an open node out of the search, or a duplicate out of the candidates.

    "pruned": a rule or a better path put it aside; "truncated": it was cut by a depth limit and
    may still serve as a fallback. "open" is for the end of a search only: what was still open when
    it ended stays so and gets the reason. `reason` says in words which rule and against what,
    `cause` for programs; a "duplicate" names the sibling it was `merged_into`.
    """

    node: NodeId
    reason: str
    status: Literal["pruned", "truncated", "open"] = "pruned"
    cause: Cause = ""
    merged_into: NodeId | None = None

    def closed(self, record: NodeRecord) -> NodeRecord:
        """Return the record of the node, closed."""
        return record.but(**self._end)

    def on(self, tree: SearchTree) -> list[NodeId]:
        """Close the node in its tree; return it if that changed its record."""
        record = tree[self.node]
        if record.status != "open" or self.status == "open":
            return tree.merge([self.closed(record)])
        tree.amend(self.node, **self._end)
        return [self.node]

    @property
    def _end(self) -> dict[str, Any]:
        return {
            "status": self.status,
            "reason": self.reason,
            "cause": self.cause,
            "merged_into": self.merged_into,
        }


@dataclass(frozen=True, slots=True)
class Plan:
    """The next round. A non-empty `finish` ends the search and says why.

    `cut` is set by `limited_to`: the strategy asked for more than the budget allowed.
    """

    expand: tuple[Expand, ...] = ()
    close: tuple[Close, ...] = ()
    finish: str = ""
    cut: bool = False

    @property
    def count(self) -> int:
        """How many children are asked for."""
        return sum(expand.count for expand in self.expand)

    def limited_to(self, candidates: int) -> Plan:
        """Return the plan cut to at most `candidates` new children, earlier expansions first."""
        kept: list[Expand] = []
        for expand in self.expand:
            count = min(expand.count, candidates)
            if count > 0:
                kept.append(expand if count == expand.count else replace(expand, count=count))
                candidates -= count
        if tuple(kept) == self.expand:
            return self
        return replace(self, expand=tuple(kept), cut=True)


@runtime_checkable
class Strategy(Protocol):
    """A rule that says what to do next; a function of the tree alone, so a resume plans the same.

    `aggregates` names the path scores the strategy reads; they are stored in the records. A
    strategy that reads no scores at all may say so with an attribute `needs_scores = False`.
    """

    @property
    def aggregates(self) -> Sequence[str]:
        """The names of the aggregations used."""
        ...

    def plan(self, tree: SearchTree) -> Plan:
        """Return the next round for a tree in which every node has been scored."""
        ...


def needs_scores(rule: object) -> bool:
    """Return whether a strategy or a selector reads scores; true unless its `needs_scores` denies.

    Where neither of a search's two rules does, it needs no scorer.
    """
    return bool(getattr(rule, "needs_scores", True))


@runtime_checkable
class PartwiseStrategy(Strategy, Protocol):
    """A strategy whose tree has parts that never look at one another.

    With a policy whose calls are independent, a part goes on as soon as its own replies are there.
    The tree must not depend on which part was faster: what is planned for a part is a function of
    that part alone, and `Expand.round` counts within it.
    """

    def plan_parts(self, tree: SearchTree, busy: frozenset[NodeId]) -> Plan:
        """Return what to do for the parts in which nothing is under way.

        `busy` are the nodes whose children are being proposed at this moment; `plan(tree)` is
        `plan_parts(tree, frozenset())`. A plan without expansions means waiting for what is under
        way; a `finish` ends the search and gives up what is.
        """
        ...


Ranked = list[tuple[float, NodeRecord]]
"""Paths with their scores, best first."""


class Pruning(BaseModel):
    """Which of a level's open paths are put aside, whatever the strategy; by default none.

    `below` is absolute and `margin` relative to the best open path, as thresholds on the path
    score (calibrate the scorer before trusting an absolute one). Neither takes a path whose last
    step got no score, or one of the `keep_at_least` best, so that a hard problem does not lose
    every path; `top_k` is a hard width.

    Args:
        below: a path with a lower score is pruned. Default: None.
        margin: a path whose score is lower than the best one's by more than this is pruned.
            Default: None.
        top_k: paths after the first so many are pruned. Default: None.
        keep_at_least: so many of the best are never pruned by `below` or `margin`. Default: 1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    below: float | None = Field(default=None, ge=0, le=1)
    margin: float | None = Field(default=None, ge=0, le=1)
    top_k: int | None = Field(default=None, ge=1)
    keep_at_least: int = Field(default=1, ge=0)

    def apply(self, ranked: Sequence[tuple[float, NodeRecord]]) -> tuple[Ranked, list[Close]]:
        """Return what stays, best first, and what is closed: by which rule and against whom.

        `ranked` is sorted best first.
        """
        keep: Ranked = []
        close = []
        for rank, (score, leaf) in enumerate(ranked):
            if self.top_k is not None and rank >= self.top_k:
                last = ranked[self.top_k - 1][1].id
                reason = f"outranked: {score:.4f} is rank {rank + 1} of {len(ranked)}, after {last}"
                close.append(Close(leaf.id, reason, cause="outranked"))
            elif not leaf.score_reason and (reason := self._too_low(rank, score, ranked[0])):
                close.append(Close(leaf.id, reason, cause="pruned"))
            else:
                keep.append((score, leaf))
        return keep, close

    def _too_low(self, rank: int, score: float, best: tuple[float, NodeRecord]) -> str:
        if rank < self.keep_at_least:
            return ""
        if self.below is not None and score < self.below:
            return f"prune_below: {score:.4f} < {self.below:.4f}"
        if self.margin is not None and score < best[0] - self.margin:
            return f"prune_margin: {score:.4f} < {best[0]:.4f} of {best[1].id} - {self.margin}"
        return ""
