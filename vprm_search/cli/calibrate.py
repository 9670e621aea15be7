"""`vprm-search calibrate …`: what a reward model's scores mean for a policy.

Three commands: `tiny` and `score` make scored, labelled paths (JSONL); `fit` makes a calibration of
them (JSON), and says how good it is on problems it was not fitted on.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vprm_search.calibration.maps import Method, Target
from vprm_search.cli import console, options
from vprm_search.compare.report import many
from vprm_search.errors import InputError, need

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vprm_search.calibration.maps import Calibration
    from vprm_search.labelling.records import ProblemRecord, ScoredPath
    from vprm_search.report.reliability import Calibrated
    from vprm_search.types import ImageData, StepScorer

calibrate = typer.Typer(
    help="Make scores probabilities: collect scored, labelled paths (tiny, score), then fit.",
    no_args_is_help=True,
)


Paths = Annotated[Path, typer.Option(help="JSONL file of scored, labelled paths to write.")]


@calibrate.command("tiny")
@options.takes_groups
def collect_tiny(
    *,
    out: Paths,
    problems: Annotated[int, typer.Option(min=1, help="Problems per family.")] = 60,
    samples: Annotated[int, typer.Option(min=1, max=64, help="Solutions per problem.")] = 4,
    temperature: Annotated[float, typer.Option(min=0.0, help="Of the policy.")] = 0.7,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "validation",
    first: Annotated[int, typer.Option(min=0, help="First problem of each family.")] = 0,
    family: Annotated[list[str] | None, typer.Option(help="Repeatable; default all.")] = None,
    seed: Annotated[int, typer.Option(help="Makes all draws.")] = 0,
    scorer: options.ScorerOptions,
) -> None:
    """Sample solutions in the tiny world, score them, and label every step exactly."""
    console.check_place(out)
    judge = scorer.load(scorer.scorer)
    from vprm_search.labelling.records import write_scored_paths
    from vprm_search.tiny.policy import TinyPolicy
    from vprm_search.tiny.scored import scored_paths
    from vprm_search.tiny.weights import weights_path
    from vprm_search.tiny.world import FAMILIES, SPLITS, generate

    wanted = tuple(family) if family else FAMILIES
    if split not in SPLITS or set(wanted) - set(FAMILIES):
        raise InputError(
            f"no split {split!r} or family in {', '.join(wanted)}; splits: {', '.join(SPLITS)}; "
            f"families: {', '.join(FAMILIES)}"
        )
    tasks = [generate(name, split, first + i) for name in wanted for i in range(problems)]
    policy = TinyPolicy.from_pretrained(weights_path("policy")).at_temperature(temperature)
    with console.ERR.status("sampling and scoring") as status:
        paths = scored_paths(
            tasks,
            policy,
            judge,
            name=f"tiny@{temperature:g}",
            samples=samples,
            run_seed=seed,
            progress=lambda done, of: status.update(f"{done} of {of} problems"),
        )
    write_scored_paths(out, paths)
    _tell(paths, out)


@calibrate.command("score")
@options.takes_groups
def score_labels(
    *,
    records: Annotated[Path, typer.Option(help="JSONL file of label records.")],
    policy: Annotated[str, typer.Option(help="Name of the policy that wrote the solutions.")],
    images: Annotated[
        str, typer.Option(metavar="tiny|FOLDER", help="Where the pictures are: an image store.")
    ],
    out: Paths,
    threshold: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="A step is right above this label score.")
    ] = 0.0,
    scorer: options.ScorerOptions,
) -> None:
    """Score the solutions of label records (`vprm_search.labelling`)."""
    console.check_place(out)
    judge = scorer.load(scorer.scorer)
    from vprm_search.labelling.records import read_records, score_records, write_scored_paths

    if not records.is_file():
        raise InputError(f"{records} is not a file")

    async def collect(judge: StepScorer) -> list[ScoredPath]:
        found = score_records(
            read_records(records), judge, _pictures(images), policy=policy, threshold=threshold
        )
        return [path async for path in found]

    paths = asyncio.run(collect(judge))
    write_scored_paths(out, paths)
    _tell(paths, out)


def _pictures(images: str) -> Callable[[ProblemRecord], tuple[ImageData, ...]]:
    if images == "tiny":
        from vprm_search.tiny.scored import label_task, problem_of

        return lambda record: label_task(problem_of(record.id)).images
    from vprm_search.images.store import DiskImageStore

    store = DiskImageStore(images)
    return lambda record: tuple(store.get(digest) for digest in record.images)


@calibrate.command()
def fit(
    paths: Annotated[
        list[Path], typer.Option(help="JSONL files of scored, labelled paths; repeatable.")
    ],
    out: Annotated[Path, typer.Option(help="The calibration to write (JSON).")],
    method: Annotated[Method, typer.Option()] = "temperature",
    target: Annotated[
        Target, typer.Option(help="Right steps, or right answers of paths.")
    ] = "step",
    aggregate: Annotated[str, typer.Option(help="target path: the path score.")] = "mean",
    holdout: Annotated[
        float, typer.Option(min=0.1, max=0.9, help="Share of the problems to measure on.")
    ] = 0.5,
    seed: Annotated[int, typer.Option(help="Draws the held-out problems.")] = 0,
    bins: Annotated[int, typer.Option(min=2, max=100, help="Bins of the ECE.")] = 15,
    png: Annotated[Path | None, typer.Option(help="Write a reliability diagram.")] = None,
) -> None:
    """Fit one calibration per policy and measure it on held-out problems."""
    console.check_place(out, png)
    need("numpy", "calibration")
    from vprm_search.calibration.maps import CalibrationFile
    from vprm_search.labelling.records import by_policy, read_scored_paths
    from vprm_search.report.reliability import (
        calibrate_policy,
        calibration_table,
        png_reliability,
    )

    groups = by_policy(path for file in paths for path in read_scored_paths(file))
    if not groups:
        raise InputError(f"no paths in {', '.join(map(str, paths))}")
    kind = aggregate if target == "path" else ""
    done: list[tuple[Calibration, Calibrated]] = [
        calibrate_policy(group, method, kind, share=holdout, seed=seed, bins=bins)
        for group in groups.values()
    ]
    file = CalibrationFile(calibrations=tuple(calibration for calibration, _ in done))
    rows = [row for _, row in done]
    console.OUT.print(calibration_table(rows))
    drawn = None if png is None else png_reliability(rows)
    console.write_file(out, file.dumps())
    if png is not None and drawn is not None:
        console.write_file(png, drawn)


def _tell(paths: Sequence[ScoredPath], out: Path) -> None:
    steps = sum(len(path.steps) for path in paths)
    right = sum(bool(step.label) for path in paths for step in path.steps)
    console.ERR.print(
        f"{many(len(paths), 'path')}, {many(steps, 'step')}, {right} of them right: {out}",
        markup=False,
        soft_wrap=True,
    )
