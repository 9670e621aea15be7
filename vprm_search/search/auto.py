"""The default strategy: a search by levels that fits itself to scorer, budget and replies."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import heapify, heapreplace
from statistics import fmean, median
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from vprm_search.budget import Budget
from vprm_search.search.plan import Close, Expand, Plan
from vprm_search.search.rebase import effective_shares, logit, sigmoid
from vprm_search.search.stepwise import (
    StepKey,
    distinct,
    duplicates,
    exact_step,
    known_score,
    level_scores,
    proposed,
)
from vprm_search.tree import SearchTree
from vprm_search.types import NodeId, NodeRecord

Advice = Literal["search", "vote", "majority"]
"""What the scorer is good for with a policy: to guide a search, to weigh votes, or for nothing."""

_SHARE = 0.25  # as in REBASE
_FIRST_LOOK = 2 / 3
_KIN = 0.5  # weight of what its siblings and its children say about a path
_MOST_CHILDREN = 6
_START = 0.6  # share of the mean width at the first level
_STEPS = 10  # steps of a solution where nothing tells
_FEWEST_STEPS = 4
_REPEATS = 0.25  # share of merged steps from which a policy repeats itself
_SAME = 0.75  # agreement of siblings from which sampling finds more than searching
_LEVELS_SEEN = 2  # first steps often repeat the question, whatever the policy
_FEWEST_PAIRS = 7  # siblings beside a most frequent one
_WORTH_SAMPLING = 4  # whole solutions
_ROOM = 1.25  # of the mean cost for a single solution


class AutoSearch(BaseModel):
    """Search level by level, about as wide as `n` whole solutions cost. The default strategy.

    It is `REBASE` with six changes; each was measured (docs/leaderboard.md):

    * **Two looks at a level.** Two thirds of a level's steps are dealt by the scores of the paths.
      The rest is dealt when those steps have been scored, for they tell about the path above them:
      a wrong path has no good children. A path is worth sigmoid(own + ½ siblings + ½ children): all
      are logits less the median of their level, and the kin count as their sum / (number + 1). A
      step without a score counts as a median one.
    * **The width grows** from 0.6 to 1.4 times the mean: few first steps have to be right, and at
      the end many right paths are needed to outvote the wrong ones. How many levels there will be
      the budget tells, which pays for `n` solutions, and the finished paths when there are some.
      Without a limit on tokens, candidates or requests it pays for the steps of `n` solutions, each
      of ten steps until one has finished.
    * **A path has at most six children**, so that no single one takes a level; what they leave over
      is spent on the levels below.
    * **Equal siblings count.** A path's share is multiplied by the number of samples that were
      merged into it, as in the particle filter.
    * **The budget is spent.** When all paths have ended and two more solutions can be paid for, the
      search begins again beside them; of a policy that repeats itself (a quarter of its steps were
      merged) whole solutions are sampled instead. All finished paths vote.
    * **It does not search where there is nothing to choose.** If after two levels three quarters of
      the siblings say the same, whole solutions are sampled for the rest of the budget.

    Slots of merged or failed siblings are not asked for again. A search without a scorer, or whose
    policy cannot continue a path, or that was advised not to search, samples whole solutions
    instead (`choose_rules`).

    Args:
        n: whole solutions whose cost it takes where no budget says more or less. Default: 16.
        max_depth: steps after which an open path is cut ("truncated"). Default: 32.
        same_step: tells which siblings are the same (see `StepwiseSearch`). Default: `exact_step`.
        budget: limits to which the width is fitted. Default: those of the search it is used in.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    n: int = Field(default=16, ge=1, le=256)
    max_depth: int = Field(default=32, ge=1, le=128)
    same_step: StepKey = exact_step
    budget: Budget = Budget()

    needs_scores: ClassVar[bool] = True
    aggregates: ClassVar[Sequence[str]] = ("last",)

    def within(self, budget: Budget) -> AutoSearch:
        """Return the strategy fitted to the limits of a search, if it has none of its own."""
        return self.model_copy(update={"budget": budget}) if self.budget == Budget() else self

    def plan(self, tree: SearchTree) -> Plan:
        """Take the second look at the newest level, or the first one at the next."""
        level = _newest(tree)
        merged = duplicates(tree, sorted(level.parents), self.same_step)
        if level.depth >= _LEVELS_SEEN and (plan := self._sampled(tree, merged)):
            return plan
        gone = {close.node for close in merged}
        leaves = [(leaf.id, tree.depth(leaf.id)) for leaf in tree.open_leaves()]
        front = [leaf for leaf, depth in leaves if depth == level.depth and leaf not in gone]
        above = [leaf for leaf, depth in leaves if depth < level.depth]
        if level.looks == 1:
            slots = self._slots(tree, level) - level.count
            expand = _dealt(tree, [*level.parents, *above], slots, self.same_step)
            if expand:
                return Plan(expand, tuple(merged))
        close = merged + [
            Close(leaf, "outweighed at its level", cause="no_share") for leaf in above
        ]
        if level.depth >= self.max_depth:
            why = f"max_depth {self.max_depth} reached"
            close += [Close(leaf, why, "truncated", cause="max_depth") for leaf in front]
            front = []
        expand = self._first_look(tree, level.depth + 1, front)
        if not expand:
            close += [Close(leaf, "enough paths finished", cause="not_needed") for leaf in front]
            expand = self._again(tree)
        return Plan(expand, tuple(close), "" if expand else "all paths have ended")

    def _first_look(
        self, tree: SearchTree, depth: int, front: Sequence[NodeId]
    ) -> tuple[Expand, ...]:
        slots = self._slots(tree, _Level(depth))
        looks_once = depth == 1 or self.budget.rounds is not None
        return _dealt(
            tree, front, slots if looks_once else math.ceil(_FIRST_LOOK * slots), self.same_step
        )

    def _again(self, tree: SearchTree) -> tuple[Expand, ...]:
        """Return what more solutions are begun with, if they can be paid.

        A policy that repeats itself would begin as before, so its solutions are sampled whole.
        While no first step has come it is asked for `n` at the least, and no more: it is down.
        """
        anew = _dealt(tree, [tree.root_id], self._slots(tree, _Level(1)), self.same_step)
        begun = tree.children(tree.root_id)
        if all(child.status == "failed" for child in begun):
            return anew if len(begun) < self.n else ()
        steps = [record for record in tree if record.parent and not record.role]
        if sum(step.cause == "duplicate" for step in steps) > _REPEATS * len(steps):
            return self._whole(tree)
        if self._payable(tree) < 2:
            return ()
        return anew

    def _sampled(self, tree: SearchTree, merged: Sequence[Close]) -> Plan | None:
        """Return the plan that samples whole solutions, if the policy hardly ever differs."""
        begun = any(record.role == "completion" for record in tree.children(tree.root_id))
        enough = begun or self._payable(tree) >= _WORTH_SAMPLING
        expand = self._whole(tree) if enough and _says_the_same(tree, self.same_step) else ()
        if not expand:
            return None
        gone = {close.node for close in merged}
        close = [
            Close(leaf.id, "the policy says the same again and again", cause="not_needed")
            for leaf in tree.open_leaves()
            if leaf.id not in gone
        ]
        return Plan(expand, (*merged, *close))

    def _whole(self, tree: SearchTree) -> tuple[Expand, ...]:
        """Return half of the solutions that can be paid, whole: a long one needs its room."""
        paid = self._payable(tree)
        if paid < _ROOM:
            return ()
        count, first = max(1, min(int(paid / 2), 256)), tree.child_count(tree.root_id)
        return (Expand(tree.root_id, count, first, until="end", role="completion"),)

    def _payable(self, tree: SearchTree) -> float:
        """Return how many more solutions can be paid; none where only scores cost, and none did.

        A policy that says nothing new would be asked for ever.
        """
        paid, only = self._paid(tree), self.budget.model_copy(update={"scored_tokens": None})
        if not only.limits_work and self.budget.limits_work:
            newest = tree.round_nodes(tree.rounds)
            if newest and not any(record.scored_tokens for record in newest):
                return 0.0
        known = [tree.depth(record.id) for record in tree.finished()]
        steps = fmean(known) if known else max(_FEWEST_STEPS, round(paid / self.n))
        tokens = self.budget.paths_affordable(tree, steps)
        return (paid - tree.totals.candidates) / steps if tokens is None else tokens

    def _slots(self, tree: SearchTree, level: _Level) -> int:
        """Return the steps to propose at a level in all, less a place for every finished path."""
        place, paid = level.depth - 1, self._paid(tree)
        depths = [tree.depth(record.id) for record in tree.finished()]
        steps = max(depths) if depths else max(_FEWEST_STEPS, round(paid / self.n))
        last = steps if place < steps else place + 2  # longer than thought: keep something back
        ahead = math.fsum(_growth(later, steps) for later in range(place, last))
        left = paid - (tree.totals.candidates - level.count)
        width = left * _growth(place, steps) / ahead
        return max(0 if depths else 1, round(width) - _ended(tree, level.depth))

    def _paid(self, tree: SearchTree) -> float:
        """Return the steps that the budget pays for, those so far included.

        Without a limit they are those of `n` solutions, as long as the finished ones and at least
        as long as what is open; a solution that was sampled whole has cost all its steps.
        """
        usage, limits = tree.totals, self.budget
        paid = [] if limits.candidates is None else [float(limits.candidates)]
        for name in ("requests", "generated_tokens", "scored_tokens"):
            limit, spent = getattr(limits, name), getattr(usage, name)
            if limit is not None and spent:
                paid.append(usage.candidates * limit / spent)
        if paid:
            return min(paid)
        known = [tree.depth(record.id) for record in tree.finished()]
        reached = max((tree.depth(leaf.id) for leaf in tree.open_leaves()), default=0)
        steps = max(fmean(known), reached + 1) if known else max(_STEPS, reached + 2)
        return usage.candidates + self.n * steps - (len(tree) - 1)


@dataclass(frozen=True, slots=True)
class _Level:
    """The steps proposed last: their depth, number and parents, and in how many rounds."""

    depth: int
    looks: int = 0
    count: int = 0
    parents: frozenset[NodeId] = frozenset()


def _newest(tree: SearchTree) -> _Level:
    """Return the level of the last round; steps beside the search's own tree are no part of it."""
    newest = _Level(0)
    for number in range(tree.rounds, 0, -1):
        steps = [record for record in tree.round_nodes(number) if not record.role]
        if not steps:
            continue
        depth = tree.depth(steps[0].id)
        if newest.depth not in (0, depth):
            break
        parents = newest.parents | {record.parent for record in steps if record.parent}
        newest = _Level(depth, newest.looks + 1, newest.count + len(steps), parents)
    return newest


def _says_the_same(tree: SearchTree, same_step: StepKey) -> bool:
    """Tell whether most siblings say what the most frequent one beside them says."""
    same = pairs = 0
    for parent in {record.parent for record in tree if record.parent and not record.role}:
        counts = [count for _, count in distinct(tree, parent, same_step)]
        if counts:
            same, pairs = same + max(counts) - 1, pairs + sum(counts) - 1
    return pairs >= _FEWEST_PAIRS and same >= _SAME * pairs


def _ended(tree: SearchTree, depth: int) -> int:
    """Return how many paths have finished above a level since the search last began at the root."""
    begun = max((child.round for child in tree.children(tree.root_id)), default=0)
    return sum(
        record.round >= begun and not record.role and tree.depth(record.id) < depth
        for record in tree.finished()
    )


def _growth(place: int, steps: int) -> float:
    """Return the width at a level in mean widths; evenly from `_START` over so many levels."""
    return _START + 2 * (1 - _START) * min(1.0, place / max(1, steps - 1))


# --- dealing a level's steps ---------------------------------------------------------------------


def _dealt(
    tree: SearchTree, paths: Sequence[NodeId], slots: int, same_step: StepKey
) -> tuple[Expand, ...]:
    """Deal so many next steps to the paths by their worth, counting what they have already.

    A path's share is multiplied by the samples it stands for (itself and what was merged into it),
    for what a policy often says is more often right. Each step goes to the path of the highest
    share / (2 * children + 1), which comes as near to the shares as whole numbers can (Webster's
    method).
    """
    if slots < 1 or not paths:
        return ()
    ranked = sorted(_worth(tree, paths, same_step).items(), key=lambda pair: (-pair[1], pair[0]))
    parents = {tree[path].parent or tree.root_id for path in paths}
    samples = {r.id: count for p in parents for r, count in distinct(tree, p, same_step)}
    weights = effective_shares([value for _, value in ranked], _SHARE)
    shares = [w * samples.get(path, 1) for (path, _), w in zip(ranked, weights, strict=True)]
    have = [proposed(tree, path) for path, _ in ranked]
    most = [_MOST_CHILDREN if path != tree.root_id else have[0] + slots for path, _ in ranked]
    given = [0] * len(ranked)

    def claim(place: int) -> tuple[float, int]:
        children = have[place] + given[place]
        return (-shares[place] / (2 * children + 1) if children < most[place] else 1.0), place

    claims = [claim(place) for place in range(len(ranked))]
    heapify(claims)
    for _ in range(slots):
        first, place = claims[0]
        if first > 0:
            break
        given[place] += 1
        heapreplace(claims, claim(place))
    return tuple(
        Expand(path, count, tree.child_count(path))
        for (path, _), count in zip(ranked, given, strict=True)
        if count
    )


def _worth(tree: SearchTree, paths: Sequence[NodeId], same_step: StepKey) -> dict[NodeId, float]:
    """Return sigmoid(own + ½ siblings + ½ children) for paths of one level (see `AutoSearch`)."""
    own = _relative(tree, [tree[path] for path in paths])
    steps = [step for path in paths for step, _ in distinct(tree, path, same_step)]
    about = _by_parent(steps, _relative(tree, steps))
    kin = _by_parent([tree[path] for path in paths], own)
    return {
        path: sigmoid(own[path] + _KIN * (kin[tree[path].parent] + about[path])) for path in paths
    }


def _relative(tree: SearchTree, steps: Sequence[NodeRecord]) -> dict[NodeId, float]:
    """Return the logit of each step's score less the median; 0 for a step without a score."""
    scores = level_scores(steps, lambda step: known_score(tree, step.id, "last"))
    logits = {node: logit(score) for node, score in scores.items()}
    middle = median(logits.values()) if logits else 0.0
    return {node: value - middle for node, value in logits.items()}


def _by_parent(
    steps: Sequence[NodeRecord], values: Mapping[NodeId, float]
) -> defaultdict[NodeId | None, float]:
    """Return for every parent of `steps` the sum of its children's values / (their number + 1)."""
    groups: defaultdict[NodeId | None, list[float]] = defaultdict(list)
    for step in steps:
        groups[step.parent].append(values[step.id])
    sums = {parent: math.fsum(group) / (len(group) + 1) for parent, group in groups.items()}
    return defaultdict(float, sums)
