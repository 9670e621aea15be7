"""Bring a scorer's kept context back to where a killed process left it.

A scorer that keeps keys and values between rounds computes a new step on top of what the earlier
rounds left behind. Computed anew in one piece, the same prefix gives scores that differ in their
last bits. Asking for the earlier rounds again, in their order, makes the very same passes, so a
resumed search goes on byte for byte as if it had never stopped.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import replace

from vprm_search.graph.job import Job
from vprm_search.graph.rules import SearchRules
from vprm_search.graph.score_phase import score
from vprm_search.tree import SearchTree
from vprm_search.types import NodeId, StepScorer

_KNOWN_SEARCHES = 4096


class ScorerMemory:
    """Knows which searches this process has scored from their first round on."""

    def __init__(self, scorer: StepScorer) -> None:
        self._scorer = scorer
        self._followed: OrderedDict[NodeId, int] = OrderedDict()
        self._lock = threading.Lock()

    async def restore(self, job: Job, rules: SearchRules) -> int:
        """Score the rounds before the current one again if this process has not; return how many.

        Only for scorers with a true `has_prefix_cache`. The replies are thrown away: the records
        hold the scores already. Raises `ScorerError` as `score` does.
        """
        if not getattr(self._scorer, "has_prefix_cache", False):
            return 0
        last = job.tree.rounds
        with self._lock:
            known = self._followed.get(job.tree.root_id, 0)
        missing = range(1, last) if known < last - 1 else range(0)
        if missing:
            await self._replay(job, rules, missing)
        with self._lock:
            self._followed[job.tree.root_id] = last
            self._followed.move_to_end(job.tree.root_id)
            while len(self._followed) > _KNOWN_SEARCHES:
                self._followed.popitem(last=False)
        return len(missing)

    async def _replay(self, job: Job, rules: SearchRules, rounds: range) -> None:
        """Score `rounds` on a tree of their own, by the code that scored them first."""
        copy = SearchTree(job.tree.problem, job.tree.run_seed)
        for number in rounds:
            copy.merge(
                replace(record, score=None, score_reason="", path_scores={}, scored_tokens=0)
                for record in job.tree.round_nodes(number)
            )
            await score([Job(copy, job.images)], self._scorer, rules)
