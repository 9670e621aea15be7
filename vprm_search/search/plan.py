"""What a strategy answers: which nodes to expand, which to close, or that the search is over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, runtime_checkable

from vprm_search.tree import SearchTree
from vprm_search.types import NodeId, Until


@dataclass(frozen=True, slots=True)
class Expand:
    """Propose `count` children of `node`, at the indices from `first_index` on."""

    node: NodeId
    count: int
    first_index: int = 0
    until: Until = "step"


@dataclass(frozen=True, slots=True)
class Close:
    """Take an open node out of the search, or a duplicate out of the candidates.

    "pruned": a rule or a better path put it aside; "truncated": it was cut by a depth limit and
    may still serve as a fallback. `reason` says which rule and against what.
    """

    node: NodeId
    reason: str
    status: Literal["pruned", "truncated"] = "pruned"


@dataclass(frozen=True, slots=True)
class Plan:
    """The next round. A non-empty `finish` ends the search and says why."""

    expand: tuple[Expand, ...] = ()
    close: tuple[Close, ...] = ()
    finish: str = ""

    def limited_to(self, candidates: int) -> Plan:
        """Return the plan cut to at most `candidates` new children, earlier expansions first."""
        kept: list[Expand] = []
        for expand in self.expand:
            count = min(expand.count, candidates)
            if count > 0:
                kept.append(replace(expand, count=count))
                candidates -= count
        return replace(self, expand=tuple(kept))


@runtime_checkable
class Strategy(Protocol):
    """A rule that says what to do next; a function of the tree alone, so a resume plans the same.

    `aggregates` names the path scores the strategy reads; they are stored in the records.
    """

    @property
    def aggregates(self) -> Sequence[str]:
        """The names of the aggregations used."""
        ...

    def plan(self, tree: SearchTree) -> Plan:
        """Return the next round for a tree in which every node has been scored."""
        ...
