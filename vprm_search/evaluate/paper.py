"""What VisualPRM's paper reports of best-of-N (arXiv 2503.10291), beside what a run measured.

The figures are claims of the paper: its policy InternVL2.5-8B, its critics, T = .7, one selection
per problem. Of another policy, critic or set only the sign of a difference can be compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from vprm_search.compare.report import points, table_head
from vprm_search.datasets.known import SetName
from vprm_search.evaluate.estimators import MAJORITY, PASS_1

SETS: tuple[SetName, ...] = (
    "mmmu",
    "mathvista",
    "mathvision",
    "mathverse",
    "dynamath",
    "wemath",
    "logicvista",
)
"""The seven sets in the order of the paper's tables; behind them stands their plain mean."""

Figures = tuple[float, ...]
POLICY_ALONE: Figures = (56.2, 64.5, 17.0, 22.8, 9.4, 23.5, 36.0, 32.8)
"""InternVL2.5-8B alone (table 2): the seven sets, their mean."""

SCALING: Mapping[str, Mapping[int, Figures]] = MappingProxyType(
    {
        "prm:mean": {
            8: (60.2, 68.5, 25.7, 35.8, 18.0, 36.5, 43.8, 41.2),
            16: (60.2, 69.9, 27.3, 36.4, 19.0, 38.8, 42.5, 42.0),
            32: (60.3, 70.4, 29.6, 37.8, 17.2, 40.3, 43.4, 42.7),
            64: (61.4, 69.6, 30.6, 38.2, 18.8, 40.2, 45.4, 43.5),
            128: (61.7, 70.8, 30.3, 39.3, 19.4, 40.9, 45.4, 44.0),
        },
        "orm": {
            8: (60.2, 67.0, 25.3, 32.5, 16.4, 35.0, 41.8, 39.7),
            16: (58.3, 67.7, 27.0, 33.6, 16.6, 33.1, 39.1, 39.3),
            32: (58.6, 67.9, 26.3, 33.6, 17.4, 34.4, 42.1, 40.0),
            64: (59.4, 66.8, 28.6, 33.9, 17.8, 34.1, 42.3, 40.4),
            128: (59.4, 66.6, 28.3, 33.5, 16.8, 32.3, 40.9, 39.7),
        },
        MAJORITY: {
            8: (58.0, 65.9, 23.4, 30.5, 18.4, 32.7, 43.0, 38.8),
            16: (58.6, 65.8, 26.3, 32.1, 19.4, 33.0, 43.4, 39.8),
            32: (60.4, 66.7, 28.0, 32.6, 20.8, 34.1, 44.7, 41.0),
            64: (59.7, 66.7, 26.6, 33.2, 20.6, 35.8, 43.4, 40.9),
            128: (60.6, 67.4, 25.7, 32.0, 22.6, 34.7, 43.2, 40.9),
        },
    }
)
"""Best-of-N by VisualPRM, by the same data as an ORM, and self-consistency (table 6)."""

ABLATIONS: Mapping[str, float] = MappingProxyType(
    {"prm:mean": 41.1, "prm:min": 40.4, "prm:max": 35.9, "judge": 33.2, PASS_1: 32.8}
)
"""Means of the seven sets at N = 8 (tables 4 and 5); the judge is InternVL2.5-8B itself."""

TEMPERATURES: Mapping[float, float] = MappingProxyType({0.3: 40.5, 0.7: 41.1, 1.0: 40.9, 1.3: 38.6})
"""Mean of the seven sets by VisualPRM at N = 8, by the policy's temperature."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A difference that the paper reports, and the same one in a run.

    Args:
        better, worse: selectors; the difference is the first less the second.
        size: N.
        paper: the paper's, in points.
        ours: this run's, with its interval, as shares.
    """

    better: str
    worse: str
    size: int
    paper: float
    ours: Mapping[str, float]

    @property
    def sign(self) -> str:
        """Whether ours has the paper's sign: "same", "other", or "open" if its interval holds 0."""
        if self.ours["low"] <= 0 <= self.ours["high"]:
            return "open"
        return "same" if (self.ours["mean"] > 0) == (self.paper > 0) else "other"


def claims(summary: Mapping[str, Any]) -> list[Claim]:
    """Return what of the paper a run can be held against, at its largest N that the paper has.

    Args:
        summary: what `critics.summarise` returned; without `prm:mean` there is nothing.
    """
    sizes = [size for size in summary["sizes"] if size in SCALING[MAJORITY]]
    if not sizes:
        return []
    column = SETS.index(summary["set"]) if summary["set"] in SETS else len(SETS)
    gains = {(row["selector"], row["size"]): row["gain"] for row in summary["rows"]}
    pairs = {(pair["first"], pair["second"], pair["size"]): pair["difference"]
             for pair in summary["pairs"]}  # fmt: skip
    found = []

    def add(better: str, worse: str, size: int, paper: float) -> None:
        known = gains.get((better, size)) if worse == PASS_1 else pairs.get((better, worse, size))
        if known is not None:
            found.append(Claim(better, worse, size, paper, known))

    def figure(selector: str, size: int) -> float:
        return SCALING[selector][size][column]

    size = sizes[-1]
    for selector in SCALING:
        add(selector, PASS_1, size, figure(selector, size) - POLICY_ALONE[column])
    for selector in ("orm", MAJORITY):
        add("prm:mean", selector, size, figure("prm:mean", size) - figure(selector, size))
    for worse in ("prm:min", "prm:max", "judge"):
        add("prm:mean", worse, 8, ABLATIONS["prm:mean"] - ABLATIONS[worse])
    add("judge", PASS_1, 8, ABLATIONS["judge"] - ABLATIONS[PASS_1])
    return found


def section(summary: Mapping[str, Any], called: Mapping[str, str]) -> list[str]:
    """Return the section of a report that holds a run against the paper, [] if it cannot be.

    Args:
        summary: of the run.
        called: what selectors are called.
    """
    found = claims(summary)
    if not found:
        return []
    of = f"on {summary['set']}" if summary["set"] in SETS else "over its seven sets"
    lines = table_head("difference", "N", "paper, points", "this run, points", "sign")
    for one in found:
        name = f"{called[one.better]} less {called[one.worse]}"
        lines.append(
            f"| {name} | {one.size} | {one.paper:+.1f} | {points(one.ours)} | {one.sign} |"
        )
    return [
        "## Beside VisualPRM's paper",
        f"The paper's figures are claims about InternVL2.5-8B {of} (arXiv 2503.10291; aggregations "
        "and judge: over the seven sets); they were not measured here, and only signs are "
        "compared. Open: the interval of this run holds 0.",
        "\n".join(lines),
    ]
