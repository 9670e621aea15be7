"""The synthetic world is what its settings say, and its models keep honest counts."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from statistics import stdev

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vprm_search.bench.step_results import auc
from vprm_search.compare.worlds import (
    STOP_MARK,
    WORLDS,
    SyntheticPolicy,
    SyntheticProblems,
    SyntheticScorer,
    SyntheticWorld,
    WorldSettings,
    problem_of,
    words_of,
)
from vprm_search.graph.parts import SearchRules
from vprm_search.graph.run import search_many
from vprm_search.search import REBASE, BeamSearch, BestOfN, BestScore
from vprm_search.types import Problem, ProposeRequest, ScoreRequest

HARD = WORLDS["hard"]


def paths(world: SyntheticWorld, count: int) -> list[tuple[int, tuple[int, ...]]]:
    """Return whole paths, one per problem, drawn as the policy draws them."""
    drawn = []
    for problem in range(count):
        words: tuple[int, ...] = ()
        for _ in range(world.settings.depth):
            words = (*words, world.step(problem, words, 1000 + problem)[1])
        drawn.append((problem, words))
    return drawn


@pytest.mark.parametrize("share", [0.6, 0.72, 0.93])
def test_steps_are_right_as_often_as_stated(share: float) -> None:
    world = SyntheticWorld(WorldSettings(p_step=share, repair=0.1, depth=6))
    kept = {True: [0, 0], False: [0, 0]}  # right before: [right after, all]
    for problem, words in paths(world, 1500):
        for end in range(1, len(words) + 1):
            before, after = (world.is_right(problem, words[:e]) for e in (end - 1, end))
            kept[before][0] += after
            kept[before][1] += 1
    for expected, (right, total) in ((share, kept[True]), (0.1, kept[False])):
        assert right / total == pytest.approx(expected, abs=4 * math.sqrt(0.25 / total))


@pytest.mark.parametrize("stated", [0.3, 0.5, 0.73, 0.85, 0.95])
@pytest.mark.parametrize("correlation", [0.0, 0.7])
def test_the_scorer_has_the_auc_stated(stated: float, correlation: float) -> None:
    made = replace(HARD, auc=stated, correlation=correlation, p_step=0.9, noise=0.9)
    world = SyntheticWorld(made)
    labels, scores = [], []
    for problem, words in paths(world, 700):
        for end in range(1, len(words) + 1):
            labels.append(world.is_right(problem, words[:end]))
            scores.append(world.score(problem, words[:end]))
    assert auc(labels, scores) == pytest.approx(stated, abs=0.025)
    assert all(0 < score < 1 for score in scores)


def logit(score: float) -> float:
    return math.log(score / (1 - score))


@given(st.floats(-3, 5), st.floats(-3, 5), st.integers(1, 10), st.integers(0, 2**63 - 1))
@settings(max_examples=40)
def test_a_level_is_added_to_all_logits_and_early_to_early_ones(
    level: float, early: float, length: int, seed: int
) -> None:
    plain = SyntheticWorld(HARD)
    shifted = SyntheticWorld(replace(HARD, level=level, early=early))
    words: tuple[int, ...] = ()
    for _ in range(length):
        words = (*words, plain.step(3, words, seed)[1])
    added = logit(shifted.score(3, words)) - logit(plain.score(3, words))
    assert added == pytest.approx(level + early * (10 - length) / 9, abs=1e-6)


def test_a_scorer_is_blind_as_long_as_stated() -> None:
    plain, late = SyntheticWorld(HARD), SyntheticWorld(replace(HARD, blind=4))
    seen = {place: set[float]() for place in range(1, 11)}
    for problem, words in paths(plain, 30):
        for place in seen:
            before = words[:place]
            gap = logit(plain.score(problem, before)) - logit(late.score(problem, before))
            seen[place].add(round(gap * (1 if plain.is_right(problem, before) else -1), 6))
    assert [len(gaps) for gaps in seen.values()] == [1] * 10
    assert [gaps.pop() > 0 for gaps in seen.values()] == [True] * 4 + [False] * 6


def test_the_noise_is_as_wide_as_stated() -> None:
    blind = SyntheticWorld(replace(HARD, auc=0.5, noise=1.3))
    logits = [logit(blind.score(problem, words)) for problem, words in paths(blind, 1500)]
    assert stdev(logits) == pytest.approx(1.3, abs=0.1)


def test_worlds_of_the_first_version_are_named_as_they_were() -> None:
    old = {"depth", "p_step", "repair", "spread", "auc", "correlation", "sharpness", "words",
           "wrong_answers", "lure", "step_tokens", "prefix_tokens", "seed"}  # fmt: skip
    assert set(SyntheticProblems(HARD).identity()["settings"]) == old
    assert SyntheticProblems(replace(HARD, level=2.0)).identity()["settings"]["level"] == 2.0


def test_errors_of_neighbouring_steps_are_correlated_as_stated() -> None:
    world = SyntheticWorld(replace(HARD, p_step=1.0, correlation=0.6))
    logits = []
    for problem, words in paths(world, 800):
        pair = [world.score(problem, words[:end]) for end in (5, 6)]
        logits.append([math.log(score / (1 - score)) for score in pair])
    first, second = zip(*logits, strict=True)
    m1, m2 = sum(first) / len(first), sum(second) / len(second)
    cross = sum((a - m1) * (b - m2) for a, b in logits)
    scale = math.sqrt(sum((a - m1) ** 2 for a in first) * sum((b - m2) ** 2 for b in second))
    assert cross / scale == pytest.approx(0.6, abs=0.1)


@given(st.integers(0, 10**6), st.integers(0, 2**63 - 1), st.integers(1, 8))
@settings(max_examples=60)
def test_text_decides_everything(problem: int, seed: int, depth: int) -> None:
    world, other = (SyntheticWorld(replace(HARD, depth=depth)) for _ in range(2))
    texts: list[str] = []
    for _ in range(depth):
        words = words_of(texts)
        text, word = world.step(problem, words, seed)
        assert words_of([*texts, text]) == (*words, word)
        texts.append(text)
    whole = words_of(texts)
    for end in range(1, depth + 1):
        assert world.score(problem, whole[:end]) == other.score(problem, whole[:end])
    assert problem_of(world.question(problem)) == problem
    given_answer = texts[-1].split(f"{STOP_MARK} ")[1]
    assert (given_answer == world.answer(problem)) == other.is_right(problem, whole)


def test_wrong_answers_spread_or_agree_as_stated() -> None:
    for lure, classes in ((0.0, 4), (1.0, 1)):
        world = SyntheticWorld(WorldSettings(p_step=0.0, repair=0.0, depth=2, lure=lure))
        answers = {
            world.step(7, words, seed)[0].split(STOP_MARK)[1]
            for seed in range(60)
            for words in [(world.step(7, (), seed)[1],)]
        }
        assert len(answers) == classes


def test_a_whole_solution_is_its_steps_one_by_one() -> None:
    world = SyntheticWorld(HARD)
    policy = SyntheticPolicy(world)
    problem = Problem(world.question(3))

    async def written() -> tuple[str, list[str]]:
        ((whole,),) = await policy.propose([ProposeRequest(problem, (), (99,), until="end")])
        steps: list[str] = []
        while not steps or STOP_MARK not in steps[-1]:
            ((one,),) = await policy.propose([ProposeRequest(problem, tuple(steps), (99,))])
            steps.append(one.text)
            assert one.finish == ("stop" if STOP_MARK in one.text else "step")
        return whole.text, steps

    whole, steps = asyncio.run(written())
    assert whole.split("\n\n") == steps
    assert policy.generated_tokens == 2 * 10 * 40


@pytest.mark.parametrize(
    "strategy", [BestOfN(6), BeamSearch(width=2, expand=3, stop=None), REBASE(width=6)]
)
@pytest.mark.parametrize("words", [4, 5000])
def test_the_models_count_what_the_tree_counts(strategy: object, words: int) -> None:
    world = SyntheticWorld(replace(HARD, words=words, depth=5))
    policy, scorer = SyntheticPolicy(world), SyntheticScorer(world)
    tasks = [(Problem(world.question(number)), ()) for number in range(4)]
    rules = SearchRules(strategy, BestScore())  # type: ignore[arg-type]
    runs = asyncio.run(search_many(tasks, policy, scorer, rules))
    totals = [run.tree.totals for run in runs]
    assert sum(t.generated_tokens for t in totals) == policy.generated_tokens
    assert sum(t.scored_tokens for t in totals) == scorer.counts.new_tokens
    assert sum(t.tokens_computed for t in totals) == scorer.counts.new_tokens
    assert sum(t.tokens_sent for t in totals) == scorer.counts.full_tokens
    assert scorer.counts.full_tokens > scorer.counts.new_tokens


def test_a_score_does_not_depend_on_what_is_asked_with_it() -> None:
    world = SyntheticWorld(HARD)
    steps = tuple(world.step(1, (5,) * n, 8)[0] for n in range(3))
    problem = Problem(world.question(1))
    alone, together = (
        asyncio.run(SyntheticScorer(world).score(requests))[0].scores
        for requests in (
            [ScoreRequest(problem, steps)],
            [ScoreRequest(problem, steps), ScoreRequest(problem, steps[:1])],
        )
    )
    assert alone == together


def test_impossible_worlds_are_refused() -> None:
    impossible: list[dict[str, float]] = [
        {"auc": 0.0}, {"auc": 1.0}, {"noise": 0.0},
        {"p_step": 1.5}, {"correlation": 1.0}, {"depth": 0},
    ]  # fmt: skip
    for wrong in impossible:
        with pytest.raises(ValueError, match=r"world|AUC|noise"):
            WorldSettings(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no step"):
        words_of(["I think it is four."])
    with pytest.raises(ValueError, match="no problem"):
        problem_of("How many tiles?")


def test_a_failing_scorer_has_no_scores_for_some_lengths_until_the_path_has_gone_on() -> None:
    world = SyntheticWorld(replace(HARD, failing=0.2))
    scorer = SyntheticScorer(world)
    failed = 0
    for number in range(100):
        steps = tuple(f"Step {place}: w{place}" for place in range(1, 11))
        problem = Problem(world.question(number))
        requests = [ScoreRequest(problem, steps[:end]) for end in range(1, 11)]
        results = asyncio.run(scorer.score(requests))
        whole = [all(s.value is not None for s in result.scores) for result in results]
        assert whole == [not world.fails(number, end) for end in range(1, 11)]
        failed += whole.count(False)
    assert 130 < failed < 270
