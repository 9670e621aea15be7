"""How often the pre-flight check is wrong, on worlds whose best way is known.

    python -m tests.benchmarks.preflight --out FOLDER [--page docs/preflight.md] [WORLD ...]

What is in the folder is not measured again.

In every world it is measured how often the default search, a weighted vote and a majority are right
at equal generated tokens (those of 16 whole solutions of the same problem), and the check is made
again and again on problems of its own. An advice is right if its way is the best, or not surely
worse: by less than two standard errors of the paired difference, or less than two points.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from vprm_search.budget import Budget
from vprm_search.cli.compare import TinyProblems
from vprm_search.compare.preflight import Advice, PreflightReport, preflight
from vprm_search.compare.report import fill_section
from vprm_search.compare.worlds import (
    WORLDS,
    LoadedWorld,
    SyntheticProblems,
    World,
    WorldSettings,
    is_right,
)
from vprm_search.evaluate.folder import write_atomically
from vprm_search.graph.loop import Job
from vprm_search.graph.parts import SearchRules, choose_rules
from vprm_search.graph.run import SearchRun, run_jobs
from vprm_search.scoring.wrappers import BlankImages
from vprm_search.search import BestOfN, MajorityVote, Selector, Strategy, WeightedVote
from vprm_search.steps import split_steps
from vprm_search.tree import SearchTree
from vprm_search.types import StepScorer

WAYS: tuple[Advice, ...] = ("search", "vote", "majority")
SHOWN = ("correlation", "share", "preference", "lead")
HARD = WORLDS["hard"]
GOOD = replace(HARD, p_step=0.95)
SIZE = 16


@dataclass(frozen=True)
class Case:
    """A world, and how it is checked. The problems behind `truth` are those of the checks."""

    title: str
    world: Callable[[int], World]
    truth: int = 100
    checks: int = 12
    blank: bool = False

    def load(self) -> LoadedWorld:
        """Load all problems: first those of the truth, then 20 for each check."""
        size = self.truth + 20 * self.checks
        return self.world(size).load(0, size)


def synthetic(title: str, settings: WorldSettings) -> Case:
    """Return a synthetic world with a title."""
    return Case(title, lambda size: SyntheticProblems(settings, size))


def tiny(title: str, *, blank: bool) -> Case:
    """Return the tiny world with the packaged models, at temperature 1."""

    def world(size: int) -> World:
        return TinyProblems(problems=size, first_index=500, temperature=1.0)

    return Case(title, world, truth=60, checks=3, blank=blank)


BLIND = replace(GOOD, auc=0.5, noise=0.9)
CASES: Mapping[str, Case] = {
    "informative": synthetic("informative: .95 a step, AUC .73", GOOD),
    "saturated": synthetic("the same, P('+') between .95 and .997", replace(GOOD, level=4.4)),
    "early": synthetic("the same, early steps score high", replace(GOOD, early=4)),
    "handed-on": synthetic(
        "AUC .80, errors handed on by .6", replace(GOOD, auc=0.8, correlation=0.6)
    ),
    "medium": synthetic("medium: .85 a step, AUC .80", WORLDS["medium"]),
    "hard": synthetic("hard: .72 a step, AUC .73", HARD),
    "poor": synthetic("poor: .95 a step, AUC .58", replace(GOOD, auc=0.58, noise=0.9)),
    "last": synthetic("only the last step's score knows", replace(GOOD, auc=0.85, blind=9)),
    "blind": synthetic("blind: .95 a step, AUC .50", BLIND),
    "blind-handed-on": synthetic("blind, errors handed on by .6", replace(BLIND, correlation=0.6)),
    "blind-hard": synthetic("blind, .72 a step", replace(HARD, auc=0.5, noise=0.9)),
    "contrary": synthetic("contrary: .95 a step, AUC .27", replace(GOOD, auc=0.27)),
    "lured": synthetic(
        "hard, AUC .80, 7 of 10 wrong paths agree on one answer", replace(HARD, auc=0.8, lure=0.6)
    ),
    "tiny": tiny("tiny world, temperature 1", blank=False),
    "tiny-blank": tiny("tiny world, the scorer sees blank pictures", blank=True),
}


def rights(loaded: LoadedWorld, runs: Sequence[SearchRun], selector: Selector) -> list[int]:
    """Return for every search whether the selector's answer is right."""
    found = []
    for task, run in zip(loaded.tasks, runs, strict=False):
        node = selector.select(run.tree, run.tree.finished()).node
        found.append(int(node is not None and is_right(task.answer, run.tree[node].answer)))
    return found


def truth_of(case: Case, loaded: LoadedWorld, scorer: StepScorer) -> dict[Advice, list[int]]:
    """Measure the three ways: for each, whether it is right on every problem."""
    tasks = loaded.tasks[: case.truth]

    def runs(strategy: Strategy, selector: Selector, budgets: Sequence[Budget]) -> list[SearchRun]:
        rules = SearchRules(strategy, selector, extract=loaded.extract, split=split_steps)
        jobs = [
            Job(SearchTree(task.problem), task.images, budget=budget)
            for task, budget in zip(tasks, budgets, strict=True)
        ]
        return asyncio.run(run_jobs(jobs, loaded.policy, scorer, rules))

    samples = runs(BestOfN(SIZE), WeightedVote(), [Budget()] * len(tasks))
    spent = [run.tree.totals.generated_tokens for run in samples]
    strategy, selector = choose_rules("auto", None, policy=loaded.policy, scorer=scorer)
    searched = runs(strategy, selector, [Budget(generated_tokens=tokens) for tokens in spent])
    return {
        "search": rights(loaded, searched, selector),
        "vote": rights(loaded, samples, WeightedVote()),
        "majority": rights(loaded, samples, MajorityVote()),
    }


def good_ways(truth: Mapping[Advice, Sequence[int]]) -> set[Advice]:
    """Return the best way and those that are not surely worse."""
    best = max(WAYS, key=lambda way: fmean(truth[way]))
    good = set()
    for way in WAYS:
        lost = [b - w for b, w in zip(truth[best], truth[way], strict=True)]
        error = stdev(lost) / math.sqrt(len(lost))
        if fmean(lost) < max(0.02, 2 * error):
            good.add(way)
    return good


def reports_of(case: Case, loaded: LoadedWorld, scorer: StepScorer) -> list[PreflightReport]:
    """Make the check on 20 problems after 20 problems."""
    reports = []
    for number in range(case.checks):
        start = case.truth + 20 * number
        tasks = loaded.tasks[start : start + 20]
        reports.append(
            preflight(
                loaded.policy,
                scorer,
                [(task.problem, task.images) for task in tasks],
                samples=SIZE,
                extract=loaded.extract,
                split=split_steps,
            )
        )
    return reports


def measured(name: str, out: Path) -> dict[str, Any]:
    """Return a world's line, the wrong advices, all, points lost by them and by searching."""
    file = out / f"{name}.json"
    if not file.exists():
        write_atomically(file, json.dumps(measure(name)))
    return dict(json.loads(file.read_text()))


def measure(name: str) -> dict[str, Any]:
    """Measure a world; see `measured`."""
    case = CASES[name]
    loaded = case.load()
    scorer = BlankImages(loaded.new_scorer()) if case.blank else loaded.new_scorer()
    truth = truth_of(case, loaded, scorer)
    good, reports = good_ways(truth), reports_of(case, loaded, scorer)
    counts = Counter(report.advice for report in reports)
    seen = [fmean(report.signals[name].value for report in reports) for name in SHOWN]
    means = {way: 100 * fmean(truth[way]) for way in WAYS}
    wrong = sum(count for way, count in counts.items() if way not in good)
    lost = sum(count * (max(means.values()) - means[way]) for way, count in counts.items())
    shown = [f"**{means[way]:.1f}**" if way in good else f"{means[way]:.1f}" for way in WAYS]
    given = [str(counts[way] or "–") for way in WAYS]
    signals = [f"{value:.2f}" for value in seen]
    columns = [case.title, *signals, *shown, *given, f"{wrong} of {case.checks}"]
    searched = case.checks * (max(means.values()) - means["search"])
    return {
        "line": f"| {' | '.join(columns)} |",
        "wrong": wrong,
        "checks": case.checks,
        "lost": lost,
        "searched": searched,
    }


def main() -> None:
    """Measure the worlds named on the command line, or all; print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of what is measured")
    parser.add_argument("--page", type=Path, help="Markdown file with 'preflight' marks")
    parser.add_argument("worlds", nargs="*", help=f"of {', '.join(CASES)}; default: all")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    found = []
    for name in given.worlds or CASES:
        found.append(measured(name, given.out))
        print(found[-1]["line"], flush=True)
    wrong, checks, lost, searched = (
        sum(row[key] for row in found) for key in ("wrong", "checks", "lost", "searched")
    )
    text = "\n".join(
        [
            f"| World | {' | '.join(SHOWN)} | search, % | vote, % | majority, % "
            "| says search | vote | majority | wrong |",
            "|---|---|---|---|---|---|---|---|---|---|---|---|",
            *(row["line"] for row in found),
            "",
            f"{wrong} of {checks} advices are wrong. Obeying them loses {lost / checks:.1f} points "
            f"to the best way on average, searching always {searched / checks:.1f}.",
        ]
    )
    if given.page is not None:
        fill_section(given.page, text, marks=("preflight",))
    print(text.splitlines()[-1])


if __name__ == "__main__":
    main()
