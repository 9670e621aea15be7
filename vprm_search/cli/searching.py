"""Run a search through the LangGraph graph and show how far it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vprm_search.images.store import MemoryImageStore
from vprm_search.types import ImageData, Policy, SearchResult, StepScorer

if TYPE_CHECKING:
    from vprm_search.budget import Budget
    from vprm_search.search import Selector, Strategy
    from vprm_search.tree import SearchTree

OnEvent = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Searched:
    """A search that has ended."""

    tree: SearchTree
    result: SearchResult


class Searcher:
    """One compiled search graph, asked one question at a time. Images stay in memory."""

    def __init__(
        self,
        policy: Policy | Mapping[str, Policy],
        scorer: StepScorer,
        strategy: Strategy,
        selector: Selector,
        *,
        budget: Budget | None = None,
        run_seed: int = 0,
    ) -> None:
        from vprm_search.graph import create_search_graph

        self._graph = create_search_graph(
            policy=policy,
            scorer=scorer,
            strategy=strategy,
            selector=selector,
            budget=budget,
            run_seed=run_seed,
            image_store=MemoryImageStore(),
        ).compile()

    def __call__(
        self,
        question: str,
        images: Sequence[ImageData],
        *,
        system: str = "",
        on_event: OnEvent | None = None,
    ) -> Searched:
        """Search for the answer; `on_event` gets the events of the graph's custom stream."""
        from langchain_core.messages import SystemMessage

        from vprm_search.graph import tree_of_state
        from vprm_search.images.messages import image_message

        messages = [SystemMessage(system)] if system else []
        state: dict[str, Any] = {}
        asked = {"messages": [*messages, image_message(question, *images)]}
        for mode, chunk in self._graph.stream(asked, stream_mode=["custom", "values"]):
            if mode == "values":
                state = chunk
            elif on_event is not None:
                on_event(chunk)
        result = SearchResult.from_json(state["search_result"])
        return Searched(tree_of_state(state), result)
