"""The independent subtrees of a search, each seen from its own nodes alone."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from weakref import WeakKeyDictionary

from vprm_search.tree import SearchTree
from vprm_search.types import NodeId, NodeRecord

_first_steps: WeakKeyDictionary[SearchTree, dict[NodeId, NodeId]] = WeakKeyDictionary()
"""Per tree, the first step above every node asked for so far: it never changes."""


class Subtrees:
    """The subtrees of a tree: which are idle, their open leaves and their finished paths.

    `first_steps[n]` are the nodes below the root that subtree n grows from, `busy` the nodes whose
    children are being proposed, `waiting` the subtrees whose first steps are.
    """

    def __init__(
        self,
        tree: SearchTree,
        first_steps: Sequence[Sequence[NodeId]],
        first_round: int,
        busy: Collection[NodeId],
        waiting: Collection[int] = (),
    ) -> None:
        self._tree = tree
        self._first_round = first_round
        self._number = {node: n for n, nodes in enumerate(first_steps) for node in nodes}
        self.count = len(first_steps)
        working = {self._part(node) for node in busy} | set(waiting)
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
                if number not in waiting or record.role == "lookahead":
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
