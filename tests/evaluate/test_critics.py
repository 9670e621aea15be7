"""The table of critics: what it holds, whose interval, and which notes are made."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.evaluate.pools import CRITICS, pooled, pools
from vprm_search.datasets.set_scores import set_scores
from vprm_search.errors import RecordError
from vprm_search.evaluate.critics import summarise, tabulate
from vprm_search.evaluate.estimators import MAJORITY, ORACLE, PASS_1, VOTE, chosen, figures_of
from vprm_search.evaluate.pool import PooledProblem
from vprm_search.evaluate.search_report import section
from vprm_search.evaluate.search_summary import Measured
from vprm_search.evaluate.search_summary import summarise as summarise_searches
from vprm_search.evaluate.strategies import best_of_n


def row(summary, selector, size):  # type: ignore[no-untyped-def]
    return next(r for r in summary["rows"] if (r["selector"], r["size"]) == (selector, size))


def drawn_pools(count: int, size: int, seed: int = 0, **gain: float) -> list[PooledProblem]:
    """Pools of a policy that is right in half of all cases; `gain` is how much a critic knows."""
    draw = random.Random(seed)
    made = []
    for number in range(count):
        letters = "".join("a" if draw.random() < 0.5 else draw.choice("bcd") for _ in range(size))
        scores = {
            critic: [min(1.0, draw.random() * (1 - knows) + knows * (letter == "a"))
                     for letter in letters]
            for critic, knows in gain.items()
        }  # fmt: skip
        made.append(pooled(letters, name=f"p{number}", scores=scores))
    return made


@given(st.lists(pools(mixed=False), min_size=1, max_size=5, unique_by=lambda p: p.id))
@settings(max_examples=30, deadline=None)
def test_a_row_is_the_mean_over_problems(problems: list[PooledProblem]) -> None:
    table = tabulate(iter(problems), 4)
    summary = summarise(table)
    assert json.loads(json.dumps(summary)) == summary
    for found in summary["rows"]:
        at = table.sizes.index(found["size"])
        parts = [figures_of(p, CRITICS, table.sizes) for p in problems]
        index = parts[0].selectors.index(found["selector"])
        for kind in ("first", "expected"):
            mean = np.mean([getattr(part, kind)[index, at] for part in parts])
            assert found[kind]["mean"] == pytest.approx(mean)
            assert found[kind]["low"] - 1e-12 <= mean <= found[kind]["high"] + 1e-12


def test_the_order_of_problems_changes_nothing_but_the_last_bits() -> None:
    problems = drawn_pools(20, 16, orm=0.2)
    one = summarise(tabulate(problems, 16, resamples=50))
    other = summarise(tabulate(reversed(problems), 16, resamples=50))
    for a, b in zip(one["rows"], other["rows"], strict=True):
        assert a["expected"]["mean"] == pytest.approx(b["expected"]["mean"])
        assert a["drawing_error"] == pytest.approx(b["drawing_error"])
    errors = {r["selector"]: r["drawing_error"] for r in one["rows"] if r["size"] == 8}
    assert errors[MAJORITY] > 0
    assert errors["orm"] == errors[ORACLE] == 0


def test_dynamath_counts_a_seed_when_all_its_variants_are_right() -> None:
    problems = [
        replace(pooled(letters, name=f"{seed}/{variant}"), group=str(seed), variant=str(variant))
        for seed, rows in enumerate((["aa", "ab"], ["ab", "ab"], ["bb", "aa"]))
        for variant, letters in enumerate(rows)
    ]
    summary = summarise(tabulate(problems, 2, name="dynamath"))
    assert summary["measure"] == "worst case"
    assert summary["questions"] == 3
    # By chance the seeds are right with 1 x 1/2, 1/2 x 1/2, 0 x 1.
    assert row(summary, PASS_1, 1)["expected"]["mean"] == pytest.approx(0.75 / 3)
    assert row(summary, PASS_1, 1)["first"]["mean"] == pytest.approx(2 / 3)
    assert row(summary, ORACLE, 2)["expected"]["mean"] == pytest.approx(2 / 3)
    other = row(summary, ORACLE, 2)["other"]
    assert other["average"]["expected"]["mean"] == pytest.approx(5 / 6)
    assert other["accuracy"]["expected"]["mean"] == pytest.approx(5 / 6)


def test_what_is_chosen_makes_the_same_group_score() -> None:
    draw = random.Random(3)
    problems = [
        replace(
            pooled("".join(draw.choice("ab") for _ in range(4)), name=f"{unit}-{step}",
                   scores={"orm": [draw.random() for _ in range(4)]}),
            group=str(unit), variant=f"2steps_{step}",
        )
        for unit in range(12) for step in ("1", "2", "multi")
    ]  # fmt: skip
    summary = summarise(tabulate(problems, 4, name="wemath"))
    picks = [chosen(problem, "orm", 4) for problem in problems]
    scores = set_scores("wemath", [(p, c.right) for p, c in zip(problems, picks, strict=True) if c])
    found = row(summary, "orm", 4)
    assert summary["measure"] == "score (strict)"
    assert found["first"]["mean"] == pytest.approx(scores["score (strict)"])
    assert found["other"]["score (loose)"]["first"]["mean"] == pytest.approx(
        scores["score (loose)"]
    )
    assert found["other"]["accuracy"]["first"]["mean"] == pytest.approx(scores["accuracy"])


def test_groups_that_lack_rows_are_said() -> None:
    def of(name: str, *variants: tuple[str, str]) -> list[PooledProblem]:
        return [replace(pooled("ab", name=f"{group}{variant}"), group=group, variant=variant)
                for group, variant in variants]  # fmt: skip

    seeds = of("d", ("1", "0"), ("1", "1"), ("2", "0"))
    notes = summarise(tabulate(seeds, 2, name="dynamath"))["notes"]
    assert "1 of 2 seeds lack variants: their worst case is too easy." in notes
    whole = [("1", f"2steps_{step}") for step in ("1", "2", "multi")]
    part = summarise(tabulate(of("w", *whole, ("2", "2steps_1")), 2, name="wemath"))
    assert part["measure"] == "score (strict)"
    assert "1 of 2 problems lack steps and are left out." in part["notes"]
    none = summarise(tabulate(of("w", *whole[:2]), 2, name="wemath"))
    assert none["measure"] == "accuracy"
    assert any("accuracy stands in its place" in note for note in none["notes"])


def test_costs_are_those_of_n_candidates() -> None:
    scores = {"prm:mean": [0.5] * 4, "orm": [0.5] * 4}
    summary = summarise(tabulate([pooled("abab", scores=scores)], 4))
    at = row(summary, "prm:mean", 4)
    assert at["generated_tokens"] == 10 + 11 + 12 + 13
    assert at["all_tokens"] == 46 + 400
    assert (at["seconds"], at["cost"]) == (2.0, 1.0)
    assert row(summary, MAJORITY, 2)["all_tokens"] == 23
    assert row(summary, "orm", 2)["all_tokens"] is None  # what it reads is not recorded


# --- notes ---------------------------------------------------------------------------------------


def test_a_note_when_the_outcome_score_wins_and_none_when_it_does_not() -> None:
    better = summarise(tabulate(drawn_pools(80, 8, **{"prm:mean": 0.0, "orm": 0.8}), 8))
    assert any("At N=8 the outcome score (orm) beats prm:mean" in note for note in better["notes"])
    worse = summarise(tabulate(drawn_pools(80, 8, **{"prm:mean": 0.8, "orm": 0.0}), 8))
    assert not any("outcome score" in note for note in worse["notes"])
    pair = next(p for p in worse["pairs"] if (p["second"], p["size"]) == ("orm", 8))
    assert pair["difference"]["low"] > 0


def test_short_pools_and_missing_scores_are_said() -> None:
    problems = drawn_pools(60, 4, orm=0.5)
    few = [replace(problems[0], candidates=problems[0].candidates[:1]), *problems[1:]]
    first = few[1].candidates[0]
    few[1] = replace(few[1], candidates=(replace(first, scores={"orm": None}),
                                         *few[1].candidates[1:]))  # fmt: skip
    notes = summarise(tabulate(few, 4))["notes"]
    assert "1 problem has fewer than 4 candidates; all they have is taken." in notes
    assert "1 candidate has no score of orm; it takes them last." in notes


def test_a_critic_that_scored_too_little_has_no_results() -> None:
    problems = [pooled("ab", name=f"p{n}", scores={"orm": [0.5, None]}) for n in range(5)]
    summary = summarise(tabulate(problems, 2))
    assert summary["no_results"] == {"orm": 0.5}
    assert not any("orm" in found["selector"] for found in summary["rows"])
    assert any("orm has no results: 50.0 %" in note for note in summary["notes"])
    assert any("Only 5 questions: " in note for note in summary["notes"])


def test_pools_that_are_none_are_named() -> None:
    with pytest.raises(RecordError, match="nothing to report"):
        tabulate([], 4)
    with pytest.raises(RecordError, match="p stands twice"):
        tabulate([pooled("a"), pooled("b")], 4)
    with pytest.raises(RecordError, match="problem q has scores of orm, which problems before"):
        tabulate([pooled("a"), pooled("a", name="q", scores={"orm": [0.5]})], 4)


def test_a_pool_may_begin_with_a_problem_without_candidates() -> None:
    problems = [pooled("", name="none"), *drawn_pools(3, 2, orm=0.5)]
    summary = summarise(tabulate(problems, 2))
    assert row(summary, ORACLE, 1)["expected"]["mean"] < 1
    assert summary["short"] == {"1": 1, "2": 1}


# --- what stands beside --------------------------------------------------------------------------


def test_a_bigger_policy_stands_beside() -> None:
    problems = drawn_pools(60, 4, **{"prm:mean": 0.5})
    bigger = tabulate([pooled("a", name=p.id) for p in problems], 1)
    summary = summarise(tabulate(problems, 4), baselines={"big": bigger})
    (baseline,) = summary["baselines"]
    assert baseline["expected"]["mean"] == 1
    assert not any("big" in note for note in summary["notes"])
    part = tabulate([pooled("a", name=p.id) for p in problems[:7]], 1)
    notes = summarise(tabulate(problems, 4), baselines={"big": part})["notes"]
    assert "big was measured on 7 problems and not on 60." in notes


def test_searches_stand_beside_the_pool_on_the_problems_that_they_have() -> None:
    problems = drawn_pools(60, 4, **{"prm:product": 0.5})
    table = tabulate(problems, 4)
    pool = best_of_n(table, 4, tuple(range(60)))
    vote = pool.right["weighted-vote:product"]
    some = {name: column[10:30] for name, column in pool.costs.items()}
    same = Measured("beam", 4, pool.problems, pool.costs, {"weighted-vote:product": vote})
    part = Measured("rebase", 4, pool.problems[10:30], some, {"majority": np.ones(20)})
    found = summarise_searches([pool, same, part], places=dict(enumerate(table.places)))
    rows = {(one["name"], one["choice"]): one for one in found["rows"]}
    assert set(rows) == {("best-of-n", choice) for choice in pool.right} | {
        ("beam", "weighted-vote:product"), ("rebase", "majority")
    }  # fmt: skip
    summary = summarise(table)
    for name, selector in (("majority", MAJORITY), ("best-score:product", "prm:product"),
                           ("weighted-vote:product", f"{VOTE}prm:product")):  # fmt: skip
        first = row(summary, selector, 4)["first"]
        assert rows["best-of-n", name]["accuracy"]["mean"] == pytest.approx(first["mean"])
    beam = rows["beam", "weighted-vote:product"]
    assert set(beam["against_reference"].values()) == {0.0, 60}  # it chose the same
    tokens = pool.costs["generated_tokens"] + pool.costs["scored_tokens"]
    assert beam["all_tokens"] == pytest.approx(tokens.mean())
    rebase = rows["rebase", "majority"]
    assert (rebase["problems"], rebase["accuracy"]["mean"]) == (20, 1)
    assert rebase["against_reference"]["mean"] == pytest.approx(1 - vote[10:30].mean())
    text = "\n".join(section(found))
    assert "(20 problems)" in text
    assert "| rebase (by majority) | **+" in text or "| rebase (by majority) | +" in text
