"""docs/selection.md says what the code does: names, defaults, examples."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from vprm_search import search
from vprm_search.aggregate import AGGREGATIONS, LENGTH_AWARE
from vprm_search.budget import Budget, Prices
from vprm_search.calibration.fit import METHODS
from vprm_search.labelling.records import ScoredPath

TEXT = (Path(__file__).parents[2] / "docs" / "selection.md").read_text(encoding="utf-8")


def rows(title: str) -> list[list[str]]:
    """Return the cells of the first table after a heading or a header cell."""
    lines = TEXT[TEXT.index(title) :].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("| ---")) + 1
    table = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        table.append([cell.strip() for cell in line.strip("|").split("|")])
    return table


def named(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_every_aggregation_is_listed() -> None:
    listed = [name for row in rows("## Path scores") for name in named(row[0])]
    assert sorted(listed) == sorted([*AGGREGATIONS, *LENGTH_AWARE])


def test_the_defaults_are_those_of_the_code() -> None:
    stated = {name: named(row[1]) for row in rows("### Which one by default")
              for name in named(row[0])}  # fmt: skip
    kinds = {
        name: kind
        for name in search.__all__
        if "aggregate" in getattr(kind := getattr(search, name), "model_fields", {})
    }
    for name, kind in kinds.items():
        if name in ("MajorityVote", "Knockout"):  # the scores break ties, or sit in the jury
            continue
        assert stated[name] == [kind.model_fields["aggregate"].default], name
    assert f"jury={json.dumps(search.Knockout().jury)}".replace("[", "(").replace("]", ")") in TEXT


def test_every_method_and_limit_is_listed() -> None:
    assert [name for row in rows("`--method`") for name in named(row[0])] == list(METHODS)
    limits = [name for row in rows("## Budgets") for name in named(row[0])]
    assert sorted(limits) == sorted(Budget.model_fields)
    for name in Prices.model_fields:
        if name not in ("per_request", "currency"):
            assert name in TEXT, name


def test_the_example_of_a_path_is_one() -> None:
    block = TEXT.split("```json\n")[1].split("```")[0]
    path = ScoredPath.from_line(block)
    assert path.path_score("mean") is None
    assert path.steps[0].label is True


@pytest.mark.parametrize("mark", ["measured", "calibrated"])
def test_what_was_measured_is_there(mark: str) -> None:
    between = TEXT.split(f"<!-- {mark}:begin -->")[1].split(f"<!-- {mark}:end -->")[0]
    assert re.search(r"\d\.\d", between)
