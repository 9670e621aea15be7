"""Which open paths are worth the context they keep in memory."""

from __future__ import annotations

from collections.abc import Mapping

from vprm_search.tree import SearchTree
from vprm_search.types import NodeId


def worth_keeping(tree: SearchTree, worth: Mapping[NodeId, float], cost: float) -> set[NodeId]:
    """Return the leaves S that maximise Σ worth(S) − cost * |nodes on paths to S| / |all nodes|.

    `worth` are the shares of the open leaves; "all nodes" are those on the paths to any of them.
    This is the cost model of ETS (Hooper et al., arXiv 2502.13575 §4) without its term for
    semantic coverage, which merging near-duplicate siblings stands for here. ETS hands it to an
    integer program; on a tree it is a closure problem that one pass from the leaves up solves
    exactly: a subtree is kept if it is worth more than it costs.
    """
    parents: dict[NodeId, NodeId | None] = {}
    depth: dict[NodeId, int] = {}
    for leaf in worth:
        for place, record in enumerate(tree.path(leaf)):
            parents[record.id], depth[record.id] = record.parent, place
    each = cost / len(parents) if parents else 0.0
    value = {node: worth.get(node, 0.0) - each for node in parents}
    for node in sorted(parents, key=lambda n: -depth[n]):  # children before their parents
        above = parents[node]
        if above in value and value[node] > 0.0:
            value[above] += value[node]
    kept: set[NodeId] = set()
    for node in sorted(parents, key=lambda n: depth[n]):
        if value[node] > 0.0 and (parents[node] not in value or parents[node] in kept):
            kept.add(node)
    return kept & set(worth)
