"""`vprm-search bench …`: how well a scorer tells right steps from wrong ones."""

from __future__ import annotations

import asyncio
import json as json_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vprm_search.bench.labelled_solutions import BenchmarkName
from vprm_search.cli import console, options
from vprm_search.errors import ConfigError, need
from vprm_search.report.view import printable

if TYPE_CHECKING:
    from vprm_search.types import StepScorer


def bench(
    *,
    name: Annotated[
        BenchmarkName, typer.Argument(metavar="BENCHMARK", help="Whose format it has.")
    ],
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="JSONL, JSON, or a folder of parquet or arrow.")
    ],
    images: options.ImageRoot = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of scores, results and report; what is scored there stays. "
            "Default: the benchmark's name."
        ),
    ] = None,
    scorer: options.ScorerOptions,
    judge: Annotated[
        str | None,
        typer.Option(metavar=options.JUDGES, help="A chat model in place of --scorer."),
    ] = None,
    base_url: Annotated[
        str | None, typer.Option(help="OpenAI-compatible server of --judge.")
    ] = None,
    threshold: Annotated[
        list[float] | None,
        typer.Option(min=0.0, max=1.0, help="Repeatable, of P('+'); default: .5, .8 and .85."),
    ] = None,
    tune_on: Annotated[
        str | None, typer.Option(help="Source whose best threshold is applied to all others.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Records to take, the first ones.")
    ] = None,
    leave_out: Annotated[
        bool, typer.Option("--leave-out", help="Leave defective records out, and count them.")
    ] = False,
    batch: Annotated[int, typer.Option(min=1, help="Solutions of one call.")] = 8,
    seed: Annotated[int, typer.Option(help="Draws the resamples.")] = 0,
) -> None:
    """Measure a scorer on solutions whose steps people have labelled.

    visualprocessbench: macro F1 over steps, all together and by source, as the paper has it; steps
    are scored as they are given, neutral ones dropped afterwards. processbench (text): the first
    wrong step, counted from 0; its F1 is the second table. prmbench (text): wrong steps, counted
    from 1, by class; a class's PRMScore is macro F1. vlrewardbench: which of two responses people
    prefer, by the mean, lowest and last score of its steps. A stopped run is taken up again.
    """
    if images is not None and name in ("processbench", "prmbench"):
        raise ConfigError(f"--images is for benchmarks with pictures; {name} is text alone")
    if (threshold or tune_on) and name == "vlrewardbench":
        raise ConfigError(
            "--threshold and --tune-on are for labelled steps; vlrewardbench has pairs"
        )
    judged = _scorer(scorer, judge, base_url)
    told = {"thresholds": threshold, "tune_on": tune_on, "seed": seed}
    _run(name, file, images, out or Path(name), judged, limit, leave_out, batch, told)


def _scorer(
    scorer: options.ScorerOptions, judge: str | None, base_url: str | None
) -> tuple[str, StepScorer]:
    """Return what the scorer is called, and the scorer."""
    need("numpy", "local")
    if judge is None:
        if base_url is not None:
            raise ConfigError("--base-url is for --judge")
        return scorer.scorer, scorer.load(scorer.scorer)
    from vprm_search.scoring.judge_scorer import JudgeScorer

    return judge, JudgeScorer(options.chat_model(judge, base_url, 0.0))


def _run(
    name: BenchmarkName,
    file: Path,
    images: Path | None,
    out: Path,
    judged: tuple[str, StepScorer],
    limit: int | None,
    leave_out: bool,
    batch: int,
    told: dict[str, Any],
) -> None:
    from vprm_search.bench.labelled_solutions import read_step_benchmark
    from vprm_search.bench.preferences import report_pairs, summarise_pairs
    from vprm_search.bench.scoring_run import ScoreFile, score_benchmark
    from vprm_search.bench.step_report import report as step_report
    from vprm_search.bench.step_results import THRESHOLDS, summarise

    benchmark = read_step_benchmark(file, name, image_root=images, limit=limit)
    solutions = [solution for solution in benchmark.solutions if solution.usable]
    if not leave_out or not solutions:
        benchmark.check()
    known = {solution.source for solution in solutions}
    if told["tune_on"] is not None and told["tune_on"] not in known:
        raise ConfigError(f"--tune-on {told['tune_on']!r}: the sources are {sorted(known)}")
    out.mkdir(parents=True, exist_ok=True)
    called, scorer = judged
    scores_file = ScoreFile(out / "scores.jsonl", str(getattr(scorer, "identity", "") or called))
    bar = (TextColumn("scoring"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*bar, console=console.ERR, transient=True) as progress:
        task = progress.add_task("scoring", total=len(solutions))
        scores = asyncio.run(
            score_benchmark(
                benchmark,
                solutions,
                scorer,
                scores_file,
                batch=batch,
                progress=lambda done, _: progress.update(task, completed=done),
            )
        )
    if name == "vlrewardbench":
        summary, report = summarise_pairs(solutions, scores, seed=told["seed"]), report_pairs
    else:
        limits = tuple(told["thresholds"] or THRESHOLDS)
        summary, report = (
            summarise(solutions, scores, **{**told, "thresholds": limits}),
            step_report,
        )
    summary |= {
        "benchmark": name,
        "scorer": called,
        "defects": dict(benchmark.defects),
        "left_out": len(benchmark.solutions) - len(solutions),
        "reasons": scores_file.reasons,
    }
    text = report(summary, called)
    console.write_file(out / "results.json", json_module.dumps(summary, indent=1))
    console.write_file(out / "results.md", text)
    console.OUT.file.write(printable(text, lines=True) + "\n")
