"""A cascade of two policies: a cheap one drafts the steps, a strong one redoes the weak ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from vprm_search.search.beam import BeamSearch
from vprm_search.search.lookahead import Lookahead
from vprm_search.search.plan import Close, Expand, Plan
from vprm_search.search.stepwise import StepwiseSearch
from vprm_search.tree import SearchTree
from vprm_search.types import NodeRecord


class Cascade(BaseModel):
    """Let the policy `draft` propose, and the policy `strong` redo every step below `threshold`.

    A drafted step with a score below the threshold is put aside and proposed once more by the
    strong policy, whose step stands whatever its score. What to do with the steps that stand is up
    to `strategy`. Reward-guided speculative decoding, Liao et al., arXiv 2501.19324 §3: one path,
    threshold 0.7, which is the default here; the paper reports up to 4.4 times fewer FLOPs than
    the strong policy alone.

    The policies are given by name: `create_search_graph(policy={"draft": a, "strong": b}, …)`.
    With a single policy a weak step is sampled once more from it. The rest of a path that is asked
    for at the end of a search is the draft's and is not redone.

    Args:
        strategy: what searches among the steps that stand. Default: a beam of one path
            (`BeamSearch(width=1, expand=1)`).
        threshold: score below which a drafted step is redone. Default: 0.7.
        draft: name of the cheap policy. Default: "draft".
        strong: name of the strong policy. Default: "strong".
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    strategy: StepwiseSearch | Lookahead = BeamSearch(width=1, expand=1)
    threshold: float = Field(default=0.7, ge=0, le=1)
    draft: str = Field(default="draft", min_length=1)
    strong: str = Field(default="strong", min_length=1)

    @model_validator(mode="after")
    def _two(self) -> Self:
        if self.draft == self.strong:
            raise ValueError(f"draft and strong are both {self.draft!r}; name two policies")
        return self

    needs_scores: ClassVar[bool] = True

    @property
    def aggregates(self) -> Sequence[str]:
        """Those of the strategy that searches."""
        return self.strategy.aggregates

    def plan(self, tree: SearchTree) -> Plan:
        """Have the weak drafts of the last round redone, else let the strategy go on."""
        weak = [r for r in tree.round_nodes(tree.rounds) if self._is_weak(r)]
        if weak:
            counts = Counter(record.parent or tree.root_id for record in weak)
            close = tuple(Close(r.id, self._reason(r), cause="redone") for r in weak)
            expand = tuple(
                Expand(node, count, tree.child_count(node), policy=self.strong, role="redo")
                for node, count in sorted(counts.items())
            )
            return Plan(expand=expand, close=close)
        plan = self.strategy.plan(tree)
        return replace(
            plan, expand=tuple(replace(e, policy=self.draft, round=0) for e in plan.expand)
        )

    def _is_weak(self, record: NodeRecord) -> bool:
        drafted = record.policy == self.draft and not record.role and bool(record.text)
        if not drafted or record.status in ("pruned", "failed") or record.score is None:
            return False
        return record.score < self.threshold

    def _reason(self, record: NodeRecord) -> str:
        return f"redone by {self.strong}: {record.score:.4f} < {self.threshold:.4f}"
