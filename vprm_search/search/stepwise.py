"""What the step-by-step strategies share: their options, and how open paths are ranked."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from pydantic import BaseModel, ConfigDict, Field, field_validator

from vprm_search.aggregate import aggregation
from vprm_search.search.plan import Close, Expand, Plan
from vprm_search.search.pruning import Pruning, Ranked
from vprm_search.search.siblings import (
    StepKey,
    asked_at_first,
    distinct,
    duplicates,
    exact_step,
    last_parents,
    missing,
)
from vprm_search.tree import SearchTree
from vprm_search.types import NodeId, NodeRecord

_MAY_GROW = ("open", "pruned")  # a pruned sibling is ranked again, so that the ranks stay


class StepwiseSearch(BaseModel):
    """The options of every strategy that goes step by step.

    Args:
        max_depth: steps after which an open path is cut ("truncated").
        aggregate: name of the aggregation of the path score.
        dedup: merge identical siblings.
        refill: how often the slots of merged or failed siblings are asked for again.
        refill_temperature_scale: factor on the policy's temperature then, so that it repeats
            itself less.
        same_step: tells which siblings are the same; `exact_step`, `loose_step` or your own
            function from a step's text to a key (near-duplicates share one).
        pruning: what is put aside besides the strategy's own rule.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_depth: int = Field(default=32, ge=1, le=128)
    aggregate: str = "mean"
    dedup: bool = True
    refill: int = Field(default=1, ge=0, le=8)
    refill_temperature_scale: float = Field(default=1.0, ge=1, le=4)
    same_step: StepKey = exact_step
    pruning: Pruning = Pruning()

    @field_validator("aggregate")
    @classmethod
    def _known(cls, name: str) -> str:
        aggregation(name)
        return name

    @property
    def aggregates(self) -> Sequence[str]:
        """The one aggregation that ranks the paths."""
        return (self.aggregate,)

    def plan(self, tree: SearchTree) -> Plan:
        """Return the next round (see `Strategy`)."""
        raise NotImplementedError

    def value(self, tree: SearchTree, node: NodeId) -> float | None:
        """Return the score of a path, or that of its rollouts where a lookahead made some.

        A rollout's value is the path score at its end (Snell et al., arXiv 2408.03314 §5.2), that
        of several rollouts their mean.
        """
        ends = list(rollout_ends(tree, node))
        values = [tree.path_score(end, self.aggregate) for end in ends or [node]]
        known = [value for value in values if value is not None]
        if known and ends:
            return math.fsum(known) / len(known)
        return known[0] if known else tree.path_score(node, self.aggregate)

    def _duplicates(self, tree: SearchTree) -> list[Close]:
        return duplicates(tree, last_parents(tree), self.same_step) if self.dedup else []

    def _refills(self, tree: SearchTree) -> tuple[Expand, ...]:
        """Return what to ask for again among the children of the last round."""
        asked = (self._ask(tree, parent) for parent in last_parents(tree))
        return tuple(expand for expand in asked if expand.count)

    def _ask(self, tree: SearchTree, parent: NodeId, *, at: int = 0) -> Expand:
        """Return what is still to be asked for below a node, at first or again; maybe nothing."""
        known = tree.child_count(parent)
        count = self._missing(tree, parent, self._target(tree, parent))
        return Expand(
            parent,
            count,
            known,
            round=at,
            temperature_scale=self.refill_temperature_scale if known else 1.0,
        )

    def _target(self, tree: SearchTree, parent: NodeId) -> int:
        return asked_at_first(tree, parent)

    def _missing(self, tree: SearchTree, parent: NodeId, target: int) -> int:
        key = self.same_step if self.dedup else None
        return missing(tree, parent, target, refill=self.refill, key=key)

    def _rank(self, tree: SearchTree, leaves: Iterable[NodeRecord]) -> tuple[Ranked, list[Close]]:
        """Return the leaves that may be expanded, best first, and those that never can be."""
        ranked: Ranked = []
        close = []
        for leaf in leaves:
            score = self.value(tree, leaf.id)
            if score is None:
                close.append(Close(leaf.id, f"no score: {leaf.score_reason or 'earlier step'}"))
            elif tree.depth(leaf.id) >= self.max_depth:
                close.append(Close(leaf.id, f"max_depth {self.max_depth} reached", "truncated"))
            else:
                ranked.append((score, leaf))
        ranked.sort(key=lambda pair: (-pair[0], pair[1].id))
        return ranked, close

    def _siblings(self, tree: SearchTree, parent: NodeId) -> tuple[Ranked, list[Close]]:
        """Return which children of one node may be expanded, best first, and what is closed.

        For strategies without levels: it depends on the children alone, so it is the same before
        and after its own closes, and whenever it is asked.
        """
        children = distinct(tree, parent, self.same_step if self.dedup else None)
        ranked, close = self._rank(tree, (c for c, _ in children if c.status in _MAY_GROW))
        ranked, pruned = self.pruning.apply(ranked)
        return ranked, [c for c in (*close, *pruned) if tree[c.node].status == "open"]


def rollout_ends(tree: SearchTree, node: NodeId) -> Iterable[NodeId]:
    """Return the last scored steps of the rollouts that a lookahead made below `node`."""
    for child in tree.children(node) if tree.child_count(node) else ():
        if child.role == "lookahead" and child.status != "failed":
            yield from list(rollout_ends(tree, child.id)) or [child.id]
