"""Best-of-N: N independent whole solutions; the selector does the rest."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from vprm_search.aggregate import aggregation
from vprm_search.answers import answer_classes, choices_of
from vprm_search.search.plan import Expand, Plan
from vprm_search.tree import SearchTree


class BestOfN(BaseModel):
    """Sample up to `n` whole solutions from the policy, by default all of them in one round.

    Equal samples stay separate candidates (they are votes); a failed call costs its candidates
    and is not asked again. Source: VisualPRM, arXiv 2503.10291 §4.2 (N = 8 … 128).

    With `confidence` or `good_enough` it samples in waves and stops early:

    * `confidence` (adaptive consistency, Aggarwal et al., arXiv 2305.11860 §3; the paper uses
      0.95): with v₁ and v₂ votes for the two most frequent answers, stop when
      P(Beta(v₁ + 1, v₂ + 1) > ½) exceeds it: another sample is then unlikely to change the answer.
    * `good_enough`: stop when a finished path scores at least this. Only worth it with scores
      that are calibrated for the policy.

    Args:
        n: the most solutions. Default: 8.
        confidence: see above; None: off. Default: None.
        good_enough: see above; None: off. Default: None.
        min_n: solutions of the first wave (at most `n`). Default: 4.
        wave: solutions of every later wave. Default: 4.
        aggregate: name of the aggregation that `good_enough` reads. Default: "mean".
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    n: int = Field(default=8, ge=1, le=256)
    confidence: float | None = Field(default=None, gt=0.5, lt=1)
    good_enough: float | None = Field(default=None, ge=0, le=1)
    min_n: int = Field(default=4, ge=1, le=256)
    wave: int = Field(default=4, ge=1, le=256)
    aggregate: str = "mean"

    def __init__(self, n: int = 8, **options: object) -> None:
        super().__init__(n=n, **options)

    @field_validator("aggregate")
    @classmethod
    def _known(cls, name: str) -> str:
        aggregation(name)
        return name

    @model_validator(mode="after")
    def _waves_need_a_stop(self) -> Self:
        if not self._adaptive and {"min_n", "wave", "aggregate"} & self.model_fields_set:
            raise ValueError("min_n, wave and aggregate need confidence or good_enough")
        return self

    @property
    def _adaptive(self) -> bool:
        return self.confidence is not None or self.good_enough is not None

    @property
    def aggregates(self) -> Sequence[str]:
        """The path score that `good_enough` reads; else none is needed while searching."""
        return () if self.good_enough is None else (self.aggregate,)

    @property
    def needs_scores(self) -> bool:
        """Whether it reads scores: only to stop early at a `good_enough` one."""
        return self.good_enough is not None

    def plan(self, tree: SearchTree) -> Plan:
        """Ask for what is missing to the next wave, else finish."""
        have = tree.child_count(tree.root_id)
        if have >= self.n:
            return Plan(finish=f"{self.n} solutions sampled")
        wanted = self.n
        if self._adaptive:
            reason = self._stopped(tree) if have >= self.min_n else ""
            if reason:
                return Plan(finish=f"{reason} after {have} solutions")
            wanted = min(self.n, have + self.wave if have >= self.min_n else self.min_n)
        return Plan(expand=(Expand(tree.root_id, wanted - have, have, until="end"),))

    def _stopped(self, tree: SearchTree) -> str:
        finished = tree.finished()
        if self.confidence is not None:
            sure = agreement([r.answer for r in finished], choices_of(tree.problem))
            if sure > self.confidence:
                return f"confidence: {sure:.4f} > {self.confidence}"
        if self.good_enough is not None:
            scores = (tree.path_score(record.id, self.aggregate) for record in finished)
            best = max((score for score in scores if score is not None), default=-1.0)
            if best >= self.good_enough:
                return f"good_enough: {best:.4f} >= {self.good_enough}"
        return ""


def agreement(answers: Sequence[str | None], choices: Sequence[str] = ()) -> float:
    """Return P(Beta(v₁ + 1, v₂ + 1) > ½) for the votes of the two most frequent answers.

    Exact: for whole v it is the chance that of v₁ + v₂ + 1 fair coins at most v₁ show heads.
    """
    classes = answer_classes(answers, choices=choices)
    votes = Counter(group for group in classes if group is not None)
    first, second = ([count for _, count in votes.most_common(2)] + [0, 0])[:2]
    coins = first + second + 1
    return sum(math.comb(coins, heads) for heads in range(first + 1)) / float(2**coins)
