"""Step-level beam search: keep the best partial paths, by the scores of their steps."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field

from vprm_search.search.plan import Close, Expand, Plan, Ranked
from vprm_search.search.stepwise import StepwiseSearch
from vprm_search.tree import SearchTree
from vprm_search.types import NodeId, NodeRecord


class BeamSearch(StepwiseSearch):
    """Keep the `width` best open paths and propose `expand` next steps of each.

    The first level proposes `width * expand` steps, as the later ones do. A path that finishes
    leaves the beam and stays a candidate. Identical siblings are merged, and their slots are asked
    for again at most `refill` times. Snell et al., arXiv 2408.03314 §5.2 (beam search against a
    PRM); the running mean as the path score is VisualPRM's aggregation. With `anneal` the beam
    narrows as it goes deeper, to `max(min_width, width - anneal * (depth - 1))`, in the manner of
    PRM-BAS (arXiv 2504.10222: wide at first, narrower as context accumulates; the linear schedule
    is ours).

    The options not listed are those of `StepwiseSearch`.

    Args:
        width: open paths kept after each level. Default: 4.
        expand: children proposed per kept path. Default: 4.
        max_depth: steps after which an open path is cut ("truncated"). Default: 32.
        pruning: what is put aside besides what the width leaves out. Default: nothing.
        aggregate: name of the aggregation of the path score. Default: "mean".
        stop: end once this many finished paths score at least as high as every open path ("width":
            as many as the beam is wide; None: go on until no path is open). Default: "width".
        anneal: paths by which the beam narrows with every level; 0: never. Default: 0.
        min_width: the narrowest an annealed beam becomes. Default: 1.
    """

    width: int = Field(default=4, ge=1, le=256)
    expand: int = Field(default=4, ge=1, le=256)
    stop: Annotated[int, Field(ge=1)] | Literal["width"] | None = "width"
    anneal: int = Field(default=0, ge=0, le=255)
    min_width: int = Field(default=1, ge=1, le=256)

    def plan(self, tree: SearchTree) -> Plan:
        """Refill the level if slots are empty, else prune to the width and expand."""
        if tree.rounds == 0:
            return Plan(expand=(Expand(tree.root_id, self._target(tree, tree.root_id)),))
        merged = self._duplicates(tree)
        refill = self._refills(tree)
        if refill:
            return Plan(expand=refill, close=tuple(merged))
        gone = {close.node for close in merged}
        leaves = [leaf for leaf in tree.open_leaves() if leaf.id not in gone]
        ended = [] if self.stop is None else tree.finished()
        finished = (record for record in ended if record.id not in gone)
        keep, close, reason = self.advance(tree, leaves, finished, self.width)
        closed = (*merged, *close)
        if reason:
            return Plan(close=closed, finish=reason)
        expand = tuple(Expand(leaf.id, self.expand) for _, leaf in keep)
        return Plan(expand=expand, close=closed)

    def advance(
        self,
        tree: SearchTree,
        leaves: Iterable[NodeRecord],
        finished: Iterable[NodeRecord],
        width: int,
    ) -> tuple[Ranked, list[Close], str]:
        """Return the open paths of a beam that stay, those that go, and why it ends if it does."""
        ranked, close = self._rank(tree, leaves)
        if ranked:
            depth = max(tree.depth(leaf.id) for _, leaf in ranked)
            top_k = max(min(width, self.min_width), width - self.anneal * (depth - 1))
            own = self.pruning.top_k
            narrowest = top_k if own is None else min(top_k, own)
            ranked, pruned = self.pruning.model_copy(update={"top_k": narrowest}).apply(ranked)
            close += pruned
        if not ranked:
            return [], close, "no open path is left"
        return ranked, close, self._stopped(tree, ranked, finished, width)

    def _target(self, tree: SearchTree, parent: NodeId) -> int:
        return self.width * self.expand if parent == tree.root_id else self.expand

    def _stopped(
        self, tree: SearchTree, ranked: Ranked, finished: Iterable[NodeRecord], width: int
    ) -> str:
        needed = width if self.stop == "width" else self.stop
        if needed is None:
            return ""
        better = self._beating(tree, finished, *ranked[0])
        return f"{better} finished paths beat every open one" if better >= needed else ""
