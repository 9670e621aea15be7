"""Diverse verifier tree search: independent beams below different first steps."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from weakref import WeakKeyDictionary

from pydantic import Field

from vprm_search.search.beam import BeamSearch
from vprm_search.search.plan import Close, Expand, Plan
from vprm_search.search.rebase import even_shares
from vprm_search.search.stepwise import candidates, duplicates
from vprm_search.tree import SearchTree
from vprm_search.types import NodeId, NodeRecord


class DVTS(BeamSearch):
    """Run `subtrees` independent beams, so that one promising start cannot take every slot.

    The distinct first steps are dealt to the subtrees in turn; from then on a subtree is a
    `BeamSearch` of its own with the other options here, and plans from its own nodes alone: with a
    server as the policy no subtree waits for another (`PartwiseStrategy`), and rounds are counted
    in each. If there are fewer distinct first steps than subtrees, the missing subtrees lend their
    width to the others. Only finished paths are candidates for the answer. With one subtree it is
    `BeamSearch`.

    Source: Beeching, Tunstall and Rush, "Scaling test-time compute with open models" (2024), where
    `width` is 1 and `expand` 4; wider subtrees as in arXiv 2505.17373 (value-guided search, 2 paths
    in each of 16 subtrees).

    The options not listed are those of `BeamSearch`.

    Args:
        subtrees: independent beams. Default: 4.
        width: open paths kept in each subtree. Default: 1.
    """

    subtrees: int = Field(default=4, ge=1, le=256)
    width: int = Field(default=1, ge=1, le=256)

    def plan(self, tree: SearchTree) -> Plan:
        """Refill empty slots, else let every subtree prune and expand on its own."""
        return self.plan_parts(tree, frozenset())

    def plan_parts(self, tree: SearchTree, busy: frozenset[NodeId]) -> Plan:
        """Plan for the subtrees in which nothing is under way; dealt first steps are one part."""
        root = tree.root_id
        if not tree.child_count(root):
            first = Expand(root, self._target(tree, root), round=1)
            return Plan() if root in busy else Plan(expand=(first,))
        if root in busy:
            return Plan()
        merged = duplicates(tree, [root], self.same_step) if self.dedup else []
        last = _first_round(tree)
        again = self._ask(tree, root, at=last + 1)
        if again.count:
            return Plan(expand=(again,), close=tuple(merged))
        dealt = self._deal(tree, {close.node for close in merged})
        return self._plan_idle(tree, Subtrees(tree, dealt, last, busy), merged)

    def _plan_idle(self, tree: SearchTree, parts: Subtrees, merged: list[Close]) -> Plan:
        widths = even_shares(self.subtrees * self.width, parts.count)
        gone = {close.node for close in merged}
        expand: list[Expand] = []
        close, reason = list(merged), ""
        for number in parts.idle:
            planned = self._plan_part(tree, parts, number, widths[number], gone)
            expand += planned.expand
            close += planned.close
            reason = planned.finish
        if expand or len(parts.idle) < parts.count:
            return Plan(expand=tuple(expand), close=tuple(close))
        ended = reason if parts.count == 1 else f"all {parts.count} subtrees ended"
        return Plan(close=tuple(close), finish=ended)

    def _plan_part(
        self, tree: SearchTree, parts: Subtrees, number: int, width: int, gone: set[NodeId]
    ) -> Plan:
        """Return what `BeamSearch` plans for one subtree; its `finish` ends the subtree only."""
        at, parents = parts.last_level(number)
        merged = duplicates(tree, parents, self.same_step) if self.dedup else []
        asked = (self._ask(tree, parent, at=at + 1) for parent in parents)
        refill = tuple(expand for expand in asked if expand.count)
        if refill:
            return Plan(expand=refill, close=tuple(merged))
        gone = gone | {close.node for close in merged}
        leaves = [leaf for leaf in parts.leaves[number] if leaf.id not in gone]
        finished = [record for record in parts.finished[number] if record.id not in gone]
        keep, close, reason = self.advance(tree, leaves, finished, width)
        if not reason:
            expand = tuple(Expand(leaf.id, self.expand, round=at + 1) for _, leaf in keep)
            return Plan(expand=expand, close=(*merged, *close))
        # what a subtree leaves behind is put aside at once: the others go on
        why = f"subtree {number}: {reason}"
        left = [Close(leaf.id, why, cause="not_needed") for _, leaf in keep]
        return Plan(close=(*merged, *close, *(left if parts.count > 1 else ())), finish=reason)

    def _deal(self, tree: SearchTree, gone: set[NodeId]) -> list[list[NodeId]]:
        """Return the first steps of every subtree: every n-th distinct one."""
        first = [child.id for child in candidates(tree, tree.root_id) if _lives(child, gone)]
        count = max(1, min(self.subtrees, len(first)))
        return [first[number::count] for number in range(count)]

    def _target(self, tree: SearchTree, parent: NodeId) -> int:
        if parent == tree.root_id:
            return self.subtrees * self.width * self.expand
        return self.expand


def _lives(child: NodeRecord, gone: Collection[NodeId]) -> bool:
    return child.status != "failed" and child.id not in gone and child.merged_into is None


def _first_round(tree: SearchTree) -> int:
    """Return the last round in which first steps were proposed; 0 if only whole rests were."""
    first = (child.round for child in tree.children(tree.root_id) if not child.is_aside)
    return max(first, default=0)


_first_steps: WeakKeyDictionary[SearchTree, dict[NodeId, NodeId]] = WeakKeyDictionary()
"""Per tree, the first step above every node asked for so far: it never changes."""


class Subtrees:
    """The subtrees of a tree: which are idle, their open leaves and their finished paths.

    `first_steps[n]` are the nodes below the root that subtree n grows from, `busy` the nodes whose
    children are being proposed.
    """

    def __init__(
        self,
        tree: SearchTree,
        first_steps: Sequence[Sequence[NodeId]],
        first_round: int,
        busy: Collection[NodeId],
    ) -> None:
        self._tree = tree
        self._first_round = first_round
        self._number = {node: n for n, nodes in enumerate(first_steps) for node in nodes}
        self.count = len(first_steps)
        working = {self._part(node) for node in busy}
        self.idle = [n for n in range(self.count) if n not in working]
        self.leaves = self._by_part(tree.open_leaves())
        self.finished = self._by_part(tree.finished())
        self._levels = self._last_levels()

    def last_level(self, number: int) -> tuple[int, list[NodeId]]:
        """Return a subtree's last round and the nodes that were expanded in it, by id."""
        at, parents = self._levels.get(number, (self._first_round, set()))
        return at, sorted(parents)

    def _part(self, node: NodeId) -> int | None:
        return self._number.get(_first_step(self._tree, node))

    def _by_part(self, records: Iterable[NodeRecord]) -> list[list[NodeRecord]]:
        found: list[list[NodeRecord]] = [[] for _ in range(self.count)]
        for record in records:
            number = self._part(record.id)
            if number is not None:
                found[number].append(record)
        return found

    def _last_levels(self) -> dict[int, tuple[int, set[NodeId]]]:
        """Walk back over the rounds until every idle subtree has shown its last one.

        A round that only redid drafts belongs to the one before it.
        """
        levels: dict[int, tuple[int, set[NodeId]]] = {}
        waiting = set(self.idle)
        for at in range(self._tree.rounds, self._first_round, -1):
            complete = set()
            for record in self._tree.round_nodes(at):
                number = self._part(record.id)
                if number not in waiting or record.is_aside:
                    continue
                levels.setdefault(number, (at, set()))[1].add(record.parent or "")
                if not record.role:
                    complete.add(number)
            waiting -= complete
            if not waiting:
                break
        return levels


def _first_step(tree: SearchTree, node: NodeId) -> NodeId:
    """Return the child of the root on the way to `node`."""
    known = _first_steps.setdefault(tree, {})
    climbed = []
    while node not in known:
        parent = tree[node].parent
        if parent is None or parent == tree.root_id:
            known[node] = node
            break
        climbed.append(node)
        node = parent
    for below in climbed:
        known[below] = known[node]
    return known[node]
