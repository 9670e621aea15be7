"""DVTS: independent beams."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.search.world import World, run, worlds
from vprm_search.search import DVTS, BeamSearch, Pruning
from vprm_search.tree import SearchTree
from vprm_search.types import StepScore

options = st.fixed_dictionaries(
    {
        "width": st.integers(1, 3),
        "expand": st.integers(1, 4),
        "max_depth": st.integers(1, 6),
        "refill": st.integers(0, 2),
        "aggregate": st.sampled_from(["mean", "min", "last"]),
        "pruning": st.sampled_from([Pruning(), Pruning(below=0.4)]),
        "stop": st.sampled_from([None, 1, "width"]),
        "anneal": st.integers(0, 1),
        "dedup": st.booleans(),
    }
)


@given(worlds, options)
@settings(max_examples=60)
def test_with_one_subtree_it_is_beam_search(world: World, given: dict[str, object]) -> None:
    beam = run(world, BeamSearch(**given))  # type: ignore[arg-type]
    dvts = run(world, DVTS(subtrees=1, **given))  # type: ignore[arg-type]
    assert dvts.tree.dumps() == beam.tree.dumps()
    assert dvts.ended_by == beam.ended_by


@dataclass(frozen=True)
class OtherScoresBelow(World):
    """The same world, but what begins with the step `first` is scored differently from there on."""

    first: str = ""

    def _score(self, steps: tuple[str, ...]) -> StepScore:
        if len(steps) > 1 and steps[0] == self.first:
            return StepScore(0.0625)
        return super()._score(steps)


@given(st.integers(0, 200))
@settings(max_examples=30)
def test_a_subtree_does_not_notice_what_happens_in_the_others(seed: int) -> None:
    strategy = DVTS(subtrees=3, expand=3, max_depth=5, stop=None)
    world = World(seed=seed, words=60, stop=0.1)
    tree = run(world, strategy).tree
    starts = [c for c in tree.children(tree.root_id) if tree.child_count(c.id)]
    for start in starts[:1]:
        changed = OtherScoresBelow(seed=seed, words=60, stop=0.1, first=start.text)
        other = run(changed, strategy).tree
        for sibling in starts[1:]:
            assert _below(other, sibling.id) == _below(tree, sibling.id)


def _below(tree: SearchTree, node: str) -> list[tuple[str, str, float | None]]:
    found = []
    for child in tree.children(node):
        status = "ended" if child.cause == "not_needed" else child.status
        found += [(child.id, status, child.score), *_below(tree, child.id)]
    return found


@given(worlds, st.integers(1, 4), st.integers(1, 2), st.integers(1, 4))
@settings(max_examples=40)
def test_every_subtree_keeps_its_width_and_starts_from_other_steps(
    world: World, subtrees: int, width: int, expand: int
) -> None:
    strategy = DVTS(subtrees=subtrees, width=width, expand=expand, max_depth=5, refill=0)
    trace = run(world, strategy)
    tree = trace.tree
    for plan, text in zip(trace.plans[1:], trace.before[1:], strict=True):
        grown = [tree.path(e.node)[0].text for e in plan.expand]
        assert len(grown) <= subtrees * width
        assert sum(e.count for e in plan.expand) <= subtrees * width * expand
        if SearchTree.loads(text).rounds == 1 and width == 1:
            assert len(set(grown)) == len(grown)  # different first steps


def test_subtrees_without_a_first_step_lend_their_width() -> None:
    """Two different first steps and six subtrees: six paths go on, three below each."""
    world = World(seed=1, words=2, stop=0.0)
    trace = run(world, DVTS(subtrees=6, expand=6, max_depth=3, refill=0))
    tree = SearchTree.loads(trace.before[2])
    starts = [c.id for c in tree.children(tree.root_id) if tree.child_count(c.id)]
    assert len(starts) == 2
    wide = World(seed=1, words=90, stop=0.0)
    second = run(wide, DVTS(subtrees=6, expand=6, max_depth=3, refill=0))
    assert sum(e.count for e in second.plans[1].expand) == 36
