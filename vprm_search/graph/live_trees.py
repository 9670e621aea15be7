"""Search trees kept alive between the supersteps of a process, so that none is built twice.

A tree is only ever used for a state whose records equal those it was made of, so nothing depends
on this memory: after a restart, a fork or an edit of the state the tree is built anew.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from vprm_search import ids
from vprm_search.graph.state import RecordTable, tree_of_state
from vprm_search.tree import SearchTree
from vprm_search.types import Problem

_KEPT_NODES = 50_000


class LiveTrees:
    """The last used trees, up to 50,000 nodes in all; safe to use from several threads."""

    def __init__(self) -> None:
        self._trees: OrderedDict[str, tuple[RecordTable, SearchTree]] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, state: Mapping[str, Any], thread: str) -> SearchTree:
        """Return the tree of `state` for the caller alone, who may change it.

        `thread` tells equal searches of several conversations apart. Comparing the tables is
        cheap: within one process their values are the same objects.
        """
        with self._lock:
            table, tree = self._trees.pop(_key(state, thread), (None, None))
        fits = (
            tree is not None
            and tree.problem.to_json() == state.get("search_problem")
            and tree.run_seed == state.get("search_run_seed")
            and table == state.get("search_nodes")
        )
        return tree if fits and tree is not None else tree_of_state(state)

    def give(
        self, state: Mapping[str, Any], thread: str, update: RecordTable, tree: SearchTree
    ) -> None:
        """Keep `tree` for the state that `update` will make of `state`."""
        table = {**state.get("search_nodes", {}), **update}
        key = _key(state, thread)
        with self._lock:
            self._trees[key] = (table, tree)
            self._trees.move_to_end(key)
            spare = sum(len(kept) for _, kept in self._trees.values()) - _KEPT_NODES
            while spare > 0 and len(self._trees) > 1:
                spare -= len(self._trees.popitem(last=False)[1][1])


def _key(state: Mapping[str, Any], thread: str) -> str:
    problem = Problem.from_json(state["search_problem"])
    return f"{thread} {ids.root_id(problem, state['search_run_seed'])}"
