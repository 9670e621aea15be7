"""What a budget lets a round do: no refill that a level may need, and always enough to finish.

Pure rules between a strategy and the loop: every strategy keeps to them without knowing of them.
"""

from __future__ import annotations

from dataclasses import replace

from pydantic import BaseModel

from vprm_search.budget import Budget
from vprm_search.search.plan import Expand, Plan, Strategy
from vprm_search.search.stepwise import StepwiseSearch, known_score
from vprm_search.tree import SearchTree
from vprm_search.types import NodeId

_FAR_INDEX = 1 << 20  # of completions: no strategy asks for that many children
_LONGEST = 32
_USUAL = 12  # VisualPRM merges a solution into at most 12 steps
_LONG_END = 5  # the last step may cost as much as so many others
_KEPT = 4  # one of so many parts of the generated tokens is kept for the first finished path


def longest_path(strategy: object) -> int:
    """Return the steps a path may have: a strategy's `max_depth`, 32 where it has none."""
    while not hasattr(strategy, "max_depth") and hasattr(strategy, "strategy"):
        strategy = strategy.strategy
    return int(getattr(strategy, "max_depth", _LONGEST))


def without_refills(strategy: Strategy) -> Strategy:
    """Return the strategy with `refill=0`, inside a cascade or a lookahead, too."""
    if isinstance(strategy, StepwiseSearch):
        return strategy.model_copy(update={"refill": 0}) if strategy.refill else strategy
    inner = getattr(strategy, "strategy", None)
    if not isinstance(strategy, BaseModel) or inner is None:
        return strategy
    bare = without_refills(inner)
    return strategy if bare is inner else strategy.model_copy(update={"strategy": bare})


def refill_or_go_on(
    refill: Plan, lean: Plan, tree: SearchTree, budget: Budget, longest: int
) -> Plan:
    """Return `refill` if the budget pays for it and then for every level there may be, else `lean`.

    `lean` is what the strategy plans without refills, `longest` the steps a path may have. Where
    it would end the search, the refill is all there is.
    """
    if lean == refill or lean.finish:
        return refill
    levels = max(1, longest - _deepest(lean, tree))
    steps = refill.count + levels * lean.count
    paid = budget.affords(tree, rounds=1 + levels, candidates=steps, steps=steps)
    return refill if paid else lean


def leave_enough(
    plan: Plan, tree: SearchTree, budget: Budget, longest: int, aggregate: str
) -> Plan:
    """Return the plan as far as enough is left after it to finish a path, else rests of paths.

    A path is taken to have as many steps as those that have finished, and tokens are then spread
    evenly over the levels to come. While none has finished it is taken to have 12, or half as many
    again as the deepest one. `aggregate` names the path score that tells which paths are finished
    first.
    """
    ended = tree.finished_depths()
    kept = kept_back(plan, tree, budget, longest)
    if all(expand.until == "end" for expand in plan.expand):
        if plan.expand and all(expand.role == "completion" for expand in plan.expand):
            depths = [tree.depth(expand.node) for expand in plan.expand]
            rest = max(1, _usual_length(max(depths), longest) - min(depths))
            number = budget.paths_affordable(tree, rest)
            plan = plan if number is None else plan.limited_to(max(1, int(number)))
        share = budget.share(tree, 1)
        return plan.limited_to(max(1, share // kept)) if kept and share is not None else plan
    deepest = _deepest(plan, tree)
    length = _usual_length(deepest, longest)
    if ended:
        steps = sum(depth * count for depth, count in ended.items())
        length = round(steps / sum(ended.values()))
    left = max(1, length - deepest)
    if ended:
        even = budget.paths_affordable(tree, left)
        plan = plan if even is None else plan.limited_to(max(1, int(even)))
        if left == 1:
            ends = budget.last_steps_affordable(tree)
            return plan if ends is None else plan.limited_to(max(1, ends))
    count = plan.count
    if all(expand.role != "lookahead" for expand in plan.expand):  # rollouts lead no path on
        left -= 1
    paid = budget.affords(tree, rounds=2, candidates=count + 1, steps=count + left)
    share = budget.share(tree, count, kept=kept)
    if paid and (not kept or share is None or share >= budget.dearest(tree)):
        return plan
    return _rests(plan, tree, budget, length, aggregate) or plan


def kept_back(plan: Plan, tree: SearchTree, budget: Budget, longest: int) -> int:
    """Return the generated tokens that a round leaves for the first path to be finished.

    A quarter of the limit, and at least as much as the rest of a path that has 12 steps (or half as
    many again as the deepest), each as dear as the dearest so far, and the last one five times as
    dear. The very first candidate, by which a search learns what one costs, may have all of it.
    Nothing is kept once a path has finished, or where the tokens are not limited.
    """
    limit = budget.generated_tokens
    if limit is None or tree.finished_depths():
        return 0
    known = budget.dearest(tree)
    if plan.count == 1 and not known:
        return 0
    deepest = _deepest(plan, tree)
    steps = max(1, _usual_length(deepest, longest) - deepest - 1) + _LONG_END - 1
    return max(limit // _KEPT, steps * known)


def most_tokens(plan: Plan, tree: SearchTree, budget: Budget, longest: int) -> int | None:
    """Return the generated tokens that each child of a round may have, None if unlimited."""
    steps = any(expand.until == "step" for expand in plan.expand)
    kept = kept_back(plan, tree, budget, longest) if steps else 0
    share = budget.share(tree, plan.count, kept=kept)
    return None if share is None else max(1, share)


def rest_of_a_cut_path(plan: Plan, tree: SearchTree, budget: Budget, aggregate: str) -> Plan | None:
    """Return a plan for the rest of the best path whose steps were cut, if none has finished.

    For the end of a limited search: what was kept back pays for it. None where there is no such
    path, and tokens are not limited.
    """
    if budget.generated_tokens is None or tree.finished_depths():
        return None
    cut = {r.parent for r in tree.ended() if r.parent and not r.cause and not r.is_aside}
    paths = [Expand(node, 1) for node in sorted(cut) if not was_completed(tree, node)]
    if not paths:
        return None
    best = max(paths, key=lambda expand: _worth(tree, expand, aggregate))
    return replace(plan, expand=(rest_of(best),), finish="", cut=True)


def _usual_length(deepest: int, longest: int) -> int:
    return min(longest, max(_USUAL, deepest + deepest // 2))


def _rests(
    plan: Plan, tree: SearchTree, budget: Budget, length: int, aggregate: str
) -> Plan | None:
    """Return a plan for the whole rests of the paths a plan goes on with, the best first.

    Where more children of one node are wanted, its open ones are gone on with. A path is asked for
    its rest once. If not even the best can be paid for, it is the path nearest to its end; where
    tokens are limited and no path has finished yet, a single one. The new children are completions,
    at indices that no strategy uses, so the strategy may still expand the same paths itself.
    """
    closed = {close.node for close in plan.close if close.cause != "redone"}
    leaves = [leaf for leaf in tree.open_leaves() if leaf.id not in closed]
    expand: list[Expand] = []
    for asked in plan.expand:
        below = [replace(asked, node=r.id, count=1) for r in leaves if r.parent == asked.node]
        expand += below or [asked]
    expand = [e for e in expand if not was_completed(tree, e.node)]
    if not expand:
        return None
    expand.sort(key=lambda e: -_worth(tree, e, aggregate))
    number = budget.paths_affordable(tree, max(1, length - tree.depth(expand[0].node)))
    if number is not None and number < 1:
        expand.sort(key=lambda e: -tree.depth(e.node))
        number = budget.paths_affordable(tree, max(1, length - tree.depth(expand[0].node)))
        if number is not None and number < 1 and tree.finished():
            return None
    whole = replace(plan, expand=tuple(map(rest_of, expand)), cut=True)
    if number is None:
        return whole
    return whole.limited_to(max(1, int(number)) if tree.finished() else 1)


def rest_of(expand: Expand) -> Expand:
    """Return an expansion that asks for whole rests instead, at indices that no strategy uses."""
    return replace(expand, first_index=_FAR_INDEX, until="end", role="completion", round=0)


def was_completed(tree: SearchTree, node: NodeId) -> bool:
    """Return whether the rest of a path was asked for."""
    return any(child.role == "completion" for child in tree.children(node))


def _worth(tree: SearchTree, expand: Expand, aggregate: str) -> float:
    score = None if expand.node == tree.root_id else known_score(tree, expand.node, aggregate)
    return -1.0 if score is None else score


def _deepest(plan: Plan, tree: SearchTree) -> int:
    return max(tree.depth(expand.node) for expand in plan.expand)
