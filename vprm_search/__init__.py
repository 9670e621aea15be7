"""Reward-guided search for multimodal agents, as LangGraph nodes around a process reward model.

Everything a user needs is named here. A name is loaded when it is first used, so importing the
package loads neither torch nor LangGraph.
"""

from vprm_search.lazy import names_in_stub

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = names_in_stub(__name__)
