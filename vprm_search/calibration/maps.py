"""What a score means for one policy: maps from P('+') to the share of right steps or answers.

A reward model's P('+') ranks steps well long before it can be read as a probability, and how far it
is off depends on the policy (arXiv 2506.09338 finds over-estimates that grow as policies get
weaker). A calibration is a rising map, fitted on scored and labelled paths of one policy
(`vprm-search calibrate`), and kept as JSON. Applying one is pure arithmetic.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from vprm_search.aggregate import Aggregation, aggregation
from vprm_search.errors import ConfigError
from vprm_search.records import VersionedFile

LOGIT_EDGE = 1e-7
"""Scores are kept so far from 0 and 1 before a logit is taken: float32 rounds there."""

Method = Literal["temperature", "platt", "isotonic"]
Target = Literal["step", "path"]
"""What is told: whether a step is right ("step"), or whether a path's answer is ("path")."""

Probability = Annotated[float, Field(ge=0, le=1)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class LogitMap(_Frozen):
    """sigmoid(logit(p) / temperature + bias).

    With `bias` 0 this is temperature scaling (Guo et al., arXiv 1706.04599 §4.2) of the two logits
    of '+' and '-'; with a bias, Platt's scaling (Platt, Advances in Large Margin Classifiers,
    1999). The order of scores never changes.
    """

    kind: Literal["logit"] = "logit"
    temperature: float = Field(default=1.0, gt=0)
    bias: float = 0.0

    def __call__(self, score: float) -> float:
        """Return the probability a score stands for."""
        value = logit(score) / self.temperature + self.bias
        if value >= 0:
            return 1.0 / (1.0 + math.exp(-value))
        small = math.exp(value)
        return small / (1.0 + small)


class IsotonicMap(_Frozen):
    """Straight lines between knots that never fall; constant beyond the first and the last.

    `scores` and `probabilities` are the knots, `[knots]` each: the scores rise strictly. Isotonic
    regression: Zadrozny & Elkan, KDD 2002.
    """

    kind: Literal["isotonic"] = "isotonic"
    scores: tuple[Probability, ...] = Field(min_length=1)
    probabilities: tuple[Probability, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _rises(self) -> IsotonicMap:
        if len(self.scores) != len(self.probabilities):
            raise ValueError(
                f"{len(self.scores)} scores have {len(self.probabilities)} probabilities"
            )
        if any(b <= a for a, b in pairwise(self.scores)):
            raise ValueError("the scores of the knots do not rise")
        if any(b < a for a, b in pairwise(self.probabilities)):
            raise ValueError("the probabilities of the knots fall")
        return self

    def __call__(self, score: float) -> float:
        """Return the probability a score stands for."""
        place = bisect_right(self.scores, score)
        if place == 0 or place == len(self.scores):
            return self.probabilities[0 if place == 0 else -1]
        left, right = self.scores[place - 1], self.scores[place]
        low, high = self.probabilities[place - 1], self.probabilities[place]
        part = (score - left) / (right - left)
        return min(high, low + (high - low) * part)


ScoreMap = Annotated[LogitMap | IsotonicMap, Field(discriminator="kind")]


class Calibration(_Frozen):
    """A map for the scores that `scorer` gives to what `policy` writes.

    With `target="step"` it maps P('+') of a step; with `target="path"` a path score made by
    `aggregate`. `method` and `fitted_on` say where it comes from; they change nothing.
    """

    policy: str
    scorer: str = ""
    target: Target = "step"
    aggregate: str = ""
    method: str = ""
    map: ScoreMap
    fitted_on: dict[str, int | float] = Field(default_factory=dict)

    @field_validator("fitted_on")
    @classmethod
    def _finite(cls, facts: dict[str, int | float]) -> dict[str, int | float]:
        if not all(math.isfinite(value) for value in facts.values()):
            raise ValueError("a number is not finite")
        return facts

    @model_validator(mode="after")
    def _aggregates(self) -> Calibration:
        if (self.target == "path") != bool(self.aggregate):
            raise ValueError("target 'path' needs the name of an aggregation, 'step' has none")
        return self

    def apply(self, score: float) -> float:
        """Return the probability that `score` stands for, in [0, 1]."""
        return self.map(score)

    def as_aggregation(self) -> Aggregation:
        """Return the aggregation that maps the path score to the chance of a right answer.

        Give it a name with `aggregate.register_aggregation` and use that name for the threshold of
        a verifier, for pruning, or in a selector. Raises `ConfigError` if this calibrates steps.
        """
        if self.target != "path":
            raise ConfigError(
                "this calibration maps the scores of steps; wrap the scorer in a CalibratedScorer, "
                "or fit one with --target path"
            )
        return _MappedAggregation(self)


@dataclass(frozen=True, slots=True)
class _MappedAggregation:
    """A path score and its map; equal calibrations make equal ones."""

    calibration: Calibration

    def __call__(self, scores: Sequence[float]) -> float:
        return self.calibration.apply(aggregation(self.calibration.aggregate)(scores))


class CalibrationFile(VersionedFile):
    """The calibrations of one file: one for each policy and target."""

    noun = "calibration"
    made_by = "vprm-search calibrate"

    format: Literal["vprm-search calibration"] = "vprm-search calibration"
    version: Literal[1] = 1
    calibrations: tuple[Calibration, ...] = Field(min_length=1)

    def of(
        self, policy: str | None = None, *, target: Target = "step", aggregate: str = ""
    ) -> Calibration:
        """Return the calibration of a policy; `None` takes the only one there is.

        Raises `ConfigError`, with what there is, if none or several fit.
        """
        found = [
            c
            for c in self.calibrations
            if c.target == target
            and policy in (None, c.policy)
            and (not aggregate or c.aggregate == aggregate)
        ]
        if len(found) == 1:
            return found[0]
        there = "; ".join(f"{c.policy!r} ({_what(c)})" for c in self.calibrations)
        problem = "no calibration" if not found else f"{len(found)} calibrations"
        wanted = "any policy" if policy is None else f"policy {policy!r}"
        raise ConfigError(f"{problem} of {target}s for {wanted}; name one of those there: {there}")


def logit(score: float) -> float:
    """Return log(p / (1 - p)), with p kept `LOGIT_EDGE` away from 0 and 1."""
    inside = min(1.0 - LOGIT_EDGE, max(LOGIT_EDGE, score))
    return math.log(inside / (1.0 - inside))


def _what(calibration: Calibration) -> str:
    return f"path: {calibration.aggregate}" if calibration.aggregate else calibration.target
