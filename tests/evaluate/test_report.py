"""The report: every figure of the summary at its place, text that stays text, pictures."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.evaluate.pools import pooled
from tests.evaluate.test_critics import drawn_pools
from vprm_search.compare.report import percent
from vprm_search.errors import MissingDependencyError
from vprm_search.evaluate.critics import COSTS, summarise, tabulate
from vprm_search.evaluate.estimators import PASS_1
from vprm_search.evaluate.report import called, drawn, markdown, png
from vprm_search.evaluate.search_summary import Measured
from vprm_search.evaluate.search_summary import summarise as summarise_searches

EVIL = "<script>|$x_{$\n# no head"


@pytest.fixture(scope="module")
def summary() -> dict[str, object]:
    problems = drawn_pools(60, 8, **{"prm:mean": 0.5, "prm:min": 0.3, "orm": 0.2, "judge": 0.1})
    costs = dict.fromkeys(COSTS, np.ones(60))
    found = Measured(EVIL, 4, tuple(range(60)), costs, {"majority": np.ones(60)})
    other = tabulate(drawn_pools(60, 1, seed=1), 1)
    summary = summarise(tabulate(problems, 8), baselines={EVIL: other})
    return {**summary, "searches": summarise_searches([found])}


def cells(text: str, heading: str) -> dict[str, list[str]]:
    """Return the table below a heading, by its first column."""
    part = text.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in part.splitlines() if line[:2] == "| "]
    return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}


def test_every_figure_stands_in_its_place(summary) -> None:  # type: ignore[no-untyped-def]
    text = markdown(summary)
    for kind in ("expected", "first"):
        table = cells(text, f"Accuracy in %, {kind}")
        assert table[""] == ["N=1", "N=2", "N=4", "N=8"]
        for row in summary["rows"]:
            said = table[called(row["selector"])][summary["sizes"].index(row["size"])]
            assert said.startswith(percent(row[kind]))
            error = row["drawing_error"]
            assert ("±" in said) == bool(kind == "expected" and error)
    names = [called(name) for name in dict.fromkeys(row["selector"] for row in summary["rows"])]
    assert len(set(names)) == len(names)
    assert set(cells(text, "Points over one candidate (pass@1), expected")) == {
        "", *names
    } - {called(PASS_1)}  # fmt: skip


def test_text_of_others_stays_in_its_cell(summary) -> None:  # type: ignore[no-untyped-def]
    text = markdown(summary, title=EVIL)
    assert "<script" not in text
    assert "\n# no head" not in text
    lines = [line for line in text.splitlines() if "# no head" in line and line[0] == "|"]
    found = [len(re.split(r"(?<!\\)\|", line)) - 2 for line in lines]
    assert found == [6, 2, 2, 12]  # the policy alone; accuracy, gain and cost of the strategy


def test_the_picture_has_a_panel_per_cost_that_is_known(summary) -> None:  # type: ignore[no-untyped-def]
    data = png(summary, title=EVIL, currency="$")
    with Image.open(io.BytesIO(data)) as picture:
        wide, high = picture.size
    free = {**summary, "searches": {}}
    free["rows"] = [{**row, "cost": 0.0, "seconds": 0.0} for row in summary["rows"]]
    with Image.open(io.BytesIO(png(free))) as picture:
        assert picture.size[0] == wide
        assert picture.size[1] < high  # three panels in one row, and not five in two
    assert list(drawn(summary)) == ["pass@N (oracle)", "PRM, mean", "votes weighted by PRM, mean",
                                    "ORM", "majority", "judge"]  # fmt: skip


def test_the_page_names_every_field_of_the_results(summary) -> None:  # type: ignore[no-untyped-def]
    page = (Path(__file__).parents[2] / "docs" / "evaluate_report.md").read_text(encoding="utf-8")
    table = page.split("\n## `results.json`\n")[1].split("\n## ")[0]
    named = set(re.findall(r"`([a-z_0-9]+)`", table))
    costs = {"generated_tokens", "all_tokens", "seconds", "cost"}
    fields = {*summary, *summary["rows"][0], *summary["pairs"][0]}
    fields |= {*summary["baselines"][0], *summary["searches"], *summary["searches"]["rows"][0]}
    assert fields - costs <= named
    assert costs <= named


def test_one_candidate_per_problem_makes_a_report_too() -> None:
    summary = summarise(tabulate([pooled("a")], 1))
    assert "Points over" not in markdown(summary)  # no N is larger
    assert "pass@1" in markdown(summary)
    assert png(summary)[:4] == b"\x89PNG"


def test_without_matplotlib_the_extra_is_named(summary, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependencyError, match="plots"):
        png(summary)
