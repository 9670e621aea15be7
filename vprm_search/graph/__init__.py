"""LangGraph: the search graph, the verifier node, and searches without a graph."""

from vprm_search.lazy import names_in_stub

__getattr__, __dir__, __all__ = names_in_stub(__name__)
