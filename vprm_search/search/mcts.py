"""Monte Carlo tree search: PUCT over steps, with the process reward model as the value."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from pydantic import Field

from vprm_search.search.plan import Close, Plan
from vprm_search.search.rebase import softmax
from vprm_search.search.stepwise import StepwiseSearch, distinct, last_parents
from vprm_search.tree import SearchTree
from vprm_search.types import NodeId

# --- PUCT: which arm to try next, and how a value is backed up; nothing here knows about trees ---
# The formula is that of AlphaZero and MuZero (Schrittwieser et al., arXiv 1911.08265, appendix B)
# as DeepMind's mctx computes it, so that its recorded searches can be replayed step by step.

QTransform = Callable[[float, Sequence[float], Sequence[int]], Sequence[float]]
"""From a node's value, its arms' values and their visits to numbers comparable with the bonus.

The value of an arm that was never visited is 0 unless the caller knows better.
"""


@dataclass(slots=True)
class Stats:
    """What is known of a node: its visits and the mean of the values backed up through it.

    `pending` counts the simulations under way below it: each stands for a visit of value 0 until
    it is backed up (virtual loss; Chaslot, Winands and van den Herik, "Parallel Monte-Carlo Tree
    Search", 2008).
    """

    visits: int = 0
    value: float = 0.0
    pending: int = 0


@dataclass(frozen=True, slots=True)
class Arm:
    """One choice at a node: its prior share, its visits, and its value as seen from the node."""

    prior: float
    visits: int
    value: float


def as_is(node_value: float, values: Sequence[float], visits: Sequence[int]) -> Sequence[float]:
    """Return the values: right when they are probabilities already, unvisited arms included."""
    return values


def by_min_max(low: float, high: float) -> QTransform:
    """Return the transform that maps [low, high] to [0, 1]; an unvisited arm is worth `low`."""

    def transform(
        node_value: float, values: Sequence[float], visits: Sequence[int]
    ) -> Sequence[float]:
        seen = (q if count else low for q, count in zip(values, visits, strict=True))
        return [(q - low) / (high - low) for q in seen]

    return transform


def by_parent_and_siblings(
    node_value: float, values: Sequence[float], visits: Sequence[int]
) -> Sequence[float]:
    """Return the values over the range of the node's and its visited arms' values.

    An unvisited arm is worth the least of them.
    """
    seen = [q if count else node_value for q, count in zip(values, visits, strict=True)]
    low, high = min([node_value, *seen]), max([node_value, *seen])
    span = max(high - low, 1e-8)
    filled = (q if count else low for q, count in zip(values, visits, strict=True))
    return [(q - low) / span for q in filled]


def puct_scores(
    node: Stats, arms: Sequence[Arm], *, c_init: float, c_base: float, qtransform: QTransform
) -> list[float]:
    """Return Q(a) + P(a) · √N / (1 + n(a)) · (c_init + log((N + c_base + 1) / c_base)) per arm.

    N are the visits of the node, n(a) those of the arm.
    """
    count = node.visits + node.pending
    weight = math.sqrt(count) * (c_init + math.log((count + c_base + 1.0) / c_base))
    values = qtransform(node.value, [arm.value for arm in arms], [arm.visits for arm in arms])
    return [
        value + weight * arm.prior / (1.0 + arm.visits)
        for value, arm in zip(values, arms, strict=True)
    ]


def back_up(path: Sequence[Stats], value: float) -> None:
    """Count one visit for every node of a path whose end was found to be worth `value`."""
    for node in path:
        node.value = (node.value * node.visits + value) / (node.visits + 1)
        node.visits += 1


# --- the search --------------------------------------------------------------------------------

_Walk = list[NodeId]


@dataclass(slots=True)
class _State:
    """The walks so far. `children` are the steps in play below a node that was expanded."""

    stats: dict[NodeId, Stats] = field(default_factory=lambda: defaultdict(Stats))
    children: dict[NodeId, list[NodeId]] = field(default_factory=dict)
    exhausted: set[NodeId] = field(default_factory=set)
    walks: list[_Walk] = field(default_factory=list)
    started: int = 0


class MCTS(StepwiseSearch):
    """Run `simulations` walks from the root, each to the step that PUCT finds most promising.

    At a node with N visits a walk takes the child with the largest
    Q + prior * √N / (1 + n) * (c_init + log((N + c_base + 1) / c_base)); Q is the mean of the
    values backed up through a child, and before its first visit its own path score, which is known
    as soon as it is proposed. A walk goes on (`to_end`) until its path ends, and the path score of
    a finished path is backed up, 0 for one that was cut (terminal back-up, as in rStar-Math,
    arXiv 2501.04519 §3.2); otherwise it stops at the first step it expands and backs up that
    step's own score (as in MuZero, arXiv 1911.08265). An ended path, and a step whose children
    have all ended, is not walked again. `batch` walks are under way at a time; each counts as a
    visit of value 0 wherever it passes until it is backed up (virtual loss), so they spread.

    The statistics are no state of their own: they are replayed from the tree.

    The options not listed are those of `StepwiseSearch`.

    Args:
        simulations: walks in all. Default: 16.
        batch: walks under way at a time; 1 is the textbook search. Default: 4.
        expand: children proposed per step. Default: 4.
        root_expand: children of the root. Default: 8.
        to_end: walk to the end of a solution instead of one new step. Default: True.
        c_init: exploration (1.25 in AlphaZero and OpenR; 2 in rStar-Math). Default: 1.25.
        c_base: visits at which exploration begins to grow (19652 in AlphaZero). Default: 19652.
        prior_temperature: priors are softmax(own score / this); None: all equal. Default: None.
        qtransform: how values are scaled (`puct.by_min_max`, `puct.by_parent_and_siblings`).
            Default: `as_is`.
        pruning: compares the children of one node: there are no levels. Default: nothing.
    """

    simulations: int = Field(default=16, ge=1)
    batch: int = Field(default=4, ge=1, le=256)
    expand: int = Field(default=4, ge=1, le=256)
    root_expand: int = Field(default=8, ge=1, le=256)
    to_end: bool = True
    c_init: float = Field(default=1.25, ge=0)
    c_base: float = Field(default=19652.0, gt=0)
    prior_temperature: float | None = Field(default=None, gt=0)
    qtransform: QTransform = as_is

    def plan(self, tree: SearchTree) -> Plan:
        """Replay the walks as far as the tree goes, and ask for the steps they wait for."""
        state = _CACHE.setdefault(tree, {}).setdefault(self, _State())
        waiting = self._advance(tree, state)
        close = tuple(self._closes(tree))
        if waiting:
            return Plan(expand=tuple(self._ask(tree, node) for node in waiting), close=close)
        used_up = state.started >= self.simulations
        done = f"{self.simulations} simulations made" if used_up else "no open path is left"
        return Plan(close=close, finish=done)

    def visits(self, tree: SearchTree) -> dict[NodeId, Stats]:
        """Return the visits and the mean values of all nodes visited so far."""
        self.plan(tree)
        return dict(_CACHE[tree][self].stats)

    # --- walks ---------------------------------------------------------------------------------

    def _advance(self, tree: SearchTree, state: _State) -> list[NodeId]:
        """Do all that can be done without new steps; return the nodes that wait for some.

        All walks wait for one another here: were one to go on as soon as its steps are there, the
        statistics would depend on when a search was interrupted.
        """
        while True:
            self._settle(tree, state)
            leaves = dict.fromkeys(walk[-1] for walk in state.walks)
            waiting = [leaf for leaf in leaves if self._ask(tree, leaf).count]
            if waiting or not leaves:
                return waiting
            for walk in [*state.walks]:
                self._go_on(tree, state, walk)

    def _settle(self, tree: SearchTree, state: _State) -> None:
        """Back up the walks whose path has ended, and start others in their place."""
        while True:
            for walk in [*state.walks]:
                if tree[walk[-1]].status == "finished":
                    state.exhausted.add(walk[-1])
                    self._back_up(state, walk, self._worth(tree, walk[-1]))
            started = len(state.walks)
            while len(state.walks) < self.batch and self._may_start(tree, state):
                state.walks.append([tree.root_id])
                state.stats[tree.root_id].pending += 1
                state.started += 1
                self._descend(tree, state, state.walks[-1])
            if len(state.walks) == started:
                return

    def _may_start(self, tree: SearchTree, state: _State) -> bool:
        return state.started < self.simulations and tree.root_id not in state.exhausted

    def _go_on(self, tree: SearchTree, state: _State, walk: _Walk) -> None:
        """Take a walk one step further, now that the children of its last node are there."""
        leaf = walk[-1]
        if leaf not in state.children:
            state.children[leaf] = self._in_play(tree, leaf)
        if not state.children[leaf]:
            state.exhausted.add(leaf)
            self._back_up(state, walk, 0.0)
        elif not self.to_end and leaf != tree.root_id:
            self._back_up(state, walk, self._worth(tree, leaf))
        else:
            self._descend(tree, state, walk)

    def _descend(self, tree: SearchTree, state: _State, walk: _Walk) -> None:
        """Follow PUCT down to a node that was not expanded yet, or whose path has ended."""
        while walk[-1] in state.children:
            open_ = [c for c in state.children[walk[-1]] if c not in state.exhausted]
            if not open_:  # another walk has just used up what was left here
                self._back_up(state, walk, state.stats[walk[-1]].value)
                return
            walk.append(self._choose(tree, state, walk[-1], open_))
            state.stats[walk[-1]].pending += 1

    def _choose(
        self, tree: SearchTree, state: _State, node: NodeId, choices: list[NodeId]
    ) -> NodeId:
        scores = self._child_scores(tree, node)
        own = [scores[child] for child in choices]
        priors = [1.0 / len(choices)] * len(choices)
        if self.prior_temperature is not None:
            priors = softmax(own, self.prior_temperature)
        arms = []
        for child, value, prior in zip(choices, own, priors, strict=True):
            known = state.stats[child]
            visits = known.visits + known.pending
            total = known.value * known.visits if known.visits else value
            arms.append(Arm(prior, visits, total / max(1, visits + (not known.visits))))
        puct = puct_scores(
            state.stats[node],
            arms,
            c_init=self.c_init,
            c_base=self.c_base,
            qtransform=self.qtransform,
        )
        return choices[puct.index(max(puct))]

    def _back_up(self, state: _State, walk: _Walk, value: float) -> None:
        back_up([state.stats[node] for node in walk], value)
        state.walks.remove(walk)
        for node in reversed(walk):
            state.stats[node].pending -= 1
            if node in state.children and state.exhausted.issuperset(state.children[node]):
                state.exhausted.add(node)

    # --- nodes ---------------------------------------------------------------------------------

    def _in_play(self, tree: SearchTree, node: NodeId) -> list[NodeId]:
        """Return the children a walk may take, best first: not cut or put aside."""
        ranked = self._siblings(tree, node)[0]
        scores = self._child_scores(tree, node)
        ranked += [(scores[n], tree[n]) for n in scores if tree[n].status == "finished"]
        ranked.sort(key=lambda pair: (-pair[0], pair[1].id))
        return [child.id for _, child in ranked]

    def _child_scores(self, tree: SearchTree, node: NodeId) -> dict[NodeId, float]:
        children = distinct(tree, node, self.same_step if self.dedup else None)
        return self._scores(tree, [child for child, _ in children])

    def _worth(self, tree: SearchTree, node: NodeId) -> float:
        return self._child_scores(tree, tree[node].parent or tree.root_id)[node]

    def _target(self, tree: SearchTree, parent: NodeId) -> int:
        return self.root_expand if parent == tree.root_id else self.expand

    def _closes(self, tree: SearchTree) -> list[Close]:
        done = [node for node in last_parents(tree) if not self._ask(tree, node).count]
        close = self._duplicates(tree)
        return close + [c for node in done for c in self._siblings(tree, node)[1]]


_CACHE: WeakKeyDictionary[SearchTree, dict[MCTS, _State]] = WeakKeyDictionary()
