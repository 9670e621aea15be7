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

from vprm_search.compare.comparison import Comparison, measure_shard, open_folder
from vprm_search.compare.summary import Measured, read_cells
from vprm_search.compare.worlds import WORLDS, SyntheticProblems, WorldSettings

HARD = WORLDS["hard"]
ENTRANTS = (
    "best-of-n",
    "beam-last",
    "dvts-last",
    "rebase",
    "particles",
    "particles-half",
    "rebase-paper",
    "widening-rebase",
)
LESS = ("best-of-n", "rebase", "widening-rebase", "particles")


@dataclass(frozen=True)
class Setting:
    """A world with a title, and what is measured on it."""

    title: str
    world: WorldSettings
    problems: int = 100
    sizes: tuple[int, ...] = (16,)
    entrants: tuple[str, ...] = ENTRANTS


SETTINGS: Mapping[str, Setting] = {
    "hard": Setting("hard: 10 steps, .72 a step, AUC .73", HARD, 200),
    "hard-2": Setting("hard, another seed", replace(HARD, seed=1), 200),
    "less": Setting("the same at N=14, 5600 generated tokens", HARD, 200, (14,), LESS),
    "sizes": Setting("hard, a third seed, N=8 and 32", replace(HARD, seed=2), 100, (8, 32)),
    "correlated": Setting(
        "hard, errors of neighbouring steps correlated .6, AUC .80",
        replace(HARD, correlation=0.6, auc=0.80),
    ),
    "overconfident": Setting(
        "hard, logits times 3, one wrong answer lures half of the wrong paths",
        replace(HARD, sharpness=3.0, lure=0.5),
    ),
    "twins": Setting("hard, 6 texts per step: many equal siblings", replace(HARD, words=6)),
    "short": Setting("5 steps, .55 a step, AUC .75", replace(HARD, depth=5, p_step=0.55, auc=0.75)),
    "long": Setting(
        "20 steps, .85 a step, AUC .75", replace(HARD, depth=20, p_step=0.85, auc=0.75)
    ),
    "sharp": Setting("hard, AUC .95", replace(HARD, auc=0.95)),
    "medium": Setting("medium: .85 a step, AUC .80", WORLDS["medium"]),
    "easy": Setting("easy: .93 a step, AUC .90", WORLDS["easy"]),
}


def measure(
    setting: Setting,
    out: Path,
    report: Callable[[str], None] = print,
) -> list[Measured]:
    """Measure this package's strategies on one world; what is in `out` is not measured again."""
    problems = SyntheticProblems(setting.world, setting.problems)
    comparison = Comparison(setting.entrants, setting.sizes, batch=50, shard=setting.problems)
    open_folder(comparison, problems, out)
    for start, stop in comparison.shards(problems):
        measure_shard(comparison, problems, out, start, stop, report)
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
