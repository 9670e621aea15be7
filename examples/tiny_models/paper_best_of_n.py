"""The paper's ablations of best-of-N that need no training, on the world: N, how step scores are
put together, the ORM, the policy's temperature."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from examples.tiny_models.packaging import model_path
from examples.tiny_models.paper_figures import table
from examples.tiny_models.problem_files import draw, write_problems
from vprm_search.aggregate import AGGREGATIONS
from vprm_search.cli.app import app
from vprm_search.compare.report import percent, points
from vprm_search.evaluate.estimators import FIRST_SEEN, MAJORITY, ORACLE, PASS_1, VOTE
from vprm_search.evaluate.paper import TEMPERATURES, section
from vprm_search.evaluate.report import called
from vprm_search.tiny.world import FAMILIES

FIRST_INDEX = 4000
"""First problem of each family: those of the other checks are not used again."""
PRM = "prm:mean"
ORM = ("--orm", str(model_path("orm")))
SELECTORS = (PASS_1, ORACLE, MAJORITY, FIRST_SEEN, "orm", PRM, f"{VOTE}orm", f"{VOTE}{PRM}")

Summary = Mapping[str, Any]


def scaling(problems: int = 200, *, samples: int = 32) -> str:
    """Measure all critics at every N, and every aggregation of the step scores.

    Args:
        problems: of each family.
        samples: the largest N.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = written(Path(folder), problems)
        return scaling_tables(evaluated(path, path.parent / "run", "--n", str(samples), *ORM))


def scaling_tables(summary: Summary) -> str:
    """Return all critics at every N, every aggregation, and the paper's differences beside."""
    sizes, largest = summary["sizes"], summary["sizes"][-1]
    critics = [[called(name), *(figure_at(summary, name, size) for size in sizes)]
               for name in SELECTORS]  # fmt: skip
    few = [size for size in (8, largest) if size in sizes]
    aggregations = [[rule, *(entry for size in few for entry in _rule(summary, rule, size))]
                    for rule in AGGREGATIONS]  # fmt: skip
    heads = [head for size in few for head in (f"N={size}", "less mean", "votes weighted by it")]
    told = [
        f"{summary['problems']} problems, {largest} candidates of each. Accuracy in %, expected "
        "over all sets of N:",
        table(["", *(f"N={size}" for size in sizes)], critics),
        "How the step scores of the PRM are put together:",
        table(["", *heads], aggregations),
        *section(summary, {name: called(name) for name in _names(summary)})[2:],
    ]
    return "\n\n".join([*told, *(f"Note of the report: {note}" for note in summary["notes"])])


def temperature(problems: int = 200, *, temperatures: Sequence[float] = ()) -> str:
    """Measure best-of-8 at the paper's temperatures.

    Args:
        problems: of each family.
        temperatures: of the policy. Default: the paper's.
    """
    rows = []
    for value in temperatures or tuple(TEMPERATURES):
        with tempfile.TemporaryDirectory() as folder:
            path, given = written(Path(folder), problems), ("--temperature", str(value))
            summary = evaluated(path, path.parent / "run", "--n", "8", *given)
        paper = TEMPERATURES.get(value)
        found = [figure_at(summary, name, 8) for name in (ORACLE, MAJORITY, PRM)]
        gain = points(row_of(summary, PRM, 8)["gain"])
        rows.append([f"{value:g}", "–" if paper is None else f"{paper:.1f}",
                     figure_at(summary, PASS_1, 1), *found, gain])  # fmt: skip
    head = ["T", "paper, PRM", *map(called, (PASS_1, ORACLE, MAJORITY, PRM)), "PRM's gain, points"]
    count = problems * len(FAMILIES)
    return f"{count} problems, N = 8; accuracy in %, expected.\n\n" + table(head, rows)


def written(folder: Path, problems: int) -> Path:
    """Write so many problems of each family as a problem set into a folder; return the file."""
    path = folder / "World.tsv"
    write_problems(path, draw(problems * len(FAMILIES), first=FIRST_INDEX))
    return path


def evaluated(path: Path, out: Path, *options: str) -> Summary:
    """Run `vprm-search evaluate` on a set; return the results, {} of stages before them."""
    with contextlib.redirect_stdout(io.StringIO()):  # the whole report; parts of it are told
        app(["evaluate", str(path), "--out", str(out), *options], standalone_mode=False)
    results = out / "results.json"
    found: Summary = json.loads(results.read_text()) if results.exists() else {}
    return found


def _names(summary: Summary) -> list[str]:
    return list(dict.fromkeys(row["selector"] for row in summary["rows"]))


def row_of(summary: Summary, selector: str, size: int) -> Mapping[str, Any]:
    """Return the row of a selector at a size."""
    found: Mapping[str, Any] = next(
        row for row in summary["rows"] if (row["selector"], row["size"]) == (selector, size)
    )
    return found


def figure_at(summary: Summary, selector: str, size: int) -> str:
    """Return the expected accuracy of a selector, "" of pass@1 at any size but 1."""
    if selector == PASS_1 and size > 1:
        return ""
    return percent(row_of(summary, selector, size)["expected"])


def _rule(summary: Summary, rule: str, size: int) -> tuple[str, str, str]:
    """Return accuracy, difference to the mean, and accuracy of weighted votes."""
    name = f"prm:{rule}"
    less = "–"
    if name != PRM:
        pair = next(p for p in summary["pairs"] if (p["second"], p["size"]) == (name, size))
        found = pair["difference"]
        less = points({"mean": -found["mean"], "low": -found["high"], "high": -found["low"]})
    return (figure_at(summary, name, size), less, figure_at(summary, f"{VOTE}{name}", size))
