"""Selectors and the conclusion against independent oracles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from random import Random

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.search.world import PROBLEM, World, run, worlds
from vprm_search.aggregate import AGGREGATIONS
from vprm_search.errors import NoAnswerError
from vprm_search.ids import child_id
from vprm_search.search import (
    BeamSearch,
    BestOfN,
    BestScore,
    MajorityVote,
    Selector,
    WeightedVote,
    conclude,
    needs_scores,
)
from vprm_search.tree import SearchTree
from vprm_search.types import NodeId, NodeRecord, NodeStatus, Usage

# Spellings and the class each of them belongs to, by hand.
SPELLINGS = {"1/2": 0, "0.5": 0, "blue": 1, "Blue.": 1, "B": 2, "(b)": 2, "7": 3}


@dataclass(frozen=True)
class Path:
    """One candidate: its answer, its step scores in sixteenths (None: unscored), its status."""

    answer: str | None
    scores: tuple[int | None, ...]
    status: NodeStatus = "finished"


def paths(*statuses: NodeStatus) -> st.SearchStrategy[list[Path]]:
    """Draw candidates of those statuses."""
    step = st.integers(0, 16) | st.sampled_from([None, 8, 8])
    return st.lists(
        st.builds(
            Path,
            answer=st.none() | st.sampled_from(sorted(SPELLINGS)),
            scores=st.lists(step, min_size=1, max_size=3).map(tuple),
            status=st.sampled_from(statuses),
        ),
        max_size=7,
    )


def build(candidates: Sequence[Path]) -> tuple[SearchTree, dict[str, Path]]:
    """Return a tree with one chain per candidate, and the candidates by their last node."""
    tree = SearchTree(PROBLEM)
    last: dict[str, Path] = {}
    for index, path in enumerate(candidates):
        parent, at = tree.root_id, index
        for number, score in enumerate(path.scores):
            text = f"path {index} step {number}"
            node = child_id(parent, at, text)
            end = number == len(path.scores) - 1
            record = NodeRecord(
                node, parent, at, text, round=1, seed=1,
                status=path.status if end else "open",
                score=None if score is None else score / 16,
                score_reason="nan" if score is None else "",
                answer=path.answer if end else None,
            )  # fmt: skip
            tree.merge([record])
            parent, at = node, 0
        last[parent] = path
    return tree, last


def mean(path: Path) -> Fraction | None:
    """Return the exact mean of the step scores, or None."""
    if None in path.scores:
        return None
    return Fraction(sum(score or 0 for score in path.scores), 16 * len(path.scores))


def best(last: dict[str, Path]) -> str | None:
    """Return the node of the best mean, the smallest id on ties."""
    scored = [(score, node) for node, path in last.items() if (score := mean(path)) is not None]
    top = max((score for score, _ in scored), default=None)
    return min((node for score, node in scored if score == top), default=None)


def elected(last: dict[str, Path], *, weighted: bool) -> str | None:
    """Count votes by hand: exact sums, ties by best path, then by id; scored classes first."""
    voters = {n: p for n, p in last.items() if not weighted or mean(p) is not None}
    groups: dict[int, dict[str, Path]] = {}
    for node, path in voters.items():
        if path.answer is not None:
            groups.setdefault(SPELLINGS[path.answer], {})[node] = path
    if not groups:
        return best(voters)
    ranked = []
    for members in groups.values():
        means = [score for path in members.values() if (score := mean(path)) is not None]
        votes = sum(means) if weighted else len(members)
        top = max(means, default=Fraction(-1))
        winner = best(members) or min(members)
        ranked.append((not means, -votes, -top, winner))
    return min(ranked)[-1]


@given(paths("finished"))
def test_argmax_takes_the_best_mean(candidates: list[Path]) -> None:
    tree, last = build(candidates)
    answered = best({node: path for node, path in last.items() if path.answer is not None})
    assert BestScore().select(tree, tree.finished()).node == (answered or best(last))


@given(paths("finished"))
def test_majority_counts_equal_answers(candidates: list[Path]) -> None:
    tree, last = build(candidates)
    selection = MajorityVote().select(tree, tree.finished())
    assert selection.node == elected(last, weighted=False)
    classes = [SPELLINGS[p.answer] for p in candidates if p.answer is not None]
    for node, path in last.items():
        expected = None if path.answer is None else classes.count(SPELLINGS[path.answer])
        assert selection.votes.get(node) == expected


@given(paths("finished"))
def test_a_weighted_vote_adds_scores_of_equal_answers(candidates: list[Path]) -> None:
    tree, last = build(candidates)
    selection = WeightedVote(aggregate="mean").select(tree, tree.finished())
    assert selection.node == elected(last, weighted=True)
    for node, votes in selection.votes.items():
        group = SPELLINGS[last[node].answer or ""]
        same = [p for p in candidates if p.answer and SPELLINGS[p.answer] == group]
        means = [score for path in same if (score := mean(path)) is not None]
        assert votes == pytest.approx(float(sum(means)), rel=1e-15)


SELECTORS: list[Selector] = [BestScore(), MajorityVote(), WeightedVote(aggregate="mean")]
selectors = st.sampled_from(SELECTORS)


@given(selectors, paths("finished"), st.randoms(use_true_random=False))
def test_the_order_of_the_candidates_does_not_matter(
    selector: Selector, candidates: list[Path], rng: Random
) -> None:
    tree, _ = build(candidates)
    shuffled = tree.finished()
    rng.shuffle(shuffled)
    assert selector.select(tree, shuffled) == selector.select(tree, tree.finished())


@given(selectors, paths("finished"))
def test_an_unscored_path_never_wins_over_a_scored_one_with_an_answer(
    selector: Selector, candidates: list[Path]
) -> None:
    tree, last = build(candidates)
    winner = selector.select(tree, tree.finished()).node
    if any(mean(path) is not None and path.answer for path in candidates):
        assert winner is not None
        assert mean(last[winner]) is not None
    if not isinstance(selector, MajorityVote) and winner is not None:
        assert mean(last[winner]) is not None


def test_votes_that_differ_only_in_order_tie() -> None:
    """0.1 + 0.2 + 0.3 is not 0.3 + 0.2 + 0.1 in floating point, but it is as many votes."""
    tree = SearchTree(PROBLEM)
    values = [(0.1, "x"), (0.2, "x"), (0.3, "x"), (0.3, "y"), (0.2, "y"), (0.1, "y")]
    for index, (score, answer) in enumerate(values):
        node = child_id(tree.root_id, index, f"s{index}")
        tree.merge(
            [
                NodeRecord(
                    node, tree.root_id, index, f"s{index}", "finished", score=score, answer=answer
                )
            ]
        )
    selection = WeightedVote().select(tree, tree.finished())
    assert len(set(selection.votes.values())) == 1
    ranked = [r.id for r in tree.finished()]
    by_class = {a: min(r.id for r in tree.finished() if r.answer == a) for a in "xy"}
    chosen = tree[selection.node or ""]
    assert by_class[chosen.answer or ""] == ranked[0]


# --- the conclusion ----------------------------------------------------------------------------


def chosen(selector: Selector, tree: SearchTree) -> NodeId | None:
    """Return what a selector takes; where no finished path has a score, the majority's path."""
    without_scores = MajorityVote(aggregate=selector.aggregate)
    picks = (rule.select(tree, tree.finished()).node for rule in (selector, without_scores))
    return next((node for node in picks if node is not None), None)


@given(selectors, paths("finished", "truncated", "open", "pruned"))
def test_the_conclusion_is_the_winner_or_a_flagged_fallback(
    selector: Selector, candidates: list[Path]
) -> None:
    tree, last = build(candidates)
    result = conclude(tree, selector, usage=Usage(), ended_by="test")
    finished = {n: p for n, p in last.items() if p.status == "finished"}
    winner = chosen(selector, tree)
    assert result.fallback == (winner is None)
    if winner is not None:
        assert result.node == winner
        assert {c.node for c in result.candidates} == set(finished)
    elif result.node is not None:
        assert last[result.node].status in ("truncated", "open")
    if result.node is not None:
        assert result.answer == last[result.node].answer
        assert result.text == "\n\n".join(tree.steps(result.node))
        assert result.score == tree.path_score(result.node, selector.aggregate)
        assert result.node in {c.node for c in result.candidates}
    ranks = [(-c.votes, 1.0 if c.score is None else -c.score, c.node) for c in result.candidates]
    assert ranks == sorted(ranks)
    assert result.to_json()["candidates"] == [c.to_json() for c in result.candidates]


@given(paths("truncated", "open", "pruned"))
def test_without_a_finished_path_the_best_cut_one_is_taken(candidates: list[Path]) -> None:
    tree, last = build(candidates)
    result = conclude(tree, BestScore(), usage=Usage(), ended_by="test")
    cut = {n: p for n, p in last.items() if p.status in ("truncated", "open")}
    assert result.fallback
    answered = best({node: path for node, path in cut.items() if path.answer is not None})
    assert result.node == (answered or best(cut))


@given(selectors, paths("finished", "truncated", "open"))
def test_as_configured_no_answer_is_a_typed_error(
    selector: Selector, candidates: list[Path]
) -> None:
    tree, _ = build(candidates)
    if chosen(selector, tree) is None:
        with pytest.raises(NoAnswerError, match=r"no path finished.*test.*on_no_answer"):
            conclude(tree, selector, usage=Usage(), ended_by="test", on_no_answer="error")
    else:
        strict = conclude(tree, selector, usage=Usage(), ended_by="test", on_no_answer="error")
        assert strict == conclude(tree, selector, usage=Usage(), ended_by="test")


@given(worlds, selectors, st.sampled_from([BestOfN(6), BeamSearch(width=2, expand=3, max_depth=5)]))
@settings(max_examples=60)
def test_a_whole_search_concludes_with_a_path_that_ended(
    world: World, selector: Selector, strategy: BestOfN | BeamSearch
) -> None:
    tree = run(world, strategy, selector=selector).tree
    result = conclude(tree, selector, usage=Usage(), ended_by="test")
    if any(tree.path_score(r.id, "mean") is not None for r in tree.finished()):
        assert not result.fallback
        assert result.node is not None
        assert tree[result.node].status == "finished"


names = st.sampled_from(sorted(AGGREGATIONS))


# --- padding -----------------------------------------------------------------------------------


def padded(tree: SearchTree, record: NodeRecord, text: str, score: float) -> tuple[SearchTree, str]:
    """Return the tree with one more step behind a finished path, and the new end of the path."""
    end = NodeRecord(child_id(record.id, 0, text), record.id, 0, text, "finished", score=score)
    other = SearchTree(PROBLEM)
    other.merge(r for r in tree if r.id != record.id)
    other.merge([replace(record, status="open"), end])
    return other, end.id


@given(names, paths("finished").filter(bool), st.integers(0, 6), st.floats(0, 1))
def test_an_empty_step_never_changes_a_score(
    name: str, candidates: list[Path], choice: int, score: float
) -> None:
    tree, _ = build(candidates)
    record = tree.finished()[choice % len(candidates)]
    other, end = padded(tree, record, "", score)
    assert other.path_score(end, name) == tree.path_score(record.id, name)


@pytest.mark.parametrize(
    "name",
    [
        "mean",
        "geometric_mean",
        "last",
        "min",
        "max",
        "product",
    ],
)
@settings(max_examples=50, phases=[Phase.generate])
@given(candidates=paths("finished").filter(bool), choice=st.integers(0, 20), score=st.floats(0, 1))
def test_a_repeated_step_never_raises_a_score(
    name: str, candidates: list[Path], choice: int, score: float
) -> None:
    tree, _ = build(candidates)
    record = tree.finished()[choice % len(candidates)]
    steps = tree.steps(record.id)
    other, end = padded(tree, record, steps[choice % len(steps)], score)
    before, after = tree.path_score(record.id, name), other.path_score(end, name)
    assert after is None or (before is not None and after <= before)


@pytest.mark.parametrize("selector", [BestScore, MajorityVote, WeightedVote])
def test_an_unknown_aggregation_is_refused(selector: type[BestScore]) -> None:
    with pytest.raises(ValidationError):
        selector(aggregate="median")
    assert isinstance(selector(aggregate="min"), Selector)


def test_a_path_whose_next_steps_all_failed_is_still_a_fallback() -> None:
    tree = SearchTree(PROBLEM)
    kept = NodeRecord(child_id(tree.root_id, 0, "a"), tree.root_id, 0, "a", score=0.9)
    tree.merge([kept])
    failed = [
        NodeRecord(child_id(kept.id, i, ""), kept.id, i, status="failed", reason="server gone")
        for i in range(2)
    ]
    tree.merge(failed)
    result = conclude(tree, BestScore(), usage=Usage(), ended_by="no open path is left")
    assert (result.node, result.text, result.fallback) == (kept.id, "a", True)


@given(selectors, paths("truncated", "open", "pruned", "failed"))
def test_a_fallback_is_a_path_that_nothing_living_goes_on_from(
    selector: Selector, candidates: list[Path]
) -> None:
    tree, _ = build(candidates)
    result = conclude(tree, selector, usage=Usage(), ended_by="test")
    assert result.fallback
    if result.node is not None:
        record = tree[result.node]
        assert record.status in ("truncated", "open")
        assert {child.status for child in tree.children(record.id)} <= {"failed"}
        assert result.text == "\n\n".join(tree.steps(record.id))


@given(worlds)
@settings(max_examples=25)
def test_rules_that_need_no_scores_decide_the_same_without_any(world: World) -> None:
    for strategy in (BestOfN(6), BestOfN(9, confidence=0.8, min_n=3, wave=2)):
        assert not needs_scores(strategy)
        scored, blind = run(world, strategy), run(replace(world, unscored=1.0), strategy)
        assert [plan.expand for plan in blind.plans] == [plan.expand for plan in scored.plans]
        told, seen = (
            MajorityVote().select(trace.tree, trace.tree.finished()) for trace in (scored, blind)
        )
        assert seen.votes == told.votes
        assert (seen.node is None) == (not seen.votes)
    assert not needs_scores(MajorityVote())


def test_a_rule_needs_scores_unless_it_says_otherwise() -> None:
    rules = (BestScore(), WeightedVote(), BeamSearch(), BestOfN(9, good_enough=0.9), object())
    assert all(needs_scores(rule) for rule in rules)
