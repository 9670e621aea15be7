"""Estimators against enumeration, written the slow way, and against published numbers."""

from __future__ import annotations

import math
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.evaluate.pools import CRITICS, pooled, pools
from vprm_search.errors import ConfigError, RecordError
from vprm_search.evaluate.estimators import (
    FIRST_SEEN,
    LIKELIHOOD,
    MAJORITY,
    ORACLE,
    PASS_1,
    VOTE,
    ProblemFigures,
    chosen,
    figures_of,
    pass_at_k,
    rank_weights,
    selectors_of,
    sizes_of,
)
from vprm_search.evaluate.pool import NO_ANSWER, PooledCandidate, PooledProblem


def row(found: ProblemFigures, selector: str, *, first: bool = False) -> list[float]:
    table = found.first if first else found.expected
    return [float(value) for value in table[found.selectors.index(selector)]]


# --- numbers that are known ----------------------------------------------------------------------


def test_pass_at_k() -> None:
    assert [pass_at_k(8, 3, k) for k in (1, 2, 4, 8)] == pytest.approx(
        [0.375, 0.642857, 0.928571, 1], abs=1e-6
    )


def test_best_of_k_by_ranks() -> None:
    """Correctness in the order of the scores 10100100."""
    scores = [1 - place / 10 for place in range(8)]
    problem = pooled("abacdabe", rights=[c == "1" for c in "10100100"], scores={"orm": scores})
    found = row(figures_of(problem, ["orm"], (1, 2, 4, 8)), "orm")
    assert found == pytest.approx([0.375, 0.5, 0.642857, 1], abs=1e-6)


def test_majority_depends_on_the_tie_rule() -> None:
    found = figures_of(pooled("ababbcad"), [], (1, 2, 3, 4, 8))
    assert row(found, FIRST_SEEN) == pytest.approx([0.375, 0.4643, 0.5, 0.5429, 1], abs=1e-4)
    assert row(found, MAJORITY) == pytest.approx([0.375, 0.375, 0.4107, 0.4679, 0.5], abs=1e-4)


# --- enumeration, the slow way -------------------------------------------------------------------


def elected(drawn: list[PooledCandidate], rule: str) -> float:
    """How right what a rule elects in a set is, by counting on one's fingers."""
    critic = rule.removeprefix(VOTE)
    if rule == PASS_1:
        return sum(c.right for c in drawn) / len(drawn)
    if rule == ORACLE:
        return float(any(c.right for c in drawn))
    if rule == critic and rule not in (MAJORITY, FIRST_SEEN):
        scored = [c for c in drawn if c.scores[critic] is not None]
        best = max((c.scores[critic] for c in scored), default=None)
        return float(next((c for c in scored if c.scores[critic] == best), drawn[0]).right)
    voters = [c for c in drawn if c.vote_class != NO_ANSWER]
    if rule.startswith(VOTE):
        standing = {c.vote_class for c in voters if c.scores[critic] is not None}
        voters = [c for c in voters if c.vote_class in standing] or voters
        votes = {c.vote_class: math.fsum(o.scores[critic] or 0 for o in voters
                 if o.vote_class == c.vote_class) for c in voters}  # fmt: skip
    else:
        votes = dict(Counter(c.vote_class for c in voters))
    if not votes:
        return 0.0
    tied = [group for group, count in votes.items() if count == max(votes.values())]
    if rule == FIRST_SEEN:
        return float(next(c for c in voters if c.vote_class in tied).right)
    worths = []
    for group in tied:
        members = [c for c in voters if c.vote_class == group]
        if rule == MAJORITY:
            worths.append(sum(c.right for c in members) / len(members))
            continue
        scored = [c for c in members if c.scores[critic] is not None]
        best = max((c.scores[critic] for c in scored), default=None)
        worths.append(next((c for c in scored if c.scores[critic] == best), members[0]).right)
    return sum(worths) / len(worths)


@given(pools())
@settings(max_examples=60, deadline=None)
def test_every_selector_is_what_enumeration_says(problem: PooledProblem) -> None:
    sizes = tuple(range(1, len(problem.candidates) + 2))
    found = figures_of(problem, CRITICS, sizes)
    assert not found.variance.any()
    for selector in found.selectors:
        for place, size in enumerate(sizes):
            k = min(size, len(problem.candidates))
            sets = [list(drawn) for drawn in combinations(problem.candidates, k)]
            exact = math.fsum(elected(drawn, selector) for drawn in sets) / len(sets)
            at = found.selectors.index(selector), place
            assert found.expected[at] == pytest.approx(exact, abs=1e-12), (selector, size)
            one = elected(list(problem.candidates[:k]), selector)
            assert found.first[at] == pytest.approx(one, abs=1e-12), (selector, size)


@given(pools(largest=12, mixed=False), st.integers(1, 12))
@settings(max_examples=100, deadline=None)
def test_what_is_chosen_is_what_is_counted(problem: PooledProblem, size: int) -> None:
    found = figures_of(problem, CRITICS, (size,))
    for selector in found.selectors:
        one = chosen(problem, selector, size)
        assert one is not None
        worth = row(found, selector, first=True)[0]
        if selector == PASS_1:
            assert one.index == 0
        elif worth in (0.0, 1.0) and selector != LIKELIHOOD:
            assert one.right == bool(worth), selector
        assert one.index < size


# --- drawn sets ----------------------------------------------------------------------------------


def test_drawn_sets_agree_with_all_of_them_within_their_error() -> None:
    problem = pooled("aabbbcacbadb", scores={"orm": [(7 * n % 12) / 12 for n in range(12)]})
    sizes = (3, 6, 12)
    exact = figures_of(problem, ["orm"], sizes, resamples=10_000)
    assert not exact.variance.any()
    votes = [place for place, name in enumerate(exact.selectors)
             if name.startswith((VOTE, MAJORITY))]  # fmt: skip
    errors = []
    for seed in range(30):
        drawn = figures_of(problem, ["orm"], sizes, resamples=100, seed=seed)
        assert (drawn.variance[votes, :2] > 0).all()
        assert not drawn.variance[:, 2].any()  # there is one set of all of them
        gap = (drawn.expected - exact.expected)[votes, :2]
        errors.append(gap / np.sqrt(drawn.variance[votes, :2]))
        again = figures_of(problem, ["orm"], sizes, resamples=100, seed=seed)
        assert (again.expected == drawn.expected).all()
    spread = np.std(errors)
    assert 0.7 < spread < 1.3  # the error that is told is the error that is made
    assert abs(np.mean(errors)) < 0.5


@given(pools(mixed=False), st.randoms())
@settings(max_examples=40, deadline=None)
def test_no_order_of_the_pool_flatters_but_for_ties_of_scores(problem, random) -> None:  # type: ignore[no-untyped-def]
    letters = [c.answer or "-" for c in problem.candidates]
    size = len(letters)
    scores = {"orm": [(place + 1) / (size + 1) for place in range(size)]}
    again = list(range(size))
    random.shuffle(again)
    shuffled = {"orm": [scores["orm"][place] for place in again]}
    sizes = tuple(range(1, size + 1))
    found = figures_of(pooled("".join(letters), scores=scores), ["orm"], sizes)
    other = figures_of(
        pooled("".join(letters[place] for place in again), scores=shuffled), ["orm"], sizes
    )
    for selector in found.selectors:
        if selector != FIRST_SEEN:
            assert row(found, selector) == pytest.approx(row(other, selector))


@given(st.integers(1, 128), st.integers(1, 128))
def test_one_of_the_ranks_wins(candidates: int, size: int) -> None:
    weights = rank_weights(candidates, (min(size, candidates),))
    assert weights.sum() == pytest.approx(1)
    assert (np.diff(weights[:, 0]) <= 1e-15).all()


# --- the edges -----------------------------------------------------------------------------------


def test_an_empty_pool_is_never_right() -> None:
    problem = pooled("")
    assert not figures_of(problem, CRITICS, (1, 8)).expected.any()
    assert chosen(problem, "orm", 8) is None


def test_where_nobody_answers_votes_take_nothing() -> None:
    found = figures_of(pooled("---", scores={"orm": [0.1, 0.2, 0.3]}), ["orm"], (1, 2))
    assert row(found, MAJORITY) == row(found, f"{VOTE}orm") == [0, 0]


@pytest.mark.parametrize("score", [math.nan, math.inf, 1.5, -0.1])
def test_a_score_that_is_none_is_an_error(score: float) -> None:
    with pytest.raises(RecordError, match="problem p, candidate 1: orm"):
        figures_of(pooled("ab", scores={"orm": [0.5, score]}), ["orm"], (1,))


def test_a_log_likelihood_selects_and_weighs_no_votes() -> None:
    problem = pooled("ba", scores={LIKELIHOOD: [-20.0, -3.0]})
    found = figures_of(problem, [LIKELIHOOD], (2,))
    assert row(found, LIKELIHOOD) == [1]
    assert f"{VOTE}{LIKELIHOOD}" not in found.selectors


def test_selectors_are_named_in_errors() -> None:
    with pytest.raises(ConfigError, match=r"no selector 'prm:mode'; choose one of pass@1.*orm"):
        chosen(pooled("a", scores={"orm": [0.5]}), "prm:mode", 1)
    with pytest.raises(ConfigError):
        pass_at_k(3, 1, 4)
    with pytest.raises(ConfigError):
        figures_of(pooled("a"), [], (0,))


def test_sizes() -> None:
    assert sizes_of(1) == (1,)
    assert sizes_of(12) == (1, 2, 4, 8, 12)
    assert sizes_of(128) == (1, 2, 4, 8, 16, 32, 64, 128)
    assert selectors_of(["orm"]) == (PASS_1, ORACLE, MAJORITY, FIRST_SEEN, "orm", f"{VOTE}orm")
