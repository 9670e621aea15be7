"""LangGraph: the search graph, the verifier node, and searches without a graph."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vprm_search.graph.light_tracers import without_pictures
    from vprm_search.graph.review import Review
    from vprm_search.graph.run import SearchRun, arun_search, run_jobs, run_search
    from vprm_search.graph.search_graph import (
        CompiledSearchGraph,
        SearchGraph,
        create_search_graph,
    )
    from vprm_search.graph.state import SearchState, search_done, tree_of_state
    from vprm_search.graph.verifier import (
        VerdictsState,
        VerifierNode,
        VerifierState,
        create_verifier_node,
    )

_HOMES = {
    "CompiledSearchGraph": "search_graph",
    "Review": "review",
    "SearchGraph": "search_graph",
    "SearchRun": "run",
    "SearchState": "state",
    "VerdictsState": "verifier",
    "VerifierNode": "verifier",
    "VerifierState": "verifier",
    "arun_search": "run",
    "create_search_graph": "search_graph",
    "create_verifier_node": "verifier",
    "run_jobs": "run",
    "run_search": "run",
    "search_done": "state",
    "tree_of_state": "state",
    "without_pictures": "light_tracers",
}

__all__ = [
    "CompiledSearchGraph",
    "Review",
    "SearchGraph",
    "SearchRun",
    "SearchState",
    "VerdictsState",
    "VerifierNode",
    "VerifierState",
    "arun_search",
    "create_search_graph",
    "create_verifier_node",
    "run_jobs",
    "run_search",
    "search_done",
    "tree_of_state",
    "without_pictures",
]


def __getattr__(name: str) -> Any:
    """Load a name on first use: LangGraph takes a second, and `run_search` needs none of it."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)
