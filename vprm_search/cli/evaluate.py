"""`vprm-search evaluate`: candidates of a problem set, their critics at every N, and the report.

Four stages over files that only grow: generate, score, grade, select. Each can run alone, and on
another machine.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from vprm_search.budget import Prices
from vprm_search.cli import console, options
from vprm_search.cli.compare import digest_of_weights
from vprm_search.cli.datasets import File, Set, read
from vprm_search.cli.evaluate_models import Models, policy_of
from vprm_search.cli.solve import PriceFile, read_prices
from vprm_search.errors import ConfigError, SearchError
from vprm_search.report.view import printable

if TYPE_CHECKING:
    from vprm_search.evaluate.pooling import RecordedRun
    from vprm_search.evaluate.side_by_side import Done
    from vprm_search.evaluate.side_by_side import Progress as Told
    from vprm_search.evaluate.stages import Stages
    from vprm_search.types import Policy


class PresetName(StrEnum):
    """The presets by name."""

    default = "default"
    paper = "paper"
    vlmevalkit = "vlmevalkit"


class ResultFormat(StrEnum):
    """Forms of VLMEvalKit's result files."""

    tsv = "tsv"
    xlsx = "xlsx"


class Stage(StrEnum):
    """The stages, in their order."""

    generate = "generate"
    score = "score"
    search = "search"
    grade = "grade"
    select = "select"


_SAMPLING, _CRITICS, _OUT = "Candidates", "Critics", "Output"


def evaluate(
    file: File,
    out: Annotated[
        Path, typer.Option(rich_help_panel=_OUT, help="Folder; what is in it is not made again.")
    ],
    images: options.ImageRoot = None,
    set_name: Set = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Problems to take, the first.")] = None,
    stage: Annotated[
        list[Stage] | None, typer.Option(help="Repeatable; default: all that have what they need.")
    ] = None,
    n: Annotated[
        int | None,
        typer.Option(
            "--n",
            min=1,
            max=1024,
            rich_help_panel=_SAMPLING,
            help="Candidates of a problem; default: 8, or as many as there are.",
        ),
    ] = None,
    policy: Annotated[
        str,
        typer.Option(
            metavar="tiny|openai:MODEL|PROVIDER:MODEL",
            rich_help_panel=_SAMPLING,
            help="What writes solutions.",
        ),
    ] = "tiny",
    base_url: options.BaseUrl = None,
    preset: Annotated[
        PresetName,
        typer.Option(
            rich_help_panel=_SAMPLING,
            help="Settings of a published run; what is given besides takes the place of its own.",
        ),
    ] = PresetName.default,
    prompt: Annotated[
        str | None,
        typer.Option(
            metavar="plain|en|en_v2|cot|FILE",
            rich_help_panel=_SAMPLING,
            help="What a question is put into; scorers see it, too. Default: plain.",
        ),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(min=0.0, rich_help_panel=_SAMPLING, help="Of the policy; default: 0.7."),
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, rich_help_panel=_SAMPLING, help="Of the policy."),
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, rich_help_panel=_SAMPLING, help="Most tokens of a solution; default: 4096."
        ),
    ] = None,
    greedy_first: Annotated[
        bool | None,
        typer.Option(
            "--greedy-first/--sampled-first",
            rich_help_panel=_SAMPLING,
            help="Candidate 0 at temperature 0, or drawn as the others (the default).",
        ),
    ] = None,
    likelihood: Annotated[
        bool,
        typer.Option(
            "--likelihood",
            rich_help_panel=_SAMPLING,
            help="Ask the policy for its tokens' probabilities: its own likelihood is a critic.",
        ),
    ] = False,
    seed: Annotated[int, typer.Option(rich_help_panel=_SAMPLING, help="Makes all draws.")] = 0,
    scorer: Annotated[
        str | None,
        typer.Option(
            metavar="tiny|PATH|vllm:URL",
            rich_help_panel=_CRITICS,
            help="Process reward model; default: tiny for the tiny policy, else none.",
        ),
    ] = None,
    scorer_api_key: options.ScorerKey = None,
    scorer_tokenizer: options.ScorerTokenizer = None,
    device: options.Device = "auto",
    max_steps: Annotated[
        int, typer.Option(min=1, rich_help_panel=_CRITICS, help="Steps a solution is merged into.")
    ] = 12,
    tiles: Annotated[
        int | None,
        typer.Option(
            min=1,
            rich_help_panel=_CRITICS,
            help="Most tiles of a picture for the reward models; default: their checkpoint's.",
        ),
    ] = None,
    orm: Annotated[
        str | None,
        typer.Option(
            metavar="tiny|PATH|vllm:URL",
            rich_help_panel=_CRITICS,
            help="Scores whole solutions; the model of --scorer is its own ORM.",
        ),
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(
            metavar="openai:MODEL|PROVIDER:MODEL",
            rich_help_panel=_CRITICS,
            help="A chat model that judges whole solutions.",
        ),
    ] = None,
    strategy: Annotated[
        list[str] | None,
        typer.Option(
            rich_help_panel=_CRITICS,
            help="Repeatable: searches by --scorer with as many tokens (auto, beam, rebase, …).",
        ),
    ] = None,
    grader: Annotated[
        str | None, typer.Option(help="A set's rule, or sameness; default: the set's own.")
    ] = None,
    answer_judge: Annotated[
        str | None,
        typer.Option(
            metavar="openai:MODEL|PROVIDER:MODEL", help="A chat model that grades answers, too."
        ),
    ] = None,
    judge_base_url: Annotated[
        str | None, typer.Option(help="OpenAI-compatible server of the judges.")
    ] = None,
    baseline: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR",
            rich_help_panel=_OUT,
            help="Repeatable: folder of another policy's run on the set; it is shown alone.",
        ),
    ] = None,
    result_file: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SELECTOR",
            rich_help_panel=_OUT,
            help="Repeatable, as prm:mean or majority: VLMEvalKit's result file of what it takes.",
        ),
    ] = None,
    result_format: Annotated[
        ResultFormat, typer.Option(rich_help_panel=_OUT, help="Of result files.")
    ] = ResultFormat.tsv,
    raw: Annotated[
        bool,
        typer.Option(
            "--raw", rich_help_panel=_OUT, help="Result files hold whole solutions, for a judge."
        ),
    ] = False,
    concurrency: Annotated[int, typer.Option(min=1, help="Problems side by side.")] = 8,
    prices: PriceFile = None,
    max_failed: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, help="Share of failed calls that a result may have."),
    ] = 0.05,
) -> None:
    """Sample N solutions of every problem; compare what chooses among them, at every N up to it.

    Every candidate, score and grade is a line of a file in the folder: a stopped run is taken up
    again, calls that failed are made again, and --n may grow. A stage can run on another machine:
    the folder moves. Reports (--stage select) need no model.
    """
    from vprm_search.compare.report import new_figure
    from vprm_search.evaluate.candidates import FACTS, Sampling
    from vprm_search.evaluate.folder import RunFolder
    from vprm_search.evaluate.pooling import RecordedRun
    from vprm_search.evaluate.presets import PRESETS
    from vprm_search.evaluate.prompts import prompt_of
    from vprm_search.evaluate.stages import Stages

    given = {
        "n": n,
        "temperature": temperature,
        "top_p": top_p,
        "prompt": prompt,
        "max_tokens": max_tokens,
        "greedy_first": greedy_first,
    }
    known: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    settings = replace(PRESETS[preset.value], **known)
    if policy == options.TINY and (likelihood or settings.top_p < 1):
        raise ConfigError(
            "--likelihood and --top-p are not for the tiny policy, which draws from all tokens and "
            "does not tell their probabilities"
        )
    asked = set(stage or Stage)
    if Stage.select in asked:
        new_figure()  # fails without matplotlib: before hours of sampling, not after
    pictures = bool(asked & {Stage.generate, Stage.score, Stage.search})
    problems = read(file, images, set_name, limit=limit, check_images=pictures)
    priced = read_prices(prices) or Prices()
    stages = Stages(problems, RunFolder(out), settings.n, concurrency, priced, _watch(priced))
    if n is None and Stage.generate not in asked:
        stages.n = max(1, stages.largest())
    if scorer is None and policy == options.TINY:
        scorer = options.TINY
    sampling = Sampling(
        policy=policy if policy != options.TINY else f"tiny@{digest_of_weights('policy')}",
        prompt=prompt_of(settings.prompt),
        temperature=settings.temperature,
        top_p=settings.top_p,
        max_tokens=settings.max_tokens,
        greedy_first=settings.greedy_first,
        seed=seed,
        likelihood=likelihood,
    )
    tiled = tiles or settings.tiles(problems.name)
    models = Models(device, scorer_api_key, scorer_tokenizer, tiled, judge_base_url)

    def load_policy() -> Policy:
        return policy_of(policy, base_url, sampling)

    with stages.folder.locked():
        if Stage.generate in asked:
            asyncio.run(stages.generate(sampling, load_policy))
        if Stage.score in asked:
            asyncio.run(stages.score(models.critics(scorer, orm, judge, max_steps)))
        if Stage.search in asked and (strategy or stage):
            if not (scorer and strategy):
                raise ConfigError("--stage search needs --scorer and --strategy")
            stages.folder.settle(FACTS, sampling.facts())
            asyncio.run(
                stages.search(
                    strategy,
                    load_policy,
                    models.for_searches(scorer),
                    max_failed=max_failed,
                    report=_tell,
                )
            )
        if Stage.grade in asked:
            asyncio.run(stages.grade(models.graders(stages, grader, answer_judge)))
        if Stage.select in asked:
            run = RecordedRun(out, problems, grader=grader, prices=priced)
            for selector in result_file or ():
                _write_predictions(run, selector, stages.n, result_format.value, raw=raw)
            _select(stages, run, baseline or [])
    _complain(stages, max_failed)


# --- what is shown


def _write_predictions(
    run: RecordedRun, selector: str, n: int, form: Literal["tsv", "xlsx"], *, raw: bool
) -> None:
    """Write what a selector takes as VLMEvalKit has it, and say what its reader has to know."""
    from vprm_search.evaluate.result_file import predictions_of, write_result_file

    said = predictions_of(run.pools(n), run.problems, selector, n, raw=raw)
    policy = str(run.sampling["policy"]).partition("@")[0]
    model = re.sub(r"[^\w.+-]+", "-", f"{policy}-{selector}-N{n}")
    file = write_result_file(run.folder.path, run.problems, said, model=model, form=form)
    for line in (f"wrote {file.path}", *file.notes):
        _tell(printable(line))


def _select(stages: Stages, run: RecordedRun, others: Sequence[Path]) -> None:
    """Write the report of what is recorded."""
    from vprm_search.datasets.graders import GRADERS, grader_of
    from vprm_search.evaluate.critics import summarise, tabulate
    from vprm_search.evaluate.pooling import RecordedRun, run_section
    from vprm_search.evaluate.report import markdown, png
    from vprm_search.evaluate.strategies import searched

    table = tabulate(run.pools(stages.n), stages.n, name=stages.problems.name)
    baselines = {}
    for path in others:
        other = RecordedRun(path, stages.problems, grader=run.grader, prices=stages.prices)
        many = other.largest()
        baselines[path.name] = tabulate(other.pools(many), many, name=stages.problems.name)
    rule = grader_of(run.grader if run.grader in GRADERS else stages.problems.name)
    found = searched(run.folder.path, stages.problems, rule, stages.prices)
    ids = {place.id for place in table.places}
    here = [one for one in found if one.id in ids]
    summary = {**summarise(table, baselines=baselines, searches=here), **run.told(stages.n)}
    out, title, currency = stages.folder.path, stages.problems.path.name, summary["currency"]
    text = f"{markdown(summary, title=title, currency=currency)}\n{run_section(summary)}"
    console.write_file(out / "results.json", json.dumps(summary, indent=1))
    console.write_file(out / "results.md", text)
    console.write_file(out / "results.png", png(summary, title=title, currency=currency))
    console.OUT.file.write(printable(text, lines=True) + "\n")
    if left := summary["incomplete"]:
        raise SearchError(
            f"{left} problems have not all of {stages.n} candidates yet; the report is without them"
        )


class _Spent(ProgressColumn):
    """Candidates a second, tokens, and money."""

    def __init__(self, currency: str) -> None:
        super().__init__()
        self._currency = currency

    def render(self, task: Task) -> Text:
        """Return the column of a bar."""
        told = [f"{task.speed or 0.0:.3g}/s"]
        for name in ("generated", "scored"):
            if tokens := task.fields.get(name, 0):
                told.append(f"{tokens:,} tokens")
        if cost := task.fields.get("cost", 0.0):
            told.append(f"{cost:.4g} {self._currency}")
        if failed := task.fields.get("failed", 0):
            told.append(f"{failed} failed")
        return Text(", ".join(told))


def _tell(line: str) -> None:
    console.ERR.print(Text(line), soft_wrap=True)


def _watch(prices: Prices) -> Any:
    @contextmanager
    def watch(what: str, count: int) -> Iterator[Told]:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
                   _Spent(prices.currency), TimeRemainingColumn())  # fmt: skip
        with Progress(*columns, console=console.ERR, transient=True) as progress:
            task = progress.add_task(what, total=count)
            sums: dict[str, Any] = {"generated": 0, "scored": 0, "cost": 0.0, "failed": 0}

            def tell(done: Done) -> None:
                sums["generated"] += done.generated_tokens
                sums["scored"] += done.scored_tokens
                sums["cost"] += done.cost
                sums["failed"] += done.failed
                progress.update(task, advance=done.candidates, **sums)

            yield tell

    return watch


def _complain(stages: Stages, max_failed: float) -> None:
    """Raise `SearchError` if too many calls failed; a few are said."""
    told = [f"{failed} of {count} failed in {stage}"
            for stage, (failed, count) in stages.failures.items()]  # fmt: skip
    if not told:
        return
    text = f"{'; '.join(told)}; the same command makes those calls again"
    if any(failed > max_failed * count for failed, count in stages.failures.values()):
        raise SearchError(f"no result: {text}")
    console.ERR.print(text, soft_wrap=True, markup=False)
