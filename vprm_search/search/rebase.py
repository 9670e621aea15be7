"""REBASE: the next steps are divided among the open paths by their scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

from pydantic import Field

from vprm_search.search.particle_filter import effective_sample_size
from vprm_search.search.plan import Close, Expand, Plan, Ranked
from vprm_search.search.stepwise import StepwiseSearch
from vprm_search.tree import SearchTree
from vprm_search.types import NodeId

_LEAST = 1e-6  # keeps the logit of a score of exactly 0 or 1 finite


class REBASE(StepwiseSearch):
    """Give each open path a number of next steps in proportion to softmax(score / temperature).

    The steps of a level sum to the level's width less the paths that have finished, so the search
    narrows as answers come in and ends when `width` of them are there. Reward balanced search, Wu
    et al., arXiv 2408.00724 §3.2, by the score of the latest step. Shares are rounded by largest
    remainders, where the paper rounds each, so that they sum exactly.

    The paper's temperature is 0.2, on the scores as they are. What is right depends on how far a
    reward model's scores lie apart, and where, so by default both are taken from the level: scores
    are compared as sigmoid(logit - median logit of the level) (`centred`), and the temperature is
    the one at which the shares are worth 1 + `effective_share` * (paths - 1) equal ones, as counted
    by the effective sample size. That is how sequential Monte Carlo chooses its tempering (Jasra et
    al., Scand. J. Stat. 38, 2011). A scorer whose scores all lie near 1 selects like any other.

    The options not listed are those of `StepwiseSearch`.

    Args:
        aggregate: name of the aggregation of the path score. Default: "last".
        width: steps proposed per level, and finished paths wanted. Default: 16.
        temperature: low values give most steps to the best path, high values equal shares; None
            chooses it by `effective_share`. Default: None.
        effective_share: between 0 (all to the best path) and 1 (equal shares). Default: 0.25.
    """

    aggregate: str = "last"
    width: int = Field(default=16, ge=1, le=256)
    temperature: float | None = Field(default=None, gt=0)
    effective_share: float = Field(default=0.25, ge=0, le=1)

    def plan(self, tree: SearchTree) -> Plan:
        """Refill the level if slots are empty, else divide what is left of the width."""
        if tree.rounds == 0:
            return Plan(expand=(Expand(tree.root_id, self.width),))
        merged = self._duplicates(tree)
        refill = self._refills(tree)
        if refill:
            return Plan(expand=refill, close=tuple(merged))
        gone = {close.node for close in merged}
        ranked, close = self._rank(tree, (r for r in tree.open_leaves() if r.id not in gone))
        close = merged + close
        left = self.width - sum(1 for record in tree.finished() if record.id not in gone)
        if left <= 0:
            why = f"width {self.width} used up"
            close += [Close(leaf.id, why, cause="not_needed") for _, leaf in ranked]
            return Plan(close=tuple(close), finish=f"{self.width} paths finished")
        ranked, pruned = self.pruning.apply(ranked)
        close += pruned
        if not ranked:
            return Plan(close=tuple(close), finish="no open path is left")
        expand, outweighed = self._divide(ranked, left)
        return Plan(expand=expand, close=(*close, *outweighed))

    def _target(self, tree: SearchTree, parent: NodeId) -> int:
        return self.width if parent == tree.root_id else super()._target(tree, parent)

    def _weights(self, ranked: Ranked) -> list[float]:
        """Return the share of each path, in all 1."""
        scores = [score for score, _ in ranked]
        if self.temperature is not None:
            return softmax(scores, self.temperature)
        return effective_shares(centred(scores), self.effective_share)

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


def effective_shares(values: Sequence[float], share: float) -> list[float]:
    """Return softmax(values / t) with t so that it is worth 1 + `share` * (number - 1) equal ones.

    Counted by the effective sample size, which grows with t, so t is found by bisection, in
    logarithms, to 1 part in 10^9 (Jasra et al., Scand. J. Stat. 38, 2011). The nearer limit where
    none between 10^-3 and 10^3 has that size.
    """
    wanted = 1 + share * (len(values) - 1)
    bottom, top = math.log(1e-3), math.log(1e3)
    for _ in range(34):
        middle = (bottom + top) / 2
        if effective_sample_size(softmax(values, math.exp(middle))) < wanted:
            bottom = middle
        else:
            top = middle
    return softmax(values, math.exp(top))


def logit(score: float) -> float:
    """Return log(score / (1 - score)); a score of exactly 0 or 1 counts as 10^-6 from it."""
    held = min(max(score, _LEAST), 1.0 - _LEAST)
    return math.log(held) - math.log1p(-held)


def centred(scores: Sequence[float]) -> list[float]:
    """Return sigmoid(logit - median logit) of every score: ½ for the middle one."""
    if not scores:
        return []
    logits = [logit(score) for score in scores]
    middle = median(logits)
    return [sigmoid(value - middle) for value in logits]


def sigmoid(value: float) -> float:
    """Return 1 / (1 + exp(-value)), the inverse of `logit`."""
    return 1 / (1 + math.exp(-value))
