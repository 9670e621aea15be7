"""A policy that is a known random process, so that Monte Carlo labels have known means.

A solution is four steps "s1" … "s4"; the last one carries the answer. Each step is a slip ("slip")
with a fixed chance, drawn from the child's seed; a solution is right when no step slipped.
"""

from __future__ import annotations

import random

from vprm_search.labelling.monte_carlo import LabelTask
from vprm_search.testing import ScriptedPolicy
from vprm_search.types import Problem, Proposal, ProposeRequest

LENGTH = 4


def task(number: int, answer: str = "right") -> LabelTask:
    return LabelTask(f"p{number}", Problem(f"question {number}"), answer)


def is_right(response: str, answer: str) -> bool:
    return response.rsplit(" ", 1)[-1] == answer


class SlippingPolicy(ScriptedPolicy):
    """Slips with chance `slip` per step; breaks after `dead_after` requests, `cut`s its ends."""

    def __init__(self, slip: float, dead_after: int | None = None, cut: bool = False) -> None:
        super().__init__(self.proposal)
        self.slip, self.dead_after, self.cut = slip, dead_after, cut

    def proposal(self, request: ProposeRequest, seed: int) -> Proposal:
        if self.dead_after is not None and len(self.asked) > self.dead_after:
            raise ConnectionError("the policy's server went away")
        rng = random.Random(seed)
        bad = any("slip" in step for step in request.steps)
        written: list[str] = []
        for number in range(len(request.steps) + 1, LENGTH + 1):
            slips = rng.random() < self.slip
            bad = bad or slips
            written.append(f"s{number} slip" if slips else f"s{number}")
        if self.cut:
            return Proposal("\n\n".join(written[:-1]), "length")
        text = "\n\n".join(written)
        return Proposal(f"{text} ends {'wrong' if bad else 'right'}", "stop")
