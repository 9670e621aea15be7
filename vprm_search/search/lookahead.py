"""Lookahead: score a step by where it leads, for any step-by-step strategy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field

from vprm_search.search.plan import Close, Expand, Plan
from vprm_search.search.stepwise import StepwiseSearch, last_steps
from vprm_search.tree import SearchTree
from vprm_search.types import NodeId, NodeRecord


class Lookahead(BaseModel):
    """Let another strategy judge each new step by rollouts from it, `steps` steps long.

    A step's value becomes the path score at the end of its rollouts (their mean), and the
    strategy decides with that. Rollout steps are no candidates: they are only scored, and closed
    once the strategy has decided about the step; but a rollout that finishes is an answer like
    any other. Snell et al., arXiv 2408.03314 §5.2 (lookahead search; one rollout, there at
    temperature 0). It costs `rollouts * steps` further steps per candidate and pays where a step
    can be right and still lead nowhere; with a scorer that judges correctness alone it did not pay
    in a controlled world (search-and-learn's DVTS with lookahead 1: .52 against .61 at more than
    twice the tokens).

    Args:
        strategy: what decides.
        steps: length of a rollout. Default: 1.
        rollouts: rollouts per candidate. Default: 1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    strategy: StepwiseSearch
    steps: int = Field(default=1, ge=1, le=64)
    rollouts: int = Field(default=1, ge=1, le=16)

    needs_scores: ClassVar[bool] = True

    @property
    def aggregates(self) -> Sequence[str]:
        """Those of the strategy that decides."""
        return self.strategy.aggregates

    def plan(self, tree: SearchTree) -> Plan:
        """Make the rollouts of the last round's steps, then let the strategy decide."""
        expand = tuple(self._rollouts(tree))
        if expand:
            return Plan(expand=expand)
        plan = self.strategy.plan(tree)
        expand = tuple(
            replace(e, first_index=max(e.first_index, tree.child_count(e.node)), round=0)
            for e in plan.expand
        )
        decided = [e.node for e in plan.expand] + [c.node for c in plan.close]
        if plan.finish:
            decided += [leaf.id for leaf in tree.open_leaves()]
        done = [
            Close(end.id, f"lookahead of {node} is over", cause="rollout")
            for node in dict.fromkeys(decided)
            for end in _open_rollouts(tree, node)
        ]
        return replace(plan, expand=expand, close=(*plan.close, *done))

    def _rollouts(self, tree: SearchTree) -> Iterator[Expand]:
        seen: set[tuple[NodeId, str]] = set()
        for record in last_steps(tree):
            if record.parent is None or record.status != "open" or record.score is None:
                continue
            if record.role == "lookahead":
                if not tree.child_count(record.id) and _length(tree, record) < self.steps:
                    yield Expand(record.id, 1, role="lookahead")
            elif (
                not record.is_aside
                and not tree.child_count(record.id)
                and tree.depth(record.id) < self.strategy.max_depth
            ):
                twins = (record.parent, self.strategy.same_step(record.text))
                if not self.strategy.dedup or twins not in seen:
                    yield Expand(record.id, self.rollouts, role="lookahead")
                seen.add(twins)


def _length(tree: SearchTree, record: NodeRecord) -> int:
    """Return how many lookahead steps the path of a rollout ends in."""
    length = 0
    while record.role == "lookahead" and record.parent is not None:
        length, record = length + 1, tree[record.parent]
    return length


def _open_rollouts(tree: SearchTree, node: NodeId) -> Iterator[NodeRecord]:
    for child in tree.children(node) if tree.child_count(node) else ():
        if child.role != "lookahead":
            continue
        if child.status == "open" and not tree.child_count(child.id):
            yield child
        yield from _open_rollouts(tree, child.id)
