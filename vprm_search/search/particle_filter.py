"""Particle filtering: sequential Monte Carlo over reasoning steps, weighted by their scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal
from weakref import WeakKeyDictionary

from pydantic import Field

from vprm_search import ids
from vprm_search.search.plan import Close, Expand, Plan
from vprm_search.search.stepwise import (
    StepwiseSearch,
    asked_at_first,
    candidates,
    distinct,
    missing,
)
from vprm_search.tree import SearchTree
from vprm_search.types import NodeId

_LEAST = 1e-6  # keeps the odds of a score of exactly 0 or 1 finite


@dataclass(frozen=True, slots=True)
class Particles:
    """`count` equal particles at one node, each with the weight exp(`log_weight`)."""

    node: NodeId
    count: int
    log_weight: float


@dataclass(frozen=True, slots=True)
class Population:
    """All living particles after `level` steps.

    `children[node]` is how many next steps an open node is given; the others have finished.
    `close` is what went at this level, and why.
    """

    level: int
    particles: tuple[Particles, ...]
    children: Mapping[NodeId, int]
    close: tuple[Close, ...] = ()


class ParticleFilter(StepwiseSearch):
    """Move `particles` partial solutions on step by step and resample them by their weights.

    After each step a particle's weight is multiplied by g(score): the odds s / (1 − s) as in Puri
    et al., arXiv 2502.01618 §3 ("odds"), or s itself ("probability"). When the effective sample
    size (Σ w)² / Σ w² falls below `ess_threshold * particles`, the slots are dealt anew by
    systematic resampling, with one draw derived from the tree's ids: at 1, the default and the
    paper's rule, at every step with unequal weights. Below 1 the weights accumulate in between
    (Doucet and Johansen, "A tutorial on particle filtering", 2009, §3.5); on synthetic worlds a
    threshold of ½ found fewer right answers (docs/leaderboard.md). Where particles are equal steps
    of one parent, one node stands for them and carries their number, so the filter stays exact and
    no path is there twice. A finished path stays among the particles: at every later step its
    weight is multiplied by g of its last score, as if it went on in place, so that it neither gains
    nor loses against paths as good as it is that are longer. A failed or cut one loses its place.

    The options not listed are those of `StepwiseSearch`.

    Args:
        refill: how often the slots of failed steps are asked for again; those of equal steps are
            filled. Default: 1.
        aggregate: name of the aggregation of the path score. Default: "last".
        particles: partial solutions kept. Default: 16.
        weight: g, see above. Default: "odds".
        ess_threshold: share of `particles` below which they are resampled. Default: 1.
    """

    aggregate: str = "last"
    particles: int = Field(default=16, ge=1, le=256)
    weight: Literal["odds", "probability"] = "odds"
    ess_threshold: float = Field(default=1.0, ge=0, le=1)

    def plan(self, tree: SearchTree) -> Plan:
        """Weigh the new steps, resample if the weights are uneven, and move on."""
        population = self.population(tree)
        merged = self._duplicates(tree)
        gone = [close for close in population.close if tree[close.node].status == "open"]
        expand = self._asks(tree, population)
        closed = (*merged, *gone)
        if not expand:
            return Plan(close=closed, finish="all particles have ended")
        return Plan(expand=expand, close=closed)

    def population(self, tree: SearchTree) -> Population:
        """Return the particles after the last complete step; a function of the tree alone.

        Σ count * exp(log_weight) * f(path) over them, divided by `particles`, estimates the sum
        of p(path) * Π g(score) * f(path) without bias, p being how the policy draws paths. The
        product has a factor for every level: after a path's end that of its last score.
        """
        known = _CACHE.setdefault(tree, {})
        population = known.get(self) or Population(
            0, (Particles(tree.root_id, self.particles, 0.0),), {tree.root_id: self.particles}
        )
        while population.children and self._has_moved(tree, population):
            known[self] = population  # not the next one: its steps may still be redone
            population = self._next(tree, population)
        return population

    def _next(self, tree: SearchTree, before: Population) -> Population:
        """Return the population one step on: moved, weighed, pruned and resampled."""
        ended = [p for p in before.particles if p.node not in before.children]
        groups = {p.node: p for p in before.particles if p.node in before.children}
        key = self.same_step if self.dedup else None
        children = {
            child.id: (child, count, groups[parent].log_weight)
            for parent in groups
            for child, count in distinct(tree, parent, key)
        }
        new = [child for child, _, _ in children.values() if child.status != "truncated"]
        ranked, close = self._rank(tree, (c for c in new if c.status != "finished"))
        ranked, pruned = self.pruning.apply(ranked)
        going_on = {leaf.id for _, leaf in ranked}
        stay = ended + [
            Particles(child.id, count, log_weight)
            for child, count, log_weight in children.values()
            if child.status == "finished" or child.id in going_on
        ]
        scores = self._scores(tree, [*(tree[p.node] for p in ended), *new])
        moved = [
            replace(p, log_weight=p.log_weight + self._log_gain(scores[p.node]))
            for p in sorted(stay, key=lambda p: p.node)
        ]
        kept, dropped = self._resampled(tree, before.level + 1, moved)
        grown = {p.node: p.count for p in kept if p.node in going_on}
        return Population(before.level + 1, kept, grown, (*close, *pruned, *dropped))

    def _asks(self, tree: SearchTree, population: Population) -> tuple[Expand, ...]:
        """Return the next steps that the particles wait for, at first or again."""
        asks = []
        for node, count in population.children.items():
            first = tree.root_id != node and asked_at_first(tree, node)
            target = min(count, first or count)
            if again := missing(tree, node, target, refill=self.refill, key=None):
                known = tree.child_count(node)
                scale = self.refill_temperature_scale if known else 1.0
                asks.append(Expand(node, again, known, temperature_scale=scale))
        return tuple(asks)

    def _has_moved(self, tree: SearchTree, population: Population) -> bool:
        """Tell whether the particles have taken their next steps, as far as a limit let them.

        Where the others have, those that got none are lost.
        """
        asks = self._asks(tree, population)
        if any(candidates(tree, ask.node) for ask in asks):
            return False
        asked = any(candidates(tree, node) for node in population.children)
        return not asks or asked

    def _log_gain(self, score: float) -> float:
        held = min(max(score, _LEAST), 1.0 - _LEAST)
        return math.log(held) - (math.log1p(-held) if self.weight == "odds" else 0.0)

    def _resampled(
        self, tree: SearchTree, level: int, moved: Sequence[Particles]
    ) -> tuple[tuple[Particles, ...], list[Close]]:
        top = max((p.log_weight for p in moved), default=0.0)
        weights = [math.exp(p.log_weight - top) for p in moved]
        size = effective_sample_size(weights, [p.count for p in moved])
        if not moved or size >= self.ess_threshold * self.particles:
            return tuple(moved), []
        shares = [p.count * w for p, w in zip(moved, weights, strict=True)]
        each = math.log(math.fsum(shares) / self.particles)
        counts = systematic_counts(shares, self.particles, _draw(tree, level))
        kept, close = [], []
        best = max(zip(shares, moved, strict=True), key=lambda pair: pair[0])[1].node
        for particle, count, share in zip(moved, counts, shares, strict=True):
            if count:
                kept.append(Particles(particle.node, count, top + each))
                continue
            part = share / math.fsum(shares) * self.particles
            reason = f"resampled: {part:.4f} of {self.particles} particles drew none; {best} leads"
            reason = f"{reason}; ESS {size:.2f}"
            close.append(Close(particle.node, reason, cause="no_share"))
        return tuple(kept), close


def _draw(tree: SearchTree, level: int) -> float:
    """Return the level's number in [0, 1); it depends on the problem and the run seed alone."""
    return int.from_bytes(ids.digest("resample", tree.root_id, level)[:6], "big") / 2**48


_CACHE: WeakKeyDictionary[SearchTree, dict[ParticleFilter, Population]] = WeakKeyDictionary()


# --- resampling ----------------------------------------------------------------------------------


def effective_sample_size(weights: Sequence[float], counts: Sequence[int] | None = None) -> float:
    """Return (Σ w)² / Σ w², the number of equal particles worth as much as these.

    `counts[i]` particles have the weight `weights[i]` each (default: one). 0 if all weights are
    0. Kong, Liu and Wong, JASA 89 (1994).
    """
    many = [1] * len(weights) if counts is None else counts
    total = math.fsum(c * w for w, c in zip(weights, many, strict=True))
    squares = math.fsum(c * w * w for w, c in zip(weights, many, strict=True))
    return total * total / squares if squares > 0.0 else 0.0


def systematic_counts(weights: Sequence[float], slots: int, u: float) -> list[int]:
    """Return how many of `slots` each weight gets: slots * share, rounded up or down.

    One draw `u` in [0, 1) places a comb of `slots` equally spaced teeth over the cumulated
    weights, so each expectation is exactly slots * share. Kitagawa, J. Comput. Graph. Stat. 5
    (1996). All zeros if all weights are 0.
    """
    total = math.fsum(weights)
    if total <= 0.0:
        return [0] * len(weights)
    last = max(i for i, weight in enumerate(weights) if weight > 0.0)
    counts = []
    reached, passed = 0.0, 0
    for place, weight in enumerate(weights):
        reached += weight
        teeth = slots if place >= last else _teeth_below(reached / total * slots, u, slots)
        counts.append(max(0, teeth - passed))
        passed = max(passed, teeth)
    return counts


def _teeth_below(position: float, u: float, slots: int) -> int:
    """Return how many of the teeth u, u + 1, … are below `position`."""
    return max(0, min(slots, math.ceil(position - u)))
