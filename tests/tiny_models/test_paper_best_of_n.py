"""The ablations of best-of-N: tables of what `vprm-search evaluate` reports on the world."""

from __future__ import annotations

import re

from examples.tiny_models.paper_best_of_n import scaling_tables, temperature
from tests.evaluate.test_critics import drawn_pools
from vprm_search.aggregate import AGGREGATIONS
from vprm_search.evaluate.critics import summarise, tabulate


def rows(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if re.match(r"\| [^-]", line)]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_all_critics_and_aggregations_stand_in_tables() -> None:
    knows = {f"prm:{rule}": place / 10 for place, rule in enumerate(AGGREGATIONS)} | {"orm": 0.1}
    summary = summarise(tabulate(drawn_pools(60, 8, **knows), 8))
    told = rows(scaling_tables(summary))
    names = [row[0] for row in told]
    assert {*AGGREGATIONS, "pass@1", "pass@N (oracle)", "ORM", "PRM, mean"} <= set(names)
    expected = {
        (row["selector"], row["size"]): f"{100 * row['expected']['mean']:.1f}"
        for row in summary["rows"]
    }
    (orm,) = [row for row in told if row[0] == "ORM"]
    assert [cell.split()[0] for cell in orm[1:]] == [expected["orm", n] for n in (1, 2, 4, 8)]
    (product,) = [row for row in told if row[0] == "product"]
    assert product[1].startswith(expected["prm:product", 8])
    assert product[2].startswith("**+")  # it knows more than the mean here
    assert "PRM, mean less ORM" in names


def test_the_paper_s_figure_stands_beside_a_temperature() -> None:
    told = rows(temperature(1, temperatures=(1.0,)))
    assert told[1][:2] == ["1", "40.9"]
    assert len(told) == 2
