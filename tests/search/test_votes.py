"""Weighted, hybrid and knockout votes against counts by hand, with exact fractions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import permutations, product
from random import Random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.search.test_selectors import SPELLINGS, Path, best, build, mean, padded, paths
from tests.search.world import PROBLEM
from vprm_search.ids import child_id
from vprm_search.search import (
    BestScore,
    Close,
    HybridVote,
    Knockout,
    MajorityVote,
    Selection,
    Selector,
    WeightedVote,
)
from vprm_search.search.selectors import tournament
from vprm_search.tree import SearchTree
from vprm_search.types import NodeRecord

Value = Callable[[list[Fraction], Fraction], Fraction | float]


def elected_by(last: dict[str, Path], value: Value) -> str | None:
    """Return the winner when a class is worth `value(its means, its share of the answers)`.

    Ties go to the better best path, then to that with the smallest id; only scored paths can win.
    """
    scored = {n: p for n, p in last.items() if mean(p) is not None}
    answered = [p for p in last.values() if p.answer is not None]
    groups: dict[int, dict[str, Path]] = {}
    for node, path in scored.items():
        if path.answer is not None:
            groups.setdefault(SPELLINGS[path.answer], {})[node] = path
    if not groups:
        return best(scored)
    ranked = []
    for group, members in groups.items():
        means = [score for path in members.values() if (score := mean(path)) is not None]
        agreeing = sum(SPELLINGS[p.answer or ""] == group for p in answered)
        worth = value(means, Fraction(agreeing, len(answered)))
        ranked.append((-worth, -max(means), best(members)))
    return min(ranked)[-1]


def winner(selector: Selector, candidates: Sequence[Path]) -> tuple[str | None, dict[str, Path]]:
    tree, last = build(candidates)
    return selector.select(tree, tree.finished()).node, last


@given(paths("finished"), st.sampled_from(["sum", "mean", "max"]))
def test_a_weighted_vote_weighs_classes_as_it_says(candidates: list[Path], weigh: str) -> None:
    chosen, last = winner(WeightedVote(aggregate="mean", weigh=weigh), candidates)  # type: ignore[arg-type]
    value: dict[str, Value] = {
        "sum": lambda means, _: sum(means, Fraction(0)),
        "mean": lambda means, _: float(sum(means, Fraction(0)) / len(means)),
        "max": lambda means, _: max(means),
    }
    assert chosen == elected_by(last, value[weigh])


@given(paths("finished"))
def test_a_vote_by_odds_weighs_a_path_of_score_p_by_p_to_one_less_p(
    candidates: list[Path],
) -> None:
    tree, last = build(candidates)
    selection = WeightedVote(aggregate="mean", weight="odds").select(tree, tree.finished())
    held = Fraction(99, 100)

    def odds(means: list[Fraction], _: Fraction) -> Fraction:
        return sum((min(p, held) / (1 - min(p, held)) for p in means), Fraction(0))

    rounded = elected_by(last, lambda means, share: round(float(odds(means, share)), 9))
    assert selection.node in (elected_by(last, odds), rounded)  # a tie, up to the last bit


@given(paths("finished"), st.sampled_from([0.0, 0.25, 0.5, 1.0]))
def test_a_hybrid_vote_is_the_product_of_agreement_and_best_score(
    candidates: list[Path], agreement: float
) -> None:
    chosen, last = winner(HybridVote(aggregate="mean", agreement=agreement), candidates)
    # fourth powers are exact and rank alike
    fourths = int(agreement * 4)
    expected = elected_by(
        last, lambda means, share: float(share**fourths * max(means) ** (4 - fourths)) ** 0.25
    )
    exact = elected_by(last, lambda means, share: share**fourths * max(means) ** (4 - fourths))
    assert chosen in (expected, exact)  # products that differ in the last bit only


@given(paths("finished"))
@example(
    [Path(*p) for p in (("(b)", (0,)), ("(b)", (0,)), ("0.5", (1,)), ("(b)", (0,)), ("(b)", (1,)))]
)
def test_the_ends_of_the_hybrid_are_score_alone_and_agreement_alone(
    candidates: list[Path],
) -> None:
    tree, last = build(candidates)
    finished = tree.finished()
    by_score = HybridVote(aggregate="mean", agreement=0.0).select(tree, finished).node
    assert by_score == WeightedVote(aggregate="mean", weigh="max").select(tree, finished).node
    by_count = HybridVote(aggregate="mean", agreement=1.0).select(tree, finished)
    if any(mean(p) is not None and p.answer for p in candidates):
        assert by_count.node == MajorityVote().select(tree, finished).node
    if all(path.answer for path in candidates):
        assert by_score == BestScore().select(tree, finished).node or not last


@given(paths("finished"))
def test_agreement_times_mean_ranks_as_the_sum_when_all_are_scored(
    candidates: list[Path],
) -> None:
    scored = [p for p in candidates if None not in p.scores]
    tree, _ = build(scored)
    hybrid = HybridVote(aggregate="mean", agreement=0.5, weigh="mean").select(tree, tree.finished())
    summed = WeightedVote(aggregate="mean").select(tree, tree.finished())
    if summed.node is not None and hybrid.node != summed.node:  # a tie, up to the last bit
        assert hybrid.node is not None
        assert summed.votes[hybrid.node] == pytest.approx(summed.votes[summed.node], rel=1e-12)


# --- knockout ----------------------------------------------------------------------------------


@given(paths("finished"), st.sampled_from(["sum", "mean", "max"]))
def test_a_jury_of_one_is_a_weighted_vote(candidates: list[Path], weigh: str) -> None:
    tree, _ = build(candidates)
    one = Knockout(jury=("mean",), weigh=weigh)  # type: ignore[arg-type]
    vote = WeightedVote(aggregate="mean", weigh=weigh)  # type: ignore[arg-type]
    assert one.select(tree, tree.finished()) == vote.select(tree, tree.finished())


def fractions(path: Path) -> list[Fraction]:
    return [Fraction(score or 0, 16) for score in path.scores]


JURORS: dict[str, Callable[[list[Fraction]], Fraction]] = {
    "mean": lambda values: sum(values, Fraction(0)) / len(values),
    "min": min,
    "last": lambda values: values[-1],
}


@given(paths("finished"))
def test_an_answer_that_beats_every_other_wins_the_tournament(candidates: list[Path]) -> None:
    tree, last = build([p for p in candidates if None not in p.scores])
    groups: dict[int, list[Path]] = {}
    for path in last.values():
        if path.answer is not None:
            groups.setdefault(SPELLINGS[path.answer], []).append(path)
    weights = {
        name: {g: sum((juror(fractions(p)) for p in ps), Fraction(0)) for g, ps in groups.items()}
        for name, juror in JURORS.items()
    }

    def beats(a: int, b: int) -> bool:
        votes = [weights[name][a] - weights[name][b] for name in JURORS]
        return sum(v > 0 for v in votes) > sum(v < 0 for v in votes)

    masters = [a for a in groups if all(beats(a, b) for b in groups if b != a)]
    chosen = Knockout().select(tree, tree.finished()).node
    assert len(masters) <= 1
    if masters:
        assert chosen is not None
        assert SPELLINGS[last[chosen].answer or ""] == masters[0]


@pytest.mark.parametrize("count", range(1, 8))
def test_a_tournament_is_won_by_whoever_beats_all_from_any_seed(count: int) -> None:
    for order in list(permutations(range(count)))[:: max(1, count * 7)]:
        assert tournament(count, lambda better, worse, o=order: o[worse] > o[better]) == (
            order.index(max(order))
        )


@given(st.integers(1, 20), st.randoms(use_true_random=False))
def test_a_tournament_takes_one_duel_less_than_contestants(count: int, rng: Random) -> None:
    duels: list[tuple[int, int]] = []

    def upset(better: int, worse: int) -> bool:
        duels.append((better, worse))
        return rng.random() < 0.5

    champion = tournament(count, upset)
    assert 0 <= champion < count
    assert len(duels) == count - 1
    assert all(better < worse for better, worse in duels)


def test_no_upsets_means_the_first_seed_and_the_best_meets_the_worst() -> None:
    met: list[tuple[int, int]] = []
    assert tournament(5, lambda better, worse: bool(met.append((better, worse)))) == 0
    assert met == [(0, 4), (1, 3), (0, 2), (0, 1)]


# --- every selector ----------------------------------------------------------------------------

EVERY: list[Selector] = [
    BestScore(),
    MajorityVote(),
    *(WeightedVote(weigh=w) for w in ("sum", "mean", "max")),  # type: ignore[arg-type]
    WeightedVote(aggregate="length_product:0.5"),
    *(HybridVote(agreement=a, weigh=w) for a, w in product((0.25, 0.5), ("max", "mean"))),  # type: ignore[arg-type]
    Knockout(),
    Knockout(jury=("product", "last"), weigh="mean", aggregate="last"),
]
every = st.sampled_from(EVERY)


@given(every, paths("finished"), st.randoms(use_true_random=False))
@settings(max_examples=150)
def test_permuting_candidates_changes_nothing(
    selector: Selector, candidates: list[Path], rng: Random
) -> None:
    tree, _ = build(candidates)
    shuffled = tree.finished()
    rng.shuffle(shuffled)
    assert selector.select(tree, shuffled) == selector.select(tree, tree.finished())


@given(every, paths("finished"))
@settings(max_examples=150)
def test_an_unscored_path_never_wins(selector: Selector, candidates: list[Path]) -> None:
    chosen, last = winner(selector, candidates)
    if not isinstance(selector, MajorityVote):
        assert chosen is None or mean(last[chosen]) is not None
        assert (chosen is None) == all(mean(p) is None for p in candidates)
    elif any(mean(p) is not None and p.answer for p in candidates):
        assert chosen is not None
        assert mean(last[chosen]) is not None


@given(every, paths("finished"))
@settings(max_examples=150)
def test_equal_answers_are_one_answer(selector: Selector, candidates: list[Path]) -> None:
    """Writing an answer in another spelling of its class chooses the same class."""
    one = {group: sorted(s for s in SPELLINGS if SPELLINGS[s] == group)[0] for group in range(4)}
    plain = [
        Path(None if p.answer is None else one[SPELLINGS[p.answer]], p.scores) for p in candidates
    ]
    (a, last_a), (b, _) = winner(selector, candidates), winner(selector, plain)
    assert a == b
    assert a is None or a in last_a


@given(every, paths("finished").filter(bool), st.integers(0, 20), st.floats(0, 1), st.booleans())
@settings(max_examples=150)
def test_padding_a_loser_never_makes_it_win(
    selector: Selector, candidates: list[Path], choice: int, score: float, empty: bool
) -> None:
    """An empty step or a repeated one never raises the rank of the path it stands in."""
    tree, _ = build(candidates)
    before = selector.select(tree, tree.finished())
    losers = [r for r in tree.finished() if not _wins(before, r.id)]
    if not losers:
        return
    record = losers[choice % len(losers)]
    steps = tree.steps(record.id)
    other, end = padded(tree, record, "" if empty else steps[choice % len(steps)], score)
    assert selector.select(other, other.finished()).node != end or _tied(selector, tree, record.id)


def _wins(selection: Selection, node: str) -> bool:
    """Whether the node's class won: within it, which path speaks is a matter of best score."""
    return selection.node == node


def _tied(selector: Selector, tree: SearchTree, node: str) -> bool:
    """Whether the padded path was as good as the winner: its new id may break the tie."""
    rest = [r for r in tree.finished() if r.id != node]
    before = selector.select(tree, tree.finished())
    if before.node is None:
        return False
    scores = {r.id: tree.path_score(r.id, selector.aggregate) for r in [*rest, tree[node]]}
    same_score = scores[node] == scores[before.node]
    return same_score and before.votes.get(node) == before.votes.get(before.node)


WRONG: list[tuple[type, dict[str, object]]] = [
    (WeightedVote, {"weigh": "median"}),
    (HybridVote, {"weigh": "sum"}),
    (HybridVote, {"agreement": 1.5}),
    (Knockout, {"jury": ()}),
    (Knockout, {"jury": ("mean", "mean")}),
    (Knockout, {"jury": ("median",)}),
    (Knockout, {"rounds": 3}),
]


@pytest.mark.parametrize(("kind", "options"), WRONG)
def test_impossible_settings_are_refused(kind: type, options: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        kind(**options)


@pytest.mark.parametrize("selector", EVERY)
def test_every_selector_is_one(selector: Selector) -> None:
    assert isinstance(selector, Selector)


@given(
    st.lists(
        st.tuples(st.sampled_from(["1", "2", "3"]), st.integers(0, 16), st.integers(1, 4)),
        min_size=1,
        max_size=6,
    ),
    st.sampled_from(
        [
            WeightedVote(),
            WeightedVote(weigh="mean"),
            WeightedVote(weigh="max"),
            MajorityVote(aggregate="last"),
            HybridVote(agreement=0.3),
            Knockout(jury=("last", "mean")),
        ]
    ),
)
@example([("1", 1, 2), ("2", 1, 1)], WeightedVote(weigh="mean"))
def test_merging_equal_samples_changes_no_vote(
    samples: list[tuple[str, int, int]], selector: Selector
) -> None:
    """Each sample is there `count` times: so many candidates, or one they were merged into."""
    apart, merged = SearchTree(PROBLEM), SearchTree(PROBLEM)
    index = 0
    for number, (answer, sixteenths, count) in enumerate(samples):
        first = None
        for _ in range(count):
            text = f"sample {number}"
            score = sixteenths / 16
            record = NodeRecord(
                child_id(apart.root_id, index, text),
                apart.root_id,
                index,
                text,
                status="finished",
                score=score,
                path_scores={"last": score, "mean": score},
                answer=answer,
                round=1,
            )
            apart.merge([record])
            if first is None:
                first = record.id
                merged.merge([record])
            else:
                same = Close(record.id, "the same", cause="duplicate", merged_into=first)
                merged.merge([same.closed(record)])
            index += 1
    one = selector.select(apart, apart.finished())
    other = selector.select(merged, merged.finished())
    assert apart[one.node or ""].answer == merged[other.node or ""].answer
    assert other.votes == pytest.approx({node: one.votes[node] for node in other.votes})
