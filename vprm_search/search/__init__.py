"""Strategies and selectors: pure rules over the tree (no I/O, clock, global RNG or async)."""

from vprm_search.search.auto import Advice, AutoSearch
from vprm_search.search.beam import BeamSearch
from vprm_search.search.best_first import BestFirst
from vprm_search.search.best_of_n import BestOfN
from vprm_search.search.cascade import Cascade
from vprm_search.search.dvts import DVTS
from vprm_search.search.lookahead import Lookahead
from vprm_search.search.mcts import MCTS
from vprm_search.search.outcome import conclude
from vprm_search.search.particle_filter import ParticleFilter
from vprm_search.search.plan import Close, Expand, Plan, Pruning, Strategy, needs_scores
from vprm_search.search.rebase import REBASE
from vprm_search.search.selectors import (
    BestScore,
    HybridVote,
    Knockout,
    MajorityVote,
    Selection,
    Selector,
    WeightedVote,
)
from vprm_search.search.stepwise import StepKey, exact_step, loose_step

__all__ = [
    "DVTS",
    "MCTS",
    "REBASE",
    "Advice",
    "AutoSearch",
    "BeamSearch",
    "BestFirst",
    "BestOfN",
    "BestScore",
    "Cascade",
    "Close",
    "Expand",
    "HybridVote",
    "Knockout",
    "Lookahead",
    "MajorityVote",
    "ParticleFilter",
    "Plan",
    "Pruning",
    "Selection",
    "Selector",
    "Strategy",
    "StepKey",
    "WeightedVote",
    "conclude",
    "exact_step",
    "loose_step",
    "needs_scores",
]
