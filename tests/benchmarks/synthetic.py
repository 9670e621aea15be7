"""The synthetic worlds of the leaderboard, and this package's strategies measured on them.

Several worlds on purpose: a setting that wins on one of them only is luck. `leaderboard.py`
measures its_hub beside them; this package alone is measured by

    python -m tests.benchmarks.synthetic --out FOLDER [WORLD ...]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from vprm_search.compare.worlds import WORLDS, SyntheticProblems, WorldSettings
from vprm_search.evaluate.search_summary import Measured, read_cells
from vprm_search.evaluate.searches import Comparison, run_comparison

HARD = WORLDS["hard"]
ENTRANTS = ("best-of-n", "auto")
MORE = (*ENTRANTS, "rebase", "beam-last", "particles")


@dataclass(frozen=True)
class Setting:
    """A world with a title, and what is measured on it."""

    title: str
    world: WorldSettings
    problems: int = 1000
    sizes: tuple[int, ...] = (16,)
    entrants: tuple[str, ...] = ENTRANTS


SETTINGS: Mapping[str, Setting] = {
    "hard": Setting("hard: 10 steps, .72 a step, AUC .73", HARD, entrants=MORE),
    "risky": Setting("10 steps, .74 a step, AUC .72", replace(HARD, p_step=0.74, auc=0.72)),
    "saturated": Setting("hard, all scores between .95 and .997", replace(HARD, level=4.4)),
    "early": Setting("hard, early steps score high", replace(HARD, early=4.0)),
    "correlated": Setting(
        "hard, errors of neighbouring steps correlated .6, AUC .80",
        replace(HARD, correlation=0.6, auc=0.80),
    ),
    "overconfident": Setting(
        "hard, logits times 3, one wrong answer lures half of the wrong paths",
        replace(HARD, sharpness=3.0, lure=0.5),
    ),
    "twins": Setting("hard, 6 texts per step: many equal siblings", replace(HARD, words=6)),
    "repeating": Setting(
        "3 texts per step, .75 a step, AUC .80", replace(HARD, words=3, p_step=0.75, auc=0.80)
    ),
    "failing": Setting("hard, one scorer call in ten fails", replace(HARD, failing=0.1)),
    "short": Setting("5 steps, .55 a step, AUC .75", replace(HARD, depth=5, p_step=0.55, auc=0.75)),
    "long": Setting(
        "16 steps, .78 a step, AUC .73", replace(HARD, depth=16, p_step=0.78, auc=0.73)
    ),
    "weak": Setting("10 steps, .80 a step, AUC .62", replace(HARD, p_step=0.80, auc=0.62)),
    "uneven": Setting(
        "10 steps, .55 to .95 a step, AUC .73", replace(HARD, p_step=0.75, spread=0.2)
    ),
    "medium": Setting("medium: .85 a step, AUC .80", WORLDS["medium"]),
    "lured": Setting(
        "8 steps, .68 a step, AUC .78, scores high and early ones higher, errors correlated .5, "
        "one wrong answer lures three in ten of the wrong paths",
        replace(
            HARD,
            depth=8,
            p_step=0.68,
            auc=0.78,
            correlation=0.5,
            early=2.0,
            level=3.0,
            lure=0.3,
            step_tokens=60,
            seed=777001,
        ),
        300,
    ),
    "deep": Setting(
        "14 steps, .70 to .90 a step, AUC .68, logits times 2, scores high",
        replace(
            HARD,
            depth=14,
            p_step=0.80,
            auc=0.68,
            correlation=0.3,
            level=2.5,
            sharpness=2.0,
            spread=0.1,
            seed=777002,
        ),
        300,
    ),
    "blunt": Setting(
        "6 steps, .60 a step, AUC .72, logits times .4, 50 texts per step",
        replace(
            HARD,
            depth=6,
            p_step=0.60,
            auc=0.72,
            sharpness=0.4,
            correlation=0.4,
            words=50,
            step_tokens=25,
            seed=777003,
        ),
        300,
    ),
    "blind": Setting(
        "medium, scores are noise (AUC .50)", replace(WORLDS["medium"], auc=0.5, noise=1.0), 300
    ),
    "contrary": Setting(
        "medium, wrong steps score higher (AUC .30)", replace(WORLDS["medium"], auc=0.3), 300
    ),
}


def measure(
    setting: Setting,
    out: Path,
    report: Callable[[str], None] = print,
) -> list[Measured]:
    """Measure this package's strategies on one world; what is in `out` is not measured again."""
    problems = SyntheticProblems(setting.world, setting.problems)
    comparison = Comparison(setting.entrants, setting.sizes, batch=50, shard=100, max_failed=1)
    run_comparison(comparison, problems, out, report=report)
    return read_cells(out)


def main() -> None:
    """Measure the worlds named on the command line, or all, and print accuracies."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the measured cells")
    parser.add_argument("worlds", nargs="*", help=f"of {', '.join(SETTINGS)}; default: all")
    given = parser.parse_args()
    for name in given.worlds or SETTINGS:
        for cell in measure(SETTINGS[name], given.out / name):
            accuracy = {choice: round(float(v.mean()), 3) for choice, v in cell.right.items()}
            print(name, f"{cell.name}@{cell.size}", accuracy, flush=True)


if __name__ == "__main__":
    main()
