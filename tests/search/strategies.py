"""Every strategy by name, small enough for tests; each entry makes a new object."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vprm_search.search import (
    DVTS,
    MCTS,
    REBASE,
    AutoSearch,
    BeamSearch,
    BestFirst,
    BestOfN,
    Cascade,
    Lookahead,
    ParticleFilter,
    Pruning,
    Strategy,
    loose_step,
)

EVERY: dict[str, Callable[[], Strategy]] = {
    "auto": lambda: AutoSearch(n=5, max_depth=6),
    "best-of-n": lambda: BestOfN(6),
    "best-of-n-adaptive": lambda: BestOfN(9, confidence=0.8, good_enough=0.95, min_n=3, wave=2),
    "beam": lambda: BeamSearch(width=2, expand=3, max_depth=6),
    "beam-annealed": lambda: BeamSearch(width=4, expand=2, anneal=1, min_width=2, max_depth=6),
    "beam-pruned": lambda: BeamSearch(
        width=3, expand=2, max_depth=6, same_step=loose_step, pruning=Pruning(below=0.3, margin=0.4)
    ),
    "dvts": lambda: DVTS(subtrees=3, expand=2, max_depth=6),
    "rebase": lambda: REBASE(width=6, max_depth=6),
    "rebase-paper": lambda: REBASE(width=6, temperature=0.2, max_depth=6),
    "rebase-refill": lambda: REBASE(width=6, refill=2, max_depth=6),
    "particles": lambda: ParticleFilter(particles=6, ess_threshold=0.5, max_depth=6),
    "particles-probability": lambda: ParticleFilter(
        particles=6, ess_threshold=1.0, weight="probability", max_depth=6
    ),
    "best-first": lambda: BestFirst(batch=2, expand=3, expansions=12, max_depth=6),
    "mcts": lambda: MCTS(simulations=6, batch=2, expand=2, root_expand=4, max_depth=6),
    "mcts-one-step": lambda: MCTS(
        simulations=9, batch=3, expand=3, to_end=False, prior_temperature=0.3, max_depth=6
    ),
    "lookahead-beam": lambda: Lookahead(strategy=BeamSearch(width=2, expand=2, max_depth=6)),
    "lookahead-particles": lambda: Lookahead(
        strategy=ParticleFilter(particles=4, max_depth=5), steps=2, rollouts=2
    ),
    "lookahead-mcts": lambda: Lookahead(strategy=MCTS(simulations=4, batch=2, max_depth=5)),
    "cascade": lambda: Cascade(threshold=0.6),
    "cascade-dvts": lambda: Cascade(strategy=DVTS(subtrees=2, expand=3, max_depth=6)),
    "cascade-best-first": lambda: Cascade(strategy=BestFirst(batch=2, expand=2, expansions=8)),
    "cascade-lookahead": lambda: Cascade(
        strategy=Lookahead(strategy=REBASE(width=4, max_depth=5)), threshold=0.5
    ),
}


def inner(strategy: Any) -> Any:
    """Return the strategy that decides, inside a cascade or a lookahead or both."""
    while hasattr(strategy, "strategy"):
        strategy = strategy.strategy
    return strategy
