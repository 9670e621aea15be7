"""The paper's figures as they are printed; signs are compared only where they are clear."""

from __future__ import annotations

import pytest

from tests.evaluate.test_critics import drawn_pools
from vprm_search.evaluate.critics import summarise, tabulate
from vprm_search.evaluate.paper import ABLATIONS, POLICY_ALONE, SCALING, SETS, Claim, claims
from vprm_search.evaluate.report import markdown


def test_the_means_are_those_of_the_seven_sets() -> None:
    """A misprint of ours would show: the paper's overall is the plain mean of its sets."""
    rows = [POLICY_ALONE, *(row for sizes in SCALING.values() for row in sizes.values())]
    for row in rows:
        assert len(row) == len(SETS) + 1
        assert sum(row[:-1]) / len(SETS) == pytest.approx(row[-1], abs=0.06)
    assert ABLATIONS["pass@1"] == POLICY_ALONE[-1]


def test_signs() -> None:
    def sign(low: float, high: float, paper: float = 1.0) -> str:
        return Claim("a", "b", 8, paper, {"mean": (low + high) / 2, "low": low, "high": high}).sign

    assert sign(0.1, 0.2) == sign(-0.2, -0.1, -1.0) == "same"
    assert sign(-0.2, -0.1) == sign(0.1, 0.2, -1.0) == "other"
    assert sign(-0.1, 0.3) == "open"


def test_a_run_stands_beside_the_paper() -> None:
    knows = {"prm:mean": 0.6, "prm:min": 0.3, "orm": 0.1, "judge": 0.0}
    table = tabulate(drawn_pools(80, 16, **knows), 16, resamples=50)
    summary = summarise(table)
    found = {(one.better, one.worse): one for one in claims(summary)}
    assert found["prm:mean", "pass@1"].paper == pytest.approx(42.0 - 32.8)
    assert found["prm:mean", "pass@1"].size == 16
    assert found["prm:mean", "orm"].sign == "same"
    assert found["prm:mean", "prm:min"].size == 8
    assert ("prm:mean", "prm:max") not in found  # was not measured
    assert "| PRM, mean less ORM | 16 | +2.7 |" in markdown(summary)
    table.name = "mathvision"
    of_set = {(one.better, one.worse): one for one in claims(summarise(table))}
    assert of_set["majority", "pass@1"].paper == pytest.approx(26.3 - 17.0)


def test_where_there_is_no_such_n_nothing_is_compared() -> None:
    summary = summarise(tabulate(drawn_pools(5, 4, **{"prm:mean": 0.5}), 4))
    assert claims(summary) == []
    assert "Beside VisualPRM" not in markdown(summary)
