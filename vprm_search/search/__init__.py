"""Strategies and selectors: pure rules over the tree (no I/O, clock, global RNG or async)."""

from vprm_search.search.beam import BeamSearch
from vprm_search.search.best_of_n import BestOfN
from vprm_search.search.outcome import conclude
from vprm_search.search.plan import Close, Expand, Plan, Strategy
from vprm_search.search.selectors import BestScore, MajorityVote, Selection, Selector, WeightedVote

__all__ = [
    "BeamSearch",
    "BestOfN",
    "BestScore",
    "Close",
    "Expand",
    "MajorityVote",
    "Plan",
    "Selection",
    "Selector",
    "Strategy",
    "WeightedVote",
    "conclude",
]
