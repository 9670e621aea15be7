"""`vprm-search preflight`: is the scorer any help with this policy? Needs no right answers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from vprm_search.cli import console, options
from vprm_search.cli.compare import WorldOptions, on_what
from vprm_search.compare.report import many
from vprm_search.report.view import printable
from vprm_search.steps import split_steps

if TYPE_CHECKING:
    from vprm_search.compare.preflight import PreflightReport
    from vprm_search.compare.worlds import World


def preflight(
    *,
    on: WorldOptions,
    limit: Annotated[int, on_what(min=1, help="Most problems of a file: the first.")] = 20,
    samples: Annotated[int, typer.Option(min=2, help="Solutions per problem.")] = 16,
    policy: options.PolicyOptions,
    scorer: options.ScorerOptions,
    blank_images: Annotated[
        bool, typer.Option("--blank-images", help="Show the scorer grey pictures: an ablation.")
    ] = False,
    seed: options.Seed = 0,
    max_failed: options.MaxFailed = 0.2,
    out: Annotated[
        Path | None, typer.Option(rich_help_panel="Output", help="Write the report (JSON).")
    ] = None,
    json: options.AsJson = False,
) -> None:
    """Tell without labels whether a scorer helps a policy: search, vote, or majority.

    Answers 20 problems 16 times each, looks at what the scores have to do with one another and
    with the answers, and says how to use them. `solve --preflight FILE` obeys a report. A problem
    set needs no answers here.
    """
    console.check_place(out)
    asked = on.load(policy, scorer, count=20, limit=limit, labelled=False)
    report = _checked(asked, samples, seed, max_failed, blank_images, policy.policy)
    if out is not None:
        console.write_file(out, report.dumps())
    if json:
        console.print_json(report.model_dump())
    else:
        _show(report)


def _checked(
    world: World, samples: int, seed: int, max_failed: float, blank: bool, policy: str
) -> PreflightReport:
    from vprm_search.compare.preflight import preflight as check

    loaded = world.load(0, world.size)
    scorer = loaded.new_scorer()
    if blank:
        from vprm_search.scoring.wrappers import BlankImages

        scorer = BlankImages(scorer)
    with console.ERR.status("sampling and scoring") as status:
        report = check(
            loaded.policy,
            scorer,
            [(task.problem, task.images) for task in loaded.tasks],
            samples=samples,
            run_seed=seed,
            max_failed=max_failed,
            extract=loaded.extract,
            split=split_steps,
            progress=lambda done, of: status.update(f"{done} of {of} problems"),
        )
    return report.model_copy(update={"policy": policy})


def _show(report: PreflightReport) -> None:
    from vprm_search.compare.signals import SIGNALS

    table = Table("signal", "value", "95 % interval", "what it is", box=None, pad_edge=False)
    for name, signal in report.signals.items():
        interval = f"[{signal.low:.2f}, {signal.high:.2f}]"
        table.add_row(name, f"{signal.value:.2f}", interval, SIGNALS.get(name, ""))
    console.OUT.print(table)
    counted = f"{many(report.problems, 'problem')}, {many(report.samples, 'solution')}"
    if report.failed or report.unscored:
        unscored = many(report.unscored, "solution has", "solutions have")
        counted += f"; {many(report.failed, 'call')} failed, {unscored} no score"
    console.OUT.print(Text(counted, style="dim"))
    for warning in report.warnings:
        console.OUT.print(Text.assemble(("warning: ", "bold yellow"), printable(warning)))
    advice = Text.assemble(("advice: ", "bold"), (report.advice, "bold green"), ". ")
    console.OUT.print(advice + Text(report.sentence))
