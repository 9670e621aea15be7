"""Agents: a reward model inside `create_agent`, and searches over trajectories of any agent."""

from vprm_search.lazy import names_in_stub

__getattr__, __dir__, __all__ = names_in_stub(__name__)
