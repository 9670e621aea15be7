"""REBASE: the next steps are divided among the open paths by their scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Self

from pydantic import Field, model_validator

from vprm_search.search.particle_filter import effective_sample_size
from vprm_search.search.plan import Close, Expand, Plan, Ranked
from vprm_search.search.stepwise import StepwiseSearch
from vprm_search.tree import SearchTree


class REBASE(StepwiseSearch):
    """Give each open path a number of next steps in proportion to softmax(score / temperature).

    The steps of a level sum to the level's width less the paths that have finished, so the search
    narrows as answers come in and ends when `width` of them are there. Reward balanced search, Wu
    et al., arXiv 2408.00724 §3.2, by the score of the latest step. Shares are rounded by largest
    remainders, where the paper rounds each, so that they sum exactly.

    The paper's temperature is 0.2. What is right depends on how far a reward model's scores lie
    apart, so by default it is chosen anew at every level: the one at which the shares are worth
    1 + `effective_share` * (paths - 1) equal ones, as counted by the effective sample size. That
    is how sequential Monte Carlo chooses its tempering (Jasra et al., Scand. J. Stat. 38, 2011);
    scores that lie closer together than the lowest temperature stay as good as equal.

    With `start` below 1 the width grows evenly from `start * width` at the first to
    `(2 - start) * width` at the last of `levels` levels: few first steps have to be right, and at
    the end many right paths are needed to outvote the wrong ones. The schedule is ours; over
    `levels` levels it costs what an even width costs.

    The options not listed are those of `StepwiseSearch`.

    Args:
        aggregate: name of the aggregation of the path score. Default: "last".
        width: steps proposed per level, and finished paths wanted. Default: 16.
        temperature: low values give most steps to the best path, high values equal shares; None
            chooses it by `effective_share`. Default: None.
        effective_share: between 0 (all to the best path) and 1 (equal shares). Default: 0.25.
        start: share of the width at the first level. Default: 1.
        levels: levels over which the width grows, about the steps of a solution; after them it is
            `width` again. Needed by a `start` below 1. Default: None.
    """

    aggregate: str = "last"
    width: int = Field(default=16, ge=1, le=256)
    temperature: float | None = Field(default=None, gt=0)
    effective_share: float = Field(default=0.25, ge=0, le=1)
    start: float = Field(default=1.0, gt=0, le=1)
    levels: int | None = Field(default=None, ge=2, le=128)

    @model_validator(mode="after")
    def _levels_are_known(self) -> Self:
        if self.start < 1 and self.levels is None:
            raise ValueError(f"start={self.start:g} needs levels=, about the steps of a solution")
        return self

    def plan(self, tree: SearchTree) -> Plan:
        """Refill the level if slots are empty, else divide what is left of the width."""
        if tree.rounds == 0:
            return Plan(expand=(Expand(tree.root_id, self._width_at(0)),))
        merged = self._duplicates(tree)
        refill = self._refills(tree)
        if refill:
            return Plan(expand=refill, close=tuple(merged))
        gone = {close.node for close in merged}
        ranked, close = self._rank(tree, (r for r in tree.open_leaves() if r.id not in gone))
        close = merged + close
        width = self._width_at(max((tree.depth(leaf.id) for _, leaf in ranked), default=0))
        left = width - sum(1 for record in tree.finished() if record.id not in gone)
        if left <= 0:
            why = f"width {width} used up"
            close += [Close(leaf.id, why, cause="not_needed") for _, leaf in ranked]
            return Plan(close=tuple(close), finish=f"{width} paths finished")
        ranked, pruned = self.pruning.apply(ranked)
        close += pruned
        if not ranked:
            return Plan(close=tuple(close), finish="no open path is left")
        expand, outweighed = self._divide(ranked, left)
        return Plan(expand=expand, close=(*close, *outweighed))

    def _width_at(self, level: int) -> int:
        if self.levels is None or level >= self.levels:
            return self.width
        share = self.start + 2 * (1 - self.start) * level / (self.levels - 1)
        return max(1, round(self.width * share))

    def _weights(self, ranked: Ranked) -> list[float]:
        """Return the share of each path, in all 1."""
        scores = [score for score, _ in ranked]
        if self.temperature is not None:
            return softmax(scores, self.temperature)
        wanted = 1 + self.effective_share * (len(scores) - 1)
        return softmax(scores, tempered(scores, wanted))

    def _divide(self, ranked: Ranked, slots: int) -> tuple[tuple[Expand, ...], list[Close]]:
        weights = self._weights(ranked)
        expand, close = [], []
        for (_, leaf), weight, count in zip(
            ranked, weights, largest_remainders(weights, slots), strict=True
        ):
            if count:
                expand.append(Expand(leaf.id, count))
                continue
            best = ranked[0][1].id
            reason = f"rebase: a share of {weight:.4f} of {slots} steps is none; {best} leads"
            close.append(Close(leaf.id, reason, cause="no_share"))
        return tuple(expand), close


# --- dividing slots by weight --------------------------------------------------------------------


def largest_remainders(weights: Sequence[float], slots: int) -> list[int]:
    """Return whole numbers that sum to `slots`, each within one of slots * share.

    The largest fractions are rounded up (Hamilton's method); on ties the earlier one is. Even
    shares if all weights are 0.
    """
    if not weights:
        return []
    total = math.fsum(weights)
    shares = [slots * w / total for w in weights] if total > 0.0 else []
    if not shares:
        return even_shares(slots, len(weights))
    counts = [math.floor(share) for share in shares]
    order = sorted(range(len(shares)), key=lambda i: (counts[i] - shares[i], i))
    for place in order[: slots - sum(counts)]:
        counts[place] += 1
    return counts


def even_shares(slots: int, parts: int) -> list[int]:
    """Return `parts` whole numbers that sum to `slots` and differ by at most one."""
    return [slots // parts + (place < slots % parts) for place in range(parts)]


def softmax(scores: Sequence[float], temperature: float) -> list[float]:
    """Return exp(score / temperature), normalised to sum to 1."""
    top = max(scores)
    weights = [math.exp((score - top) / temperature) for score in scores]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def tempered(
    scores: Sequence[float], effective: float, *, low: float = 0.05, high: float = 20.0
) -> float:
    """Return the temperature at which softmax(scores) has this effective sample size.

    The size grows with the temperature, so it is found by bisection, in logarithms, to 1 part in
    10^9. The nearer limit where none between `low` and `high` has that size; scores that differ by
    less than `low` are not told apart sharply.
    """
    if effective_sample_size(softmax(scores, low)) >= effective:
        return low
    if effective_sample_size(softmax(scores, high)) <= effective:
        return high
    bottom, top = math.log(low), math.log(high)
    for _ in range(33):
        middle = (bottom + top) / 2
        if effective_sample_size(softmax(scores, math.exp(middle))) < effective:
            bottom = middle
        else:
            top = middle
    return math.exp(top)
