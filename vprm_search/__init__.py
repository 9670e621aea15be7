"""Reward-guided search for multimodal agents, as LangGraph nodes around a process reward model.

Everything a user needs is named here. A name is loaded when it is first used, so importing the
package loads neither torch nor LangGraph.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vprm_search.agents import ProcessRewardMiddleware, create_agent_search
    from vprm_search.budget import Budget
    from vprm_search.compare.preflight import PreflightReport, preflight
    from vprm_search.errors import VprmError
    from vprm_search.graph import (
        VerifierState,
        arun_search,
        create_search_graph,
        create_verifier_node,
        run_search,
        tree_of_state,
    )
    from vprm_search.guided.chat_model import GuidedChatModel
    from vprm_search.images import DiskImageStore, image_message
    from vprm_search.policy.chat_model_policy import ChatModelPolicy
    from vprm_search.scoring.judge_scorer import JudgeScorer
    from vprm_search.scoring.score_cache import CachedScorer
    from vprm_search.scoring.transformers_scorer import TransformersScorer
    from vprm_search.scoring.vllm.transport import VllmOptions
    from vprm_search.scoring.vllm_scorer import VllmScorer
    from vprm_search.scoring.wrappers import OutcomeScorer
    from vprm_search.search import (
        DVTS,
        MCTS,
        REBASE,
        AutoSearch,
        BeamSearch,
        BestFirst,
        BestOfN,
        BestScore,
        Cascade,
        HybridVote,
        Knockout,
        Lookahead,
        MajorityVote,
        ParticleFilter,
        Pruning,
        Selector,
        Strategy,
        WeightedVote,
    )
    from vprm_search.tree import SearchTree
    from vprm_search.types import Policy, Problem, SearchResult, StepScorer, Usage

__version__ = "0.1.0"

__all__ = [
    # LangGraph, and searches without a graph
    "create_search_graph",
    "create_verifier_node",
    "run_search",
    "arun_search",
    "tree_of_state",
    "VerifierState",
    # agents
    "ProcessRewardMiddleware",
    "create_agent_search",
    # in the place of a chat model
    "GuidedChatModel",
    # how to search
    "AutoSearch",
    "BeamSearch",
    "BestFirst",
    "BestOfN",
    "Cascade",
    "DVTS",
    "Lookahead",
    "MCTS",
    "ParticleFilter",
    "REBASE",
    "Pruning",
    # how to choose
    "BestScore",
    "HybridVote",
    "Knockout",
    "MajorityVote",
    "WeightedVote",
    # when to stop
    "Budget",
    # is the scorer any help
    "preflight",
    "PreflightReport",
    # models
    "ChatModelPolicy",
    "TransformersScorer",
    "VllmScorer",
    "VllmOptions",
    "JudgeScorer",
    "OutcomeScorer",
    "CachedScorer",
    # images
    "image_message",
    "DiskImageStore",
    # data
    "Problem",
    "SearchResult",
    "SearchTree",
    "Usage",
    "VprmError",
    # seams to implement
    "Policy",
    "Selector",
    "StepScorer",
    "Strategy",
]

_HOMES = {
    "create_search_graph": "vprm_search.graph",
    "create_verifier_node": "vprm_search.graph",
    "run_search": "vprm_search.graph",
    "arun_search": "vprm_search.graph",
    "tree_of_state": "vprm_search.graph",
    "VerifierState": "vprm_search.graph",
    "ProcessRewardMiddleware": "vprm_search.agents",
    "create_agent_search": "vprm_search.agents",
    "GuidedChatModel": "vprm_search.guided.chat_model",
    "AutoSearch": "vprm_search.search",
    "BeamSearch": "vprm_search.search",
    "BestFirst": "vprm_search.search",
    "BestOfN": "vprm_search.search",
    "Cascade": "vprm_search.search",
    "DVTS": "vprm_search.search",
    "Lookahead": "vprm_search.search",
    "MCTS": "vprm_search.search",
    "ParticleFilter": "vprm_search.search",
    "REBASE": "vprm_search.search",
    "Pruning": "vprm_search.search",
    "BestScore": "vprm_search.search",
    "HybridVote": "vprm_search.search",
    "Knockout": "vprm_search.search",
    "MajorityVote": "vprm_search.search",
    "WeightedVote": "vprm_search.search",
    "Budget": "vprm_search.budget",
    "preflight": "vprm_search.compare.preflight",
    "PreflightReport": "vprm_search.compare.preflight",
    "ChatModelPolicy": "vprm_search.policy.chat_model_policy",
    "TransformersScorer": "vprm_search.scoring.transformers_scorer",
    "VllmScorer": "vprm_search.scoring.vllm_scorer",
    "VllmOptions": "vprm_search.scoring.vllm.transport",
    "JudgeScorer": "vprm_search.scoring.judge_scorer",
    "OutcomeScorer": "vprm_search.scoring.wrappers",
    "CachedScorer": "vprm_search.scoring.score_cache",
    "image_message": "vprm_search.images",
    "DiskImageStore": "vprm_search.images",
    "Problem": "vprm_search.types",
    "SearchResult": "vprm_search.types",
    "SearchTree": "vprm_search.tree",
    "Usage": "vprm_search.types",
    "VprmError": "vprm_search.errors",
    "Policy": "vprm_search.types",
    "Selector": "vprm_search.search",
    "StepScorer": "vprm_search.types",
    "Strategy": "vprm_search.search",
}

_EXTRAS = dict.fromkeys(("torch", "transformers", "tokenizers", "safetensors", "numpy"), "local")
_EXTRAS["langchain"] = "agents"


def __getattr__(name: str) -> Any:
    """Load a public name on first use. Raises `AttributeError` for any other name."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(home), name)
    except ModuleNotFoundError as error:
        raise _explained(error) from error
    globals()[name] = value
    return value


def _explained(error: ModuleNotFoundError) -> ImportError:
    """Return an error that says which extra brings the missing library."""
    from vprm_search.errors import MissingDependencyError

    package = (error.name or "").partition(".")[0]
    extra = _EXTRAS.get(package)
    return error if extra is None else MissingDependencyError(package, extra)


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted({*globals(), *__all__})
