"""Best-first search: always go on with the best open path, wherever it is in the tree."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from pydantic import Field

from vprm_search.search.plan import Close, Expand, Plan
from vprm_search.search.stepwise import StepwiseSearch, proposed
from vprm_search.tree import SearchTree
from vprm_search.types import NodeId


@dataclass(slots=True)
class _Queue:
    """The open paths seen up to a round, best first; some may be closed or expanded by now.

    `fresh` are the parents whose children came last, `close` is what goes among these, and
    `expanded` are all parents.
    """

    heap: list[tuple[float, NodeId]] = field(default_factory=list)
    round: int = 0
    fresh: list[NodeId] = field(default_factory=list)
    close: list[Close] = field(default_factory=list)
    expanded: set[NodeId] = field(default_factory=set)


class BestFirst(StepwiseSearch):
    """Expand the best open paths of the whole tree, `batch` of them at a time.

    Nothing is thrown away because of its level: when the steps behind a promising path turn out
    bad, the search goes back to the best path it left behind. A path's priority is its path score.
    Best-first tree search for language models: Koh et al., arXiv 2407.01476 §3.2 (there 20
    expansions of 5 children, one at a time). The path score should not fall with depth alone,
    or shallow paths win for ever; the mean of the step scores does not.

    The options not listed are those of `StepwiseSearch`.

    Args:
        pruning: compares the children of one node: there are no levels. Default: nothing.
        batch: paths expanded per round; 1 is the textbook search, more use the policy better.
            Default: 4.
        expand: children proposed per path; the root gets `batch * expand`. Default: 4.
        expansions: paths expanded in all, at most. Default: 64.
        stop: end once this many finished paths score at least as high as the best open one.
            Default: 4.
    """

    batch: int = Field(default=4, ge=1, le=256)
    expand: int = Field(default=4, ge=1, le=256)
    expansions: int = Field(default=64, ge=1)
    stop: int | None = Field(default=4, ge=1)

    def plan(self, tree: SearchTree) -> Plan:
        """Refill empty slots, else expand the best open paths of the whole tree."""
        if tree.rounds == 0:
            return Plan(expand=(Expand(tree.root_id, self._target(tree, tree.root_id)),))
        merged = self._duplicates(tree)
        refill = self._refills(tree)
        if refill:
            return Plan(expand=refill, close=tuple(merged))
        queue = self._queue(tree)
        close = merged + [close for close in queue.close if tree[close.node].status == "open"]
        best = self._best(tree, queue, {c.node for c in close})
        reason = self._stopped(tree, best, queue)
        if reason:
            return Plan(close=tuple(close), finish=reason)
        expand = tuple(Expand(node, self.expand, tree.child_count(node)) for _, node in best)
        return Plan(expand=expand, close=tuple(close))

    def _target(self, tree: SearchTree, parent: NodeId) -> int:
        return self.expand * (self.batch if parent == tree.root_id else 1)

    def _queue(self, tree: SearchTree) -> _Queue:
        """Return the queue with the paths of the rounds since it was last asked for."""
        queue = _CACHE.setdefault(tree, {}).setdefault(self, _Queue())
        if queue.round < tree.rounds:
            rounds = range(queue.round + 1, tree.rounds + 1)
            new = (record for number in rounds for record in tree.round_nodes(number))
            queue.fresh = sorted({r.parent for r in new if r.parent and not r.is_aside})
            queue.expanded.update(queue.fresh)
            queue.round = tree.rounds
            queue.close = []
            for parent in queue.fresh:
                ranked, close = self._siblings(tree, parent)
                queue.close += close
                for score, leaf in ranked:
                    heapq.heappush(queue.heap, (-score, leaf.id))
        return queue

    def _best(
        self, tree: SearchTree, queue: _Queue, gone: set[NodeId]
    ) -> list[tuple[float, NodeId]]:
        """Return the best paths that are still open, at most a batch; they stay in the queue."""
        best: list[tuple[float, NodeId]] = []
        while queue.heap and len(best) < self.batch:
            priority, node = heapq.heappop(queue.heap)
            live = tree[node].status == "open" and node not in gone and not proposed(tree, node)
            if live and (priority, node) not in best:
                best.append((priority, node))
        for entry in best:
            heapq.heappush(queue.heap, entry)
        left = self.expansions - (len(queue.expanded) - 1)  # the root's own is not counted
        return [(-priority, node) for priority, node in best][: max(0, left)]

    def _stopped(self, tree: SearchTree, best: list[tuple[float, NodeId]], queue: _Queue) -> str:
        if not best:
            used_up = len(queue.expanded) > self.expansions
            return f"{self.expansions} expansions made" if used_up else "no open path is left"
        if self.stop is None:
            return ""
        scores = (tree.path_score(record.id, self.aggregate) for record in tree.finished())
        better = sum(1 for score in scores if score is not None and score >= best[0][0])
        return f"{better} finished paths beat every open one" if better >= self.stop else ""


_CACHE: WeakKeyDictionary[SearchTree, dict[BestFirst, _Queue]] = WeakKeyDictionary()
