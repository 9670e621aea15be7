"""Best-first search: always go on with the best open path, wherever it is in the tree."""

from __future__ import annotations

import heapq
from collections import defaultdict
from dataclasses import dataclass, field, replace
from weakref import WeakKeyDictionary

from pydantic import Field

from vprm_search.search.plan import Close, Expand, Plan
from vprm_search.search.rebase import logit
from vprm_search.search.reserve import rest_of, was_completed
from vprm_search.search.stepwise import StepwiseSearch, candidates, proposed
from vprm_search.tree import SearchTree
from vprm_search.types import NodeId


@dataclass(slots=True)
class _Queue:
    """The open paths seen up to a round by depth, best first; some may be closed or expanded.

    `fresh` are the parents whose children came last, `close` is what goes among these, `expanded`
    are all parents, and `changes` holds, by the children's depth, by how much each parent's best
    child scores above it, in logits; `sums` are their exact sums (`_exact`), `means` their means.
    """

    heaps: dict[int, list[tuple[float, NodeId]]] = field(default_factory=lambda: defaultdict(list))
    changes: dict[int, dict[NodeId, float]] = field(default_factory=lambda: defaultdict(dict))
    sums: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    means: dict[int, float] = field(default_factory=dict)
    round: int = 0
    fresh: list[NodeId] = field(default_factory=list)
    close: list[Close] = field(default_factory=list)
    expanded: set[NodeId] = field(default_factory=set)

    @property
    def made(self) -> int:
        """The expansions made; the root's own is not counted."""
        return len(self.expanded) - 1

    def note(self, depth: int, parent: NodeId, change: float) -> None:
        """Note by how much the best of a parent's children, at that depth, scores above it."""
        known = self.changes[depth]
        self.sums[depth] += _exact(change) - _exact(known.get(parent, 0.0))
        known[parent] = change
        self.means[depth] = self.sums[depth] / _UNIT / len(known)

    def usual(self) -> dict[int, float]:
        """Return by how many logits a path of each depth usually scores above its first step."""
        found, total = {}, 0.0
        for depth in sorted(self.heaps):
            total += self.means.get(depth, 0.0)
            found[depth] = total
        return found


class BestFirst(StepwiseSearch):
    """Expand the best open paths of the whole tree, `batch` of them at a time.

    Nothing is thrown away because of its level: when the steps behind a promising path turn out
    bad, the search goes back to the best path it left behind. Best-first tree search for language
    models: Koh et al., arXiv 2407.01476 §3.2 (there 20 expansions of 5 children, one at a time).

    A path's priority is its path score. By that alone shallow paths win for ever where scores fall
    along a path, be it that early steps are scored high. So every second expansion goes to the path
    that is best for its depth: by the logit of its path score, less what the best continuations of
    the paths so far have gained or lost on the way to that depth. If all expansions are made and no
    path has finished, the whole rests of the best `batch` are asked for, one each. They may go
    beyond `max_depth`.

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
        best, top = self._best(tree, queue, {c.node for c in close})
        expand = tuple(Expand(node, self.expand, tree.child_count(node)) for node in best)
        reason = ""
        if queue.made >= self.expansions or not best:
            reason = f"{self.expansions} expansions made" if best else "no open path is left"
            rests = [e for e in expand if not was_completed(tree, e.node)]
            if rests and not tree.finished():
                expand = tuple(rest_of(replace(e, count=1)) for e in rests)
                return Plan(expand=expand, close=tuple(close))
        elif self.stop is not None:
            better = self._beating(tree, tree.finished(), -top[0], tree[top[1]])
            if better >= self.stop:
                reason = f"{better} finished paths beat every open one"
        if reason:
            return Plan(close=tuple(close), finish=reason)
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
                    heapq.heappush(queue.heaps[tree.depth(leaf.id)], (-score, leaf.id))
                self._note_change(tree, queue, parent)
        return queue

    def _note_change(self, tree: SearchTree, queue: _Queue, parent: NodeId) -> None:
        late = parent == tree.root_id or tree[parent].score_reason  # see `_scores`
        above = None if late else self.value(tree, parent)
        if above is None:
            return
        known = [
            value
            for child in candidates(tree, parent)
            if child.status != "failed"
            and not child.score_reason
            and (value := self.value(tree, child.id)) is not None
        ]
        if known:
            queue.note(tree.depth(parent) + 1, parent, logit(max(known)) - logit(above))

    def _best(
        self, tree: SearchTree, queue: _Queue, gone: set[NodeId]
    ) -> tuple[list[NodeId], tuple[float, NodeId]]:
        """Return the paths to expand next, and the open one of the highest score, negated first.

        They are at most a batch, and no more than may be expanded unless none may; they stay in
        the queue.
        """
        best: list[tuple[int, tuple[float, NodeId]]] = []
        tops: dict[int, tuple[float, NodeId]] = {}
        usual, left = queue.usual(), self.expansions - queue.made
        taken = set(gone)  # a path that was ranked again stands in its heap twice

        def look(depth: int) -> None:
            heap = queue.heaps[depth]
            while heap and (heap[0][1] in taken or not _is_open(tree, heap[0][1])):
                heapq.heappop(heap)
            if heap:
                tops[depth] = heap[0]

        for depth in queue.heaps:
            look(depth)
        top = min(tops.values(), default=(0.0, tree.root_id))
        for place in range(self.batch if left <= 0 else min(self.batch, left)):
            if not tops:
                break
            if (queue.made + place) % 2:
                depth = min(tops, key=lambda d: (usual[d] - logit(-tops[d][0]), tops[d][1]))
            else:
                depth = min(tops, key=lambda d: tops[d])
            best.append((depth, tops.pop(depth)))
            taken.add(best[-1][1][1])
            heapq.heappop(queue.heaps[depth])
            look(depth)
        for depth, entry in best:
            heapq.heappush(queue.heaps[depth], entry)
        return [node for _, (_, node) in best], top


_UNIT = 1 << 1074  # every float is a whole multiple of 1 / _UNIT


def _exact(value: float) -> int:
    """Return a number in units in which sums are exact, whatever their order."""
    numerator, denominator = value.as_integer_ratio()
    return numerator * (_UNIT // denominator)


def _is_open(tree: SearchTree, node: NodeId) -> bool:
    return tree[node].status == "open" and not proposed(tree, node)


_CACHE: WeakKeyDictionary[SearchTree, dict[BestFirst, _Queue]] = WeakKeyDictionary()
