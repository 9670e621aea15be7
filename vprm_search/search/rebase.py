"""REBASE: the next steps are divided among the open paths by their scores."""

from __future__ import annotations

from pydantic import Field

from vprm_search.search.plan import Close, Expand, Plan
from vprm_search.search.pruning import Ranked
from vprm_search.search.resampling import largest_remainders, softmax
from vprm_search.search.shared_context import worth_keeping
from vprm_search.search.stepwise import StepwiseSearch
from vprm_search.tree import SearchTree


class REBASE(StepwiseSearch):
    """Give each open path a number of next steps in proportion to softmax(score / temperature).

    The steps of a level sum to `width` less the paths that have finished, so the search narrows
    as answers come in and ends when `width` of them are there. Reward balanced search, Wu et al.,
    arXiv 2408.00724 §3.2; the defaults are its temperature 0.2 and the score of the latest step.
    Shares are rounded by largest remainders, where the paper rounds each, so that they sum exactly.

    With `context_cost` above 0 paths are first pruned together so that the kept ones share more of
    their context (see `shared_context.worth_keeping`), in the spirit of ETS (arXiv 2502.13575);
    images make a shared prefix worth more.

    Args:
        width: steps proposed per level, and finished paths wanted.
        temperature: low values give most steps to the best path, high values equal shares.
        context_cost: weight of the context kept against the reward kept; ETS uses 1 to 2.
    """

    aggregate: str = "last"
    width: int = Field(default=16, ge=1, le=256)
    temperature: float = Field(default=0.2, gt=0)
    context_cost: float = Field(default=0.0, ge=0)

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
            close += [Close(leaf.id, f"width {self.width} used up") for _, leaf in ranked]
            return Plan(close=tuple(close), finish=f"{self.width} paths finished")
        ranked, pruned = self.pruning.apply(ranked)
        close += pruned
        if not ranked:
            return Plan(close=tuple(close), finish="no open path is left")
        ranked, costly = self._share_context(tree, ranked)
        expand, outweighed = self._divide(ranked, left)
        return Plan(expand=expand, close=(*close, *costly, *outweighed))

    def _share_context(self, tree: SearchTree, ranked: Ranked) -> tuple[Ranked, list[Close]]:
        if not self.context_cost:
            return ranked, []
        weights = softmax([score for score, _ in ranked], self.temperature)
        worth = {leaf.id: weight for (_, leaf), weight in zip(ranked, weights, strict=True)}
        keep = worth_keeping(tree, worth, self.context_cost) | {ranked[0][1].id}
        why = f"context_cost {self.context_cost}: its own context outweighs its share"
        close = [
            Close(leaf.id, f"{why} {worth[leaf.id]:.4f}; {ranked[0][1].id} is best")
            for _, leaf in ranked
            if leaf.id not in keep
        ]
        return [pair for pair in ranked if pair[1].id in keep], close

    def _divide(self, ranked: Ranked, slots: int) -> tuple[tuple[Expand, ...], list[Close]]:
        weights = softmax([score for score, _ in ranked], self.temperature)
        expand, close = [], []
        for (_, leaf), weight, count in zip(
            ranked, weights, largest_remainders(weights, slots), strict=True
        ):
            if count:
                expand.append(Expand(leaf.id, count))
                continue
            best = ranked[0][1].id
            reason = f"rebase: a share of {weight:.4f} of {slots} steps is none; {best} leads"
            close.append(Close(leaf.id, reason))
        return tuple(expand), close
