"""Step-level beam search: keep the best partial paths, by the scores of their steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from vprm_search.aggregate import aggregation
from vprm_search.search.plan import Close, Expand, Plan
from vprm_search.tree import SearchTree
from vprm_search.types import NodeId, NodeRecord

Ranked = list[tuple[float, NodeRecord]]
_KEPT_FIRST = {"finished": 0, "open": 1, "truncated": 2}


class BeamSearch(BaseModel):
    """Keep the `width` best open paths and propose `expand` next steps of each.

    The first level proposes `width * expand` steps, as the later ones do. A path that finishes
    leaves the beam and stays a candidate. Identical siblings are merged, and their slots are asked
    for again at most `refill` times. Snell et al., arXiv 2408.03314 §5.2 (beam search against a
    PRM); the running mean as the path score is VisualPRM's aggregation.

    Args:
        width: open paths kept after each level.
        expand: children proposed per kept path.
        max_depth: steps after which an open path is cut ("truncated").
        prune_below: an open path with a path score below this is pruned.
        prune_margin: an open path more than this below the best open path is pruned.
        keep_at_least: open paths that the two rules above never prune.
        aggregate: name of the aggregation of the path score.
        dedup: merge identical siblings.
        refill: how often the slots of merged or failed siblings are asked for again.
        stop: end once this many finished paths score at least as high as every open path
            ("width": as many as the beam is wide; None: go on until no path is open).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    width: int = Field(default=4, ge=1, le=256)
    expand: int = Field(default=4, ge=1, le=256)
    max_depth: int = Field(default=32, ge=1, le=128)
    prune_below: float | None = Field(default=None, ge=0, le=1)
    prune_margin: float | None = Field(default=None, ge=0, le=1)
    keep_at_least: int = Field(default=1, ge=0)
    aggregate: str = "mean"
    dedup: bool = True
    refill: int = Field(default=1, ge=0, le=8)
    stop: Annotated[int, Field(ge=1)] | Literal["width"] | None = "width"

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
        """Refill the level if slots are empty, else prune to the width and expand."""
        if tree.rounds == 0:
            return Plan(expand=(Expand(tree.root_id, self.width * self.expand),))
        level = self._parents_of_last_round(tree)
        duplicates = self._duplicates(tree, level)
        refill = self._refill(tree, level)
        if refill:
            return Plan(expand=refill, close=duplicates)
        gone = {close.node for close in duplicates}
        leaves = [leaf for leaf in tree.open_leaves() if leaf.id not in gone]
        keep, close = self._prune(tree, leaves)
        close = duplicates + close
        if not keep:
            return Plan(close=close, finish="no open path is left")
        reason = self._stopped(tree, keep[0][0], gone)
        if reason:
            return Plan(close=close, finish=reason)
        expand = tuple(Expand(leaf.id, self.expand) for _, leaf in keep)
        return Plan(expand=expand, close=close)

    def _target(self, tree: SearchTree, parent: NodeId) -> int:
        return self.width * self.expand if parent == tree.root_id else self.expand

    def _parents_of_last_round(self, tree: SearchTree) -> list[NodeId]:
        parents = {r.parent for r in tree.round_nodes(tree.rounds) if r.parent is not None}
        return sorted(parents)

    def _duplicates(self, tree: SearchTree, parents: Sequence[NodeId]) -> tuple[Close, ...]:
        if not self.dedup:
            return ()
        close = []
        for parent in parents:
            first: dict[str, NodeRecord] = {}
            alive = [c for c in tree.children(parent) if c.status not in ("failed", "pruned")]
            # A finished twin is kept before an open one: expanding the latter would end it too.
            # One cut by the token limit is kept last: it cannot be expanded.
            for child in sorted(alive, key=lambda c: (_KEPT_FIRST[c.status], c.index)):
                twin = first.setdefault(child.text, child)
                if twin is not child:
                    close.append(Close(child.id, f"duplicate of {twin.id}"))
        return tuple(close)

    def _refill(self, tree: SearchTree, parents: Sequence[NodeId]) -> tuple[Expand, ...]:
        expand = []
        for parent in parents:
            children = tree.children(parent)
            tries = len({child.round for child in children})
            texts = {child.text for child in children if child.status != "failed"}
            have = len(texts) if self.dedup else _alive(children)
            missing = self._target(tree, parent) - have
            if missing > 0 and tries <= self.refill:
                expand.append(Expand(parent, missing, len(children)))
        return tuple(expand)

    def _prune(
        self, tree: SearchTree, leaves: Sequence[NodeRecord]
    ) -> tuple[Ranked, tuple[Close, ...]]:
        """Return the leaves kept, best first, and what is closed and why."""
        ranked: Ranked = []
        close = []
        for leaf in leaves:
            score = tree.path_score(leaf.id, self.aggregate)
            if score is None:
                close.append(Close(leaf.id, f"no score: {leaf.score_reason or 'earlier step'}"))
            elif tree.depth(leaf.id) >= self.max_depth:
                close.append(Close(leaf.id, f"max_depth {self.max_depth} reached", "truncated"))
            else:
                ranked.append((score, leaf))
        ranked.sort(key=lambda pair: (-pair[0], pair[1].id))
        keep: Ranked = []
        for rank, (score, leaf) in enumerate(ranked):
            reason = self._reason(rank, score, ranked)
            if reason:
                close.append(Close(leaf.id, reason))
            else:
                keep.append((score, leaf))
        return keep, tuple(close)

    def _reason(self, rank: int, score: float, ranked: Ranked) -> str:
        best = ranked[0]
        if rank >= self.width:
            last = ranked[self.width - 1]
            return f"outranked: {score:.4f} is rank {rank + 1} of {len(ranked)}, after {last[1].id}"
        if rank < self.keep_at_least:
            return ""
        if self.prune_below is not None and score < self.prune_below:
            return f"prune_below: {score:.4f} < {self.prune_below:.4f}"
        if self.prune_margin is not None and score < best[0] - self.prune_margin:
            return (
                f"prune_margin: {score:.4f} < {best[0]:.4f} of {best[1].id} - {self.prune_margin}"
            )
        return ""

    def _stopped(self, tree: SearchTree, best_open: float, gone: set[NodeId]) -> str:
        needed = self.width if self.stop == "width" else self.stop
        if needed is None:
            return ""
        scores = (
            tree.path_score(r.id, self.aggregate) for r in tree.finished() if r.id not in gone
        )
        better = sum(1 for score in scores if score is not None and score >= best_open)
        return f"{better} finished paths beat every open one" if better >= needed else ""


def _alive(children: Sequence[NodeRecord]) -> int:
    return sum(1 for child in children if child.status != "failed")
