"""Measure the tiny world: does the reward model tell right from wrong, and does search pay?

One *cell* is a problem family at a sampling temperature. Every cell samples N whole solutions per
problem once; all methods choose among those same samples, so differences are paired. Beam searches
are run on the same problems. Cells are written as they end and are skipped when run again.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from examples.tiny_models.measures import auc_interval, macro_f1
from examples.tiny_models.references import ExactScorer
from vprm_search import ids
from vprm_search.bench.step_results import auc
from vprm_search.errors import ConfigError
from vprm_search.graph.loop import Job, score
from vprm_search.graph.parts import SearchRules
from vprm_search.graph.run import SearchRun, search_many
from vprm_search.images import normalise_image
from vprm_search.images.normalise import blank_image
from vprm_search.search import BeamSearch, BestOfN, BestScore, MajorityVote, Selector, WeightedVote
from vprm_search.steps import split_steps
from vprm_search.tiny.scored import sample_leaves
from vprm_search.tiny.world import (
    FAMILIES,
    SPLITS,
    TinyProblem,
    exact_labels,
    generate,
    parse_answer,
    render,
)
from vprm_search.tree import SearchTree
from vprm_search.types import ImageData, NodeRecord, Policy, Problem, StepScorer

# --- outcomes ---


Outcomes = dict[str, list[float]]
"""Per method, one number per problem: 1 right, 0 wrong, or a share or a count."""


@dataclass(frozen=True, slots=True)
class Cell:
    """The problems of one cell, rendered."""

    family: str
    temperature: float
    problems: tuple[TinyProblem, ...]
    tasks: tuple[tuple[Problem, tuple[ImageData, ...]], ...]

    @property
    def name(self) -> str:
        """The file name of the cell's results."""
        return f"{self.family}-T{self.temperature:g}"


def finished_samples(tree: SearchTree, count: int) -> list[NodeRecord]:
    """Return the ends of the first `count` samples that the policy ended itself."""
    return [leaf for leaf in sample_leaves(tree)[:count] if leaf.status == "finished"]


def is_correct(problem: TinyProblem, tree: SearchTree, node: str | None) -> float:
    """Return 1.0 if the chosen node gives the problem's answer, else 0.0."""
    return float(node is not None and tree[node].answer == problem.answer)


def sample_outcomes(
    cell: Cell, runs: Sequence[SearchRun], sizes: Sequence[int], outcomes: Outcomes
) -> None:
    """Write what needs no scores: pass@1, pass@N, tokens and self-consistency."""
    for size in sizes:
        right = [
            [float(leaf.answer == problem.answer) for leaf in sample_leaves(run.tree)[:size]]
            for problem, run in zip(cell.problems, runs, strict=True)
        ]
        outcomes[f"pass@1 of {size}"] = [sum(row) / size for row in right]
        outcomes[f"pass@{size} (any right)"] = [max(row) for row in right]
        outcomes[f"tokens best-of-{size}"] = [
            float(sum(c.generated_tokens for c in run.tree.children(run.tree.root_id)[:size]))
            for run in runs
        ]
        # ties between answers are broken by node id, a hash: the scores must not help here
        outcomes[f"self-consistency@{size}"] = [
            choose(problem, unscored_copy(run.tree, task[1]), MajorityVote(), size)
            for problem, run, task in zip(cell.problems, runs, cell.tasks, strict=True)
        ]


def choose(problem: TinyProblem, tree: SearchTree, selector: Selector, size: int) -> float:
    """Return whether `selector` takes a right answer among the first `size` samples."""
    return is_correct(problem, tree, selector.select(tree, finished_samples(tree, size)).node)


def selector_outcomes(
    cell: Cell,
    name: str,
    trees: Sequence[SearchTree],
    aggregates: Sequence[str],
    sizes: Sequence[int],
    outcomes: Outcomes,
) -> None:
    """Write best-of-N and the weighted vote of one scorer, per aggregation and N."""
    for size in sizes:
        for aggregate in aggregates:
            selectors: dict[str, Selector] = {
                f"{name} best-of-{size} ({aggregate})": BestScore(aggregate=aggregate),
                f"{name} weighted vote@{size} ({aggregate})": WeightedVote(aggregate=aggregate),
            }
            for label, selector in selectors.items():
                outcomes[label] = [
                    choose(problem, tree, selector, size)
                    for problem, tree in zip(cell.problems, trees, strict=True)
                ]


def step_metrics(cell: Cell, trees: Sequence[SearchTree], samples: int = 8) -> dict[str, Any]:
    """Return how well step scores match exact prefix-correctness, over `samples` per problem."""
    labels: list[int] = []
    scores: list[float] = []
    owners: list[int] = []
    places: list[int] = []
    for owner, (problem, tree) in enumerate(zip(cell.problems, trees, strict=True)):
        for leaf in sample_leaves(tree)[:samples]:
            values = tree.step_scores(leaf.id)
            truth = exact_labels(problem, tree.steps(leaf.id))
            for place, (value, label) in enumerate(zip(values, truth, strict=True)):
                if value is not None:
                    labels.append(int(label))
                    scores.append(value)
                    owners.append(owner)
                    places.append(-place)
    return {
        "auc": auc_interval(labels, scores, owners).to_json(),
        "macro_f1": macro_f1(labels, scores),
        "position_only_auc": auc(labels, places),
        "steps": len(labels),
        "right": sum(labels) / max(1, len(labels)),
    }


# --- the same searches scored again ---


_NO_SCORING: dict[str, Any] = {
    "scored_tokens": 0,
    "tokens_sent": 0,
    "tokens_computed": 0,
    "images_encoded": 0,
    "forward_passes": 0.0,
}


async def rescore(
    runs: Sequence[SearchRun],
    scorer: StepScorer,
    rules: SearchRules,
    images: Sequence[tuple[ImageData, ...]],
    *,
    first: int | None = None,
    batch: int = 64,
) -> list[SearchTree]:
    """Return copies of the trees whose steps are scored by another scorer, or on other images.

    With `first`, only the first so many candidates of each search are copied.

    `images` are those the scorer is shown; where they differ from a problem's own, the copy's
    problem names them instead, so that no cache can answer for the original picture.
    """
    trees = []
    for start in range(0, len(runs), batch):
        part = range(start, min(start + batch, len(runs)))
        jobs = [Job(unscored_copy(runs[i].tree, images[i], first), images[i]) for i in part]
        await score(jobs, scorer, rules)
        trees += [job.tree for job in jobs]
    return trees


def unscored_copy(
    tree: SearchTree, images: Sequence[ImageData], first: int | None = None
) -> SearchTree:
    """Return the same steps without scores, as a search over the same question and `images`.

    With `first`, only the root's first so many children and what is below them.
    """
    problem = replace(tree.problem, images=tuple(image.digest for image in images))
    copy = SearchTree(problem, tree.run_seed)
    waiting = [(tree.root_id, copy.root_id)]
    while waiting:
        old, new = waiting.pop()
        children = tree.children(old)
        for child in children if old != tree.root_id else children[:first]:
            node = ids.child_id(new, child.index, child.text)
            blank = replace(child, id=node, parent=new, path_scores={}, **_NO_SCORING)
            copy.merge([replace(blank, score=None, score_reason="")])
            waiting.append((child.id, node))
    return copy


# --- cells ---


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
    return SearchRules(
        strategy=strategy, selector=selector, extract=parse_answer, split=split_steps
    )


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
    blank = [(blank_image(),)] * len(images)
    for name, others in (("blank image", blank), ("other image", images[::-1])):
        scored[f"prm, {name}"] = await scored_by(prm, others)
        report(f"{cell.name}: scored by prm, {name}")
    return scored


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
