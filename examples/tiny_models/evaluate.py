"""Measure the tiny world: does the reward model tell right from wrong, and does search pay?

One *cell* is a problem family at a sampling temperature. Every cell samples N whole solutions per
problem once; all methods choose among those same samples, so differences are paired. Beam searches
are run on the same problems. Cells are written as they end and are skipped when run again.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.tiny_models.evaluation_outcomes import (
    Cell,
    Outcomes,
    is_correct,
    sample_outcomes,
    selector_outcomes,
    step_metrics,
)
from examples.tiny_models.references import ExactScorer
from vprm_search.compare.lockstep import rescore, search_many
from vprm_search.errors import ConfigError
from vprm_search.graph.rules import SearchRules
from vprm_search.graph.search_run import SearchRun
from vprm_search.images import normalise_image
from vprm_search.search import BeamSearch, BestOfN, BestScore, Selector, WeightedVote
from vprm_search.tiny.problem import parse_answer
from vprm_search.tiny.world import FAMILIES, SPLITS, generate, render
from vprm_search.tree import SearchTree
from vprm_search.types import ImageData, Policy, Problem, StepScorer

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What to measure. `first_index` shifts the problems, so that a draw is never used twice."""

    split: str = "test"
    families: tuple[str, ...] = FAMILIES
    temperatures: tuple[float, ...] = (0.7, 1.2)
    problems: int = 500
    first_index: int = 0
    sizes: tuple[int, ...] = (8, 16)
    run_seed: int = 0
    batch: int = 50

    def __post_init__(self) -> None:
        """Raise `ConfigError` on values that cannot be measured."""
        unknown = set(self.families) - set(FAMILIES)
        if unknown or self.split not in SPLITS or self.problems < 2 or not self.sizes:
            raise ConfigError(
                f"cannot evaluate families {self.families}, split {self.split!r}, "
                f"{self.problems} problems, sizes {self.sizes}; known families: "
                f"{', '.join(FAMILIES)}; known splits: {', '.join(SPLITS)}"
            )


@dataclass(frozen=True, slots=True)
class Models:
    """The models of an evaluation. `policy_at` makes the policy of a temperature.

    `scorers` maps a name to (scorer, aggregations to report); the first one is "prm", the one
    that guides the searches.
    """

    policy_at: Callable[[float], Policy]
    scorers: Mapping[str, tuple[StepScorer, tuple[str, ...]]]


BEAMS: Mapping[str, tuple[BeamSearch, int]] = {
    "beam 2x4": (BeamSearch(width=2, expand=4, refill=0, stop=None), 8),
    "beam 4x4": (BeamSearch(width=4, expand=4, refill=0, stop=None), 16),
}
"""Beam searches by name, each with the best-of-N size whose generated tokens it must not exceed."""


def make_cell(config: Evaluation, family: str, temperature: float) -> Cell:
    """Draw and render the problems of a cell."""
    indices = range(config.first_index, config.first_index + config.problems)
    problems = tuple(generate(family, config.split, index) for index in indices)
    images = [normalise_image(render(problem)) for problem in problems]
    tasks = tuple(
        (Problem(problem.question, (image.digest,)), (image,))
        for problem, image in zip(problems, images, strict=True)
    )
    return Cell(family, temperature, problems, tasks)


def evaluate(config: Evaluation, models: Models, out: Path, report: Report = print) -> list[Path]:
    """Measure every cell that has no result file in `out` yet; return all result files."""
    out.mkdir(parents=True, exist_ok=True)
    files = []
    for family in config.families:
        for temperature in config.temperatures:
            cell = make_cell(config, family, temperature)
            path = out / f"{cell.name}.json"
            files.append(path)
            if path.exists():
                report(f"{cell.name}: already measured")
                continue
            result = asyncio.run(_measure(config, cell, models, report))
            partial = path.with_suffix(".part")
            partial.write_text(json.dumps(result))
            partial.replace(path)
    return files


async def _measure(
    config: Evaluation, cell: Cell, models: Models, report: Report
) -> dict[str, Any]:
    policy = models.policy_at(cell.temperature)
    most = max(config.sizes)
    prm, _ = models.scorers["prm"]
    runs = await search_many(
        cell.tasks,
        policy,
        prm,
        _rules(BestOfN(most), BestScore()),
        run_seed=config.run_seed,
        batch=config.batch,
        progress=lambda done, all_: report(f"{cell.name}: best-of-{most} {done}/{all_}"),
    )
    outcomes: Outcomes = {}
    sample_outcomes(cell, runs, config.sizes, outcomes)
    steps: dict[str, Any] = {}
    for name, trees in (await _all_scores(config, cell, runs, models, report)).items():
        kinds = ("last",) if name == "oracle" else models.scorers.get(name, (None, ("mean",)))[1]
        selector_outcomes(cell, name, trees, kinds, config.sizes, outcomes)
        if name not in ("oracle", "orm"):
            steps[name] = step_metrics(cell, trees)
    for name, (beam, _) in BEAMS.items():
        await _beam_outcomes(config, cell, name, beam, policy, prm, outcomes)
        report(f"{cell.name}: {name} measured")
    return {
        "family": cell.family,
        "temperature": cell.temperature,
        "split": config.split,
        "first_index": config.first_index,
        "run_seed": config.run_seed,
        "outcomes": outcomes,
        "steps": steps,
    }


def _rules(strategy: Any, selector: Selector) -> SearchRules:
    return SearchRules(strategy=strategy, selector=selector, extract=parse_answer)


async def _all_scores(
    config: Evaluation, cell: Cell, runs: Sequence[SearchRun], models: Models, report: Report
) -> dict[str, list[SearchTree]]:
    """Return the sampled trees as each scorer scores them, ablations of the PRM included."""
    images = [task[1] for task in cell.tasks]
    rules = _rules(BestOfN(1), BestScore())

    async def scored_by(scorer: StepScorer, shown: Any) -> list[SearchTree]:
        return await rescore(runs, scorer, rules, shown, batch=config.batch)

    scored = {"prm": [run.tree for run in runs]}
    for name, (scorer, _) in models.scorers.items():
        if name != "prm":
            scored[name] = await scored_by(scorer, images)
            report(f"{cell.name}: scored by {name}")
    truths = {task[0]: problem for task, problem in zip(cell.tasks, cell.problems, strict=True)}
    scored["oracle"] = await scored_by(ExactScorer(truths), images)
    prm, _ = models.scorers["prm"]
    for name, others in (("blank image", _blank(images)), ("other image", images[::-1])):
        scored[f"prm, {name}"] = await scored_by(prm, others)
        report(f"{cell.name}: scored by prm, {name}")
    return scored


def _blank(images: Sequence[tuple[ImageData, ...]]) -> list[tuple[ImageData, ...]]:
    from PIL import Image

    grey = normalise_image(Image.new("RGB", (64, 64), (220, 220, 220)))
    return [(grey,) for _ in images]


# --- beam --------------------------------------------------------------------------------------


async def _beam_outcomes(
    config: Evaluation,
    cell: Cell,
    name: str,
    beam: BeamSearch,
    policy: Policy,
    prm: StepScorer,
    outcomes: Outcomes,
) -> None:
    runs = await search_many(
        cell.tasks,
        policy,
        prm,
        _rules(beam, BestScore()),
        run_seed=config.run_seed,
        batch=config.batch,
    )
    outcomes[f"tokens {name}"] = [float(run.result.usage.generated_tokens) for run in runs]
    selectors: dict[str, Selector] = {
        f"prm {name}": BestScore(),
        f"prm {name}, weighted vote": WeightedVote(aggregate="product"),
    }
    for label, selector in selectors.items():
        outcomes[label] = [
            is_correct(problem, run.tree, selector.select(run.tree, run.tree.finished()).node)
            for problem, run in zip(cell.problems, runs, strict=True)
        ]
