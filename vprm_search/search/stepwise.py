"""What the step-by-step strategies share: their options, how open paths are ranked, and siblings.

Diversity among siblings: equal steps are merged, and their slots are asked for again.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from statistics import median
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field, field_validator

from vprm_search.aggregate import aggregated, aggregation
from vprm_search.search.plan import Close, Expand, Plan, Pruning, Ranked
from vprm_search.tree import SearchTree
from vprm_search.types import NodeId, NodeRecord

StepKey = Callable[[str], str]
"""From the text of a step to what makes it distinct: siblings with equal keys are merged."""

# A finished twin is kept before an open one: expanding the latter would end it too. One cut by
# the token limit is kept last: it cannot be expanded.
_KEPT_FIRST = {"finished": 0, "open": 1, "truncated": 2}
_LOOSE = re.compile(r"[\s.,;:!?'\"`*_#()\[\]{}$\\]+")
_MAY_GROW = ("open", "pruned")  # a pruned sibling is ranked again, so that the ranks stay


def exact_step(text: str) -> str:
    """Return the text itself: only identical siblings are merged."""
    return text


def loose_step(text: str) -> str:
    """Return the text without case, white space, punctuation and mark-up; signs and digits stay.

    "So, x = 3." and "so x=3" are one step; "x = 3" and "x = -3" are two.
    """
    return _LOOSE.sub("", unicodedata.normalize("NFKC", text).casefold()) or text


class StepwiseSearch(BaseModel):
    """The options of every strategy that goes step by step.

    Args:
        max_depth: steps after which an open path is cut ("truncated"). Default: 32.
        aggregate: name of the aggregation of the path score. Default: "mean".
        dedup: merge identical siblings. Default: True.
        refill: how often the slots of merged or failed siblings are asked for again. Default: 1.
        refill_temperature_scale: factor on the policy's temperature then, so that it repeats itself
            less. Default: 1.
        same_step: tells which siblings are the same; `exact_step`, `loose_step` or your own
            function from a step's text to a key (near-duplicates share one). Default: `exact_step`.
        pruning: what is put aside besides the strategy's own rule. Default: nothing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_depth: int = Field(default=32, ge=1, le=256)
    aggregate: str = "mean"
    dedup: bool = True
    refill: int = Field(default=1, ge=0, le=8)
    refill_temperature_scale: float = Field(default=1.0, ge=1, le=4)
    same_step: StepKey = exact_step
    pruning: Pruning = Pruning()

    @field_validator("aggregate")
    @classmethod
    def _known(cls, name: str) -> str:
        aggregation(name)
        return name

    needs_scores: ClassVar[bool] = True

    @property
    def aggregates(self) -> Sequence[str]:
        """The one aggregation that ranks the paths."""
        return (self.aggregate,)

    def plan(self, tree: SearchTree) -> Plan:
        """Return the next round (see `Strategy`)."""
        raise NotImplementedError

    def value(self, tree: SearchTree, node: NodeId) -> float | None:
        """Return the score of a path, or that of its rollouts where a lookahead made some.

        A rollout's value is the path score at its end (Snell et al., arXiv 2408.03314 §5.2), that
        of several rollouts their mean. None if the last step has no score (`known_score`). A
        rollout's score that came a round late does not count (see `_scores`).
        """
        if not tree.child_count(node):
            return known_score(tree, node, self.aggregate)
        ends = [end for end in rollout_ends(tree, node) if not tree[end].score_reason]
        values = [known_score(tree, end, self.aggregate) for end in ends]
        known = [value for value in values if value is not None]
        return math.fsum(known) / len(known) if known else known_score(tree, node, self.aggregate)

    def _scores(self, tree: SearchTree, steps: Sequence[NodeRecord]) -> dict[NodeId, float]:
        """Return what paths that are compared are worth (`level_scores`).

        A score that came a round late does not count: it was decided without it, and a strategy
        that replays its rounds decides the same again.
        """
        return level_scores(
            steps, lambda step: None if step.score_reason else self.value(tree, step.id)
        )

    def _beating(
        self, tree: SearchTree, finished: Iterable[NodeRecord], best: float, leaf: NodeRecord
    ) -> int:
        """Return how many finished paths score at least as high as the best open one, `leaf`.

        Where that has no score, those without one do.
        """
        values = (self.value(tree, record.id) for record in finished)
        blind = leaf.score is None
        return sum(1 for value in values if (blind if value is None else value >= best))

    def _duplicates(self, tree: SearchTree) -> list[Close]:
        return duplicates(tree, last_parents(tree), self.same_step) if self.dedup else []

    def _refills(self, tree: SearchTree) -> tuple[Expand, ...]:
        """Return what to ask for again among the children of the last round."""
        asked = (self._ask(tree, parent) for parent in last_parents(tree))
        return tuple(expand for expand in asked if expand.count)

    def _ask(self, tree: SearchTree, parent: NodeId, *, at: int = 0) -> Expand:
        """Return what is still to be asked for below a node, at first or again; maybe nothing."""
        known = tree.child_count(parent)
        count = self._missing(tree, parent, self._target(tree, parent))
        return Expand(
            parent,
            count,
            known,
            round=at,
            temperature_scale=self.refill_temperature_scale if known else 1.0,
        )

    def _target(self, tree: SearchTree, parent: NodeId) -> int:
        return asked_at_first(tree, parent)

    def _missing(self, tree: SearchTree, parent: NodeId, target: int) -> int:
        key = self.same_step if self.dedup else None
        return missing(tree, parent, target, refill=self.refill, key=key)

    def _rank(self, tree: SearchTree, leaves: Iterable[NodeRecord]) -> tuple[Ranked, list[Close]]:
        """Return the leaves that may be expanded, best first, and those that never can be."""
        level = list(leaves)
        scores = self._scores(tree, level)
        ranked: Ranked = []
        close = []
        for leaf in level:
            if tree.depth(leaf.id) >= self.max_depth:
                why = f"max_depth {self.max_depth} reached"
                close.append(Close(leaf.id, why, "truncated", cause="max_depth"))
            else:
                ranked.append((scores[leaf.id], leaf))
        ranked.sort(key=lambda pair: (-pair[0], pair[1].id))
        return ranked, close

    def _siblings(self, tree: SearchTree, parent: NodeId) -> tuple[Ranked, list[Close]]:
        """Return which children of one node may be expanded, best first, and what is closed.

        For strategies without levels: it depends on the children alone, so it is the same before
        and after its own closes, and whenever it is asked.
        """
        children = distinct(tree, parent, self.same_step if self.dedup else None)
        ranked, close = self._rank(tree, (c for c, _ in children if c.status in _MAY_GROW))
        ranked, pruned = self.pruning.apply(ranked)
        return ranked, [c for c in (*close, *pruned) if tree[c.node].status == "open"]


# --- steps without a score -----------------------------------------------------------------------


def level_scores(
    steps: Sequence[NodeRecord], score: Callable[[NodeRecord], float | None]
) -> dict[NodeId, float]:
    """Return the scores of steps that are compared; one without a score counts as a median one.

    So a failed call of the scorer neither favours nor costs a candidate. Where no step has a score
    all are worth ½.
    """
    known = {step.id: value for step in steps if (value := score(step)) is not None}
    if len(known) == len(steps):
        return known
    middle = median(known.values()) if known else 0.5
    return {step.id: known.get(step.id, middle) for step in steps}


def known_score(tree: SearchTree, node: NodeId, aggregate: str) -> float | None:
    """Return the path score; where only steps above `node` have none, they count as the others do.

    That is, as the median of those that have one. None if `node` itself has no score.
    """
    record = tree[node]
    whole, own = record.path_scores.get(aggregate), record.score
    if whole is None:
        whole = tree.path_score(node, aggregate)
    if whole is not None or own is None:
        return whole
    counted = tree.counted_scores(node)
    known = [score for score in counted if score is not None] or [own]
    middle = median(known)
    return aggregated(aggregate, [middle if score is None else score for score in counted])


# --- rollouts ------------------------------------------------------------------------------------


def rollout_ends(tree: SearchTree, node: NodeId) -> Iterable[NodeId]:
    """Return the last scored steps of the rollouts that a lookahead made below `node`."""
    for child in tree.children(node) if tree.child_count(node) else ():
        if child.role == "lookahead" and child.status != "failed":
            yield from list(rollout_ends(tree, child.id)) or [child.id]


# --- siblings ------------------------------------------------------------------------------------


def candidates(tree: SearchTree, parent: NodeId) -> list[NodeRecord]:
    """Return the children that count: nothing that stands aside, no drafts that were redone.

    Nor what a person put aside, whatever a strategy makes of its score.
    """
    return [
        child
        for child in tree.children(parent)
        if not (child.role and child.is_aside) and child.cause not in ("redone", "review")
    ]


def last_parents(tree: SearchTree) -> list[NodeId]:
    """Return the nodes expanded in the last round, by id."""
    return sorted({r.parent for r in last_steps(tree) if r.parent and not (r.role and r.is_aside)})


def last_steps(tree: SearchTree) -> list[NodeRecord]:
    """Return the steps of the last round, in order of proposal.

    Rounds that only redid drafts or looked ahead belong to the round before them.
    """
    steps: list[NodeRecord] = []
    for number in range(tree.rounds, 0, -1):
        records = tree.round_nodes(number)
        steps = records + steps
        if any(not record.role for record in records):
            break
    return steps


def duplicates(tree: SearchTree, parents: Sequence[NodeId], key: StepKey) -> list[Close]:
    """Return the closes that merge each parent's children of equal key into one."""
    return [c for parent in parents for c in _merges(candidates(tree, parent), key)]


def _merges(children: Sequence[NodeRecord], key: StepKey) -> list[Close]:
    close = []
    first: dict[str, NodeRecord] = {}
    living = [child for child in children if child.status not in ("failed", "pruned")]
    if len({key(child.text) for child in living}) == len(living):
        return []
    for child in sorted(living, key=lambda c: (_KEPT_FIRST[c.status], c.index)):
        twin = first.setdefault(key(child.text), child)
        if twin is not child:
            near = "" if twin.text == child.text else "near-"
            reason = f"{near}duplicate of {twin.id}"
            close.append(Close(child.id, reason, cause="duplicate", merged_into=twin.id))
    return close


def distinct(tree: SearchTree, parent: NodeId, key: StepKey | None) -> list[tuple[NodeRecord, int]]:
    """Return the children that stand for themselves and those merged into them, with the number.

    The same before and after the duplicates are closed; failed children are left out.
    """
    groups: dict[str, list[NodeRecord]] = {}
    for child in candidates(tree, parent):
        if child.status != "failed":
            name = child.id if key is None else key(child.text)
            groups.setdefault(name, []).append(child)
    return [
        (group[0] if len(group) == 1 else min(group, key=_before), len(group))
        for group in groups.values()
    ]


def _before(record: NodeRecord) -> tuple[bool, int, int]:
    return record.merged_into is not None, _KEPT_FIRST.get(record.status, 1), record.index


def proposed(tree: SearchTree, parent: NodeId) -> int:
    """Return how many candidates were proposed below a node, whatever became of them."""
    if not tree.child_count(parent):
        return 0
    return sum(1 for child in tree.children(parent) if not child.role)


def merged_into(tree: SearchTree, record: NodeRecord) -> list[NodeId]:
    """Return the siblings that were merged into a node."""
    if record.parent is None:
        return []
    siblings = tree.children(record.parent)
    return [child.id for child in siblings if child.merged_into == record.id]


def missing(
    tree: SearchTree, parent: NodeId, target: int, *, refill: int, key: StepKey | None
) -> int:
    """Return how many of `target` children have to be asked for, at first or again.

    Slots of merged (unless `key` is None) and failed children are asked for again at most `refill`
    times. A single child of the root is the one by which a limited search learns what one costs
    (`Budget`): the others are asked for now, and the two rounds count as one.
    """
    children = candidates(tree, parent)
    tries = len({child.round for child in children})
    living = [child for child in children if child.status != "failed"]
    if parent == tree.root_id and children and target > 1:
        asked = [child.round for child in tree.children(parent) if not child.role]
        if len(asked) < target and len(living) <= 1:
            return target - len(asked)
        tries -= min(asked) not in asked[1:] and len(asked) > 1
    have = len(living) if key is None else len({key(child.text) for child in living})
    if tries > refill or have >= target:
        return 0
    have += sum(1 for child in tree.children(parent) if child.cause == "review")  # not asked again
    return max(0, target - have)


def asked_at_first(tree: SearchTree, parent: NodeId) -> int:
    """Return how many children a node was asked for when it was expanded first."""
    rounds = [child.round for child in candidates(tree, parent)]
    return rounds.count(min(rounds)) if rounds else 0
