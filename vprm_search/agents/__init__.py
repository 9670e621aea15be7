"""Agents: a reward model inside `create_agent`, and searches over trajectories of any agent."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vprm_search.agents.acting import ToolPolicy
    from vprm_search.agents.decision_model import VPRMDecisionModel
    from vprm_search.agents.judging import create_async_vprm_evaluator, create_vprm_evaluator
    from vprm_search.agents.middleware import ProcessRewardMiddleware
    from vprm_search.agents.search import create_agent_search
    from vprm_search.agents.turns import StepOf, turn_as_step

_HOMES = {
    "ProcessRewardMiddleware": "middleware",
    "StepOf": "turns",
    "ToolPolicy": "acting",
    "create_agent_search": "search",
    "turn_as_step": "turns",
    "VPRMDecisionModel": "decision_model",
    "create_async_vprm_evaluator": "judging",
    "create_vprm_evaluator": "judging",
}

__all__ = [
    "ProcessRewardMiddleware",
    "StepOf",
    "ToolPolicy",
    "VPRMDecisionModel",
    "create_agent_search",
    "create_async_vprm_evaluator",
    "create_vprm_evaluator",
    "turn_as_step",
]


def __getattr__(name: str) -> Any:
    """Load a name on first use: the middleware needs LangChain's agents, the search does not."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)
