"""`vprm-search preflight`: is the scorer any help with this policy? Needs no right answers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from vprm_search.cli import console, options
from vprm_search.cli.compare import built_in_world, file_world
from vprm_search.compare.report import many
from vprm_search.errors import ConfigError
from vprm_search.report.view import printable
from vprm_search.steps import split_steps

if TYPE_CHECKING:
    from vprm_search.compare.preflight import PreflightReport
    from vprm_search.compare.worlds import World

_ON, _OUT = "On what", "Output"


def preflight(
    world: Annotated[
        str, typer.Option(metavar="tiny|synthetic", rich_help_panel=_ON, help="A built-in world.")
    ] = "tiny",
    problems: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBER|FILE",
            rich_help_panel=_ON,
            help="How many problems of the world, or a problem set; it needs no answers.",
        ),
    ] = None,
    images: options.ImageRoot = None,
    limit: Annotated[
        int, typer.Option(min=1, rich_help_panel=_ON, help="Most problems of a file: the first.")
    ] = 20,
    samples: Annotated[int, typer.Option(min=2, help="Solutions per problem.")] = 16,
    difficulty: Annotated[
        str, typer.Option(rich_help_panel=_ON, help="synthetic: easy, medium or hard.")
    ] = "hard",
    policy: options.PolicyName = "tiny",
    base_url: options.BaseUrl = None,
    continuation: options.HowToContinue = options.ContinuationName.auto,
    temperature: options.Temperature = 0.7,
    step_tokens: options.StepTokens = 512,
    scorer: options.Scorer = "tiny",
    scorer_api_key: options.ScorerKey = None,
    scorer_tokenizer: options.ScorerTokenizer = None,
    device: options.Device = "auto",
    blank_images: Annotated[
        bool, typer.Option("--blank-images", help="Show the scorer grey pictures: an ablation.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Makes all draws.")] = 0,
    max_failed: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, help="Share of failed calls that a result may have."),
    ] = 0.2,
    out: Annotated[
        Path | None, typer.Option(rich_help_panel=_OUT, help="Write the report (JSON).")
    ] = None,
    json: options.AsJson = False,
) -> None:
    """Tell without labels whether a scorer helps a policy: search, vote, or majority.

    Answers 20 problems 16 times each, looks at what the scores have to do with one another and
    with the answers, and says how to use them. `solve --preflight FILE` obeys a report.
    """
    count = None if problems is None or not problems.isdecimal() else int(problems)
    asked: World
    if problems is not None and count is None:
        asked = file_world(
            Path(problems),
            limit,
            images=images,
            policy={
                "name": policy,
                "base_url": base_url,
                "temperature": temperature,
                "max_tokens_per_step": step_tokens,
                "continuation": continuation.value,
            },
            scorer={"name": scorer, "device": device},
            tokenizer=scorer_tokenizer,
            key=scorer_api_key,
            labelled=False,
        )
    elif (policy, scorer, base_url) != ("tiny", "tiny", None):
        raise ConfigError("--policy and --scorer are for --problems FILE")
    else:
        given = {"problems": count or 20, "first": 0, "split": "validation"}
        given_too = {"difficulty": difficulty, "temperature": temperature}
        asked = built_in_world(world, {**given, **given_too})
    report = _checked(asked, samples, seed, max_failed, blank_images, policy)
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
