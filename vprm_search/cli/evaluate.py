"""`vprm-search evaluate`: candidates of a problem set, their critics at every N, and the report.

Four stages over files that only grow: generate, score, grade, select. Each can run alone, and on
another machine.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from vprm_search.budget import Prices
from vprm_search.cli import console, options
from vprm_search.cli.compare import digest_of_weights
from vprm_search.cli.datasets import File, Set, read
from vprm_search.cli.evaluate_models import Models, policy_of
from vprm_search.cli.evaluate_output import (
    check_selectors,
    complain,
    tell,
    watch_with,
    write_predictions,
    write_report,
)
from vprm_search.cli.solve import PriceFile, PriceOptions
from vprm_search.errors import ConfigError, RecordError
from vprm_search.report.view import printable

if TYPE_CHECKING:
    from vprm_search.types import Policy


class Stage(StrEnum):
    """The stages, in their order."""

    generate = "generate"
    score = "score"
    search = "search"
    grade = "grade"
    select = "select"


_candidates = partial(typer.Option, rich_help_panel="Candidates")
_critics = partial(typer.Option, rich_help_panel="Critics")
_output = partial(typer.Option, rich_help_panel="Output")


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingOptions:
    """What takes the place of a preset's settings; None leaves its own."""

    n: Annotated[
        int | None,
        _candidates(
            "--n",
            min=1,
            max=1024,
            help="Candidates of a problem; default: 8, or as many as there are.",
        ),
    ] = None
    prompt: Annotated[
        str | None,
        _candidates(
            metavar="plain|en|en_v2|cot|FILE",
            help="What a question is put into; scorers see it, too. Default: plain.",
        ),
    ] = None
    temperature: Annotated[
        float | None, _candidates(min=0.0, help="Of the policy; default: 0.7.")
    ] = None
    top_p: Annotated[float | None, _candidates(min=0.0, max=1.0, help="Of the policy.")] = None
    max_tokens: Annotated[
        int | None, _candidates(min=1, help="Most tokens of a solution; default: 4096.")
    ] = None
    greedy_first: Annotated[
        bool | None,
        _candidates(
            "--greedy-first/--sampled-first",
            help="Candidate 0 at temperature 0, or drawn as the others (the default).",
        ),
    ] = None

    @property
    def known(self) -> dict[str, Any]:
        """Those that are given."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def _done(asked: set[Stage], out: Path) -> str:
    """Return a line that says which stages are done, and which comes next; `select` is none."""
    stages = list(Stage)
    last = max(map(stages.index, asked))
    following = next(one for one in stages[last + 1 :] if one is not Stage.search)
    done = ", ".join(one for one in stages if one in asked)
    return f"done: {done}; next: --stage {following}, in {out}"


class _RunsByDefault(TyperGroup):
    """Takes a file in the place of a command's name for `run FILE`."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Return the command that the arguments name, else `run` with all of them."""
        if args and args[0] not in self.commands:
            args = ["run", *args]
        found: tuple[str | None, Any, list[str]] = super().resolve_command(ctx, args)
        return found


evaluate = typer.Typer(
    cls=_RunsByDefault,
    help="Candidates of a problem set and what chooses among them: evaluate FILE --out DIR.",
    no_args_is_help=True,
)


@evaluate.command()
@options.takes_groups
def run(
    *,
    file: File,
    out: Annotated[Path, _output(help="Folder; what is in it is not made again.")],
    images: options.ImageRoot = None,
    set_name: Set = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Problems to take, the first.")] = None,
    stage: Annotated[
        list[Stage] | None, typer.Option(help="Repeatable; default: all that have what they need.")
    ] = None,
    policy: Annotated[
        str, _candidates(metavar=options.POLICIES, help="What writes solutions.")
    ] = "tiny",
    base_url: options.BaseUrl = None,
    preset: Annotated[
        Literal["default", "paper", "vlmevalkit"],
        _candidates(
            help="Settings of a published run; what is given besides takes the place of its own."
        ),
    ] = "default",
    given: SettingOptions,
    likelihood: Annotated[
        bool,
        _candidates(
            "--likelihood",
            help="Ask the policy for its tokens' probabilities: its own likelihood is a critic.",
        ),
    ] = False,
    seed: Annotated[int, _candidates(help="Makes all draws.")] = 0,
    scorer: Annotated[
        str | None,
        _critics(
            metavar=options.SCORERS,
            help="Process reward model; default: tiny for the tiny policy, else none.",
        ),
    ] = None,
    place: options.ScorerPlace,
    max_steps: Annotated[int, _critics(min=1, help="Steps a solution is merged into.")] = 12,
    tiles: Annotated[
        int | None,
        _critics(
            min=1,
            help="Most tiles of a picture for the reward models; default: their checkpoint's.",
        ),
    ] = None,
    orm: Annotated[
        str | None,
        _critics(
            metavar=options.SCORERS,
            help="Scores whole solutions; the model of --scorer is its own ORM.",
        ),
    ] = None,
    judge: Annotated[
        str | None,
        _critics(metavar=options.JUDGES, help="A chat model that judges whole solutions."),
    ] = None,
    strategy: Annotated[
        list[str] | None,
        _critics(
            help="Repeatable: searches by --scorer with as many tokens (auto, beam, rebase, …)."
        ),
    ] = None,
    grader: Annotated[
        str | None, typer.Option(help="A set's rule, or sameness; default: the set's own.")
    ] = None,
    answer_judge: Annotated[
        str | None,
        typer.Option(metavar=options.JUDGES, help="A chat model that grades answers, too."),
    ] = None,
    judge_base_url: Annotated[
        str | None, typer.Option(help="OpenAI-compatible server of the judges.")
    ] = None,
    baseline: Annotated[
        list[Path] | None,
        _output(
            metavar="DIR",
            help="Repeatable: folder of another policy's run on the set; it is shown alone.",
        ),
    ] = None,
    result_file: Annotated[
        list[str] | None,
        _output(
            metavar="SELECTOR",
            help="Repeatable, as prm:mean or majority: VLMEvalKit's result file of what it takes.",
        ),
    ] = None,
    result_format: Annotated[Literal["tsv", "xlsx"], _output(help="Of result files.")] = "tsv",
    raw: Annotated[
        bool, _output("--raw", help="Result files hold whole solutions, for a judge.")
    ] = False,
    concurrency: Annotated[int, typer.Option(min=1, help="Problems side by side.")] = 8,
    prices: PriceFile = None,
    max_failed: options.MaxFailed = 0.05,
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
    from vprm_search.evaluate.strategies import search_sizes, strategies_of
    from vprm_search.evaluate.tiles import Tiling
    from vprm_search.graph.blocking import run_blocking  # one loop: clients keep connections

    known = given.known
    settings = replace(PRESETS[preset], **known)
    if preset != "default":
        known = {name: getattr(settings, name) for name in asdict(given)}
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
    priced = PriceOptions(prices=prices).read() or Prices()
    stages = Stages(problems, RunFolder(out), settings.n, concurrency, priced, watch_with(priced))
    if given.n is None and Stage.generate not in asked:
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
    served = any((name or "").startswith(options.VLLM) for name in (scorer, orm))
    for stray, said in (
        (base_url and policy == options.TINY, "--base-url is for --policy openai:MODEL, not tiny"),
        (judge_base_url and not (judge or answer_judge), "--judge-base-url is for the judges"),
        (place.scorer_tokenizer and not served, "--scorer-tokenizer is for --scorer vllm:URL only"),
        (raw and not result_file, "--raw is for --result-file"),
    ):
        if stray:
            raise ConfigError(said)
    if tiles and served:
        raise ConfigError("--tiles is for reward models in this process; a server has its own")
    tiled = Tiling(tiles) if tiles else settings.tiling(problems.name)
    models = Models(place, tiled, judge_base_url)

    facts = sampling.facts()
    asked_for = [name for name in known if name in facts]
    asked_for += [name for name, value in (("seed", seed), ("likelihood", likelihood)) if value]
    if policy != options.TINY:
        asked_for.append("policy")

    def load_policy() -> Policy:
        return policy_of(policy, base_url, sampling)

    searching = Stage.search in asked and bool(strategy or stage)
    if searching:
        if not (scorer and strategy):
            raise ConfigError("--stage search needs --scorer and --strategy")
        strategies_of(strategy)
        search_sizes(stages.n)
    with stages.folder.locked():  # all that was named is looked at before anything is made
        if Stage.generate not in asked:
            stages.folder.check_some(FACTS, {name: facts[name] for name in asked_for})
        critics = models.critics(scorer, orm, judge, max_steps) if Stage.score in asked else []
        if stage and Stage.score in stage and not critics:
            raise ConfigError("--stage score needs --scorer, --orm or --judge")
        graders = models.graders(stages, grader, answer_judge) if Stage.grade in asked else []
        stages.check(critics, graders)
        if Stage.select in asked:
            check_selectors(stages, sampling, critics, result_file or ())
            for path in baseline or ():
                RecordedRun(path, problems, grader=grader)
        if Stage.generate in asked:
            run_blocking(stages.generate(sampling, load_policy))
        if Stage.score in asked:
            run_blocking(stages.score(critics))
        if searching and scorer and strategy:
            stages.folder.settle(FACTS, sampling.facts())
            run_blocking(
                stages.search(
                    strategy,
                    load_policy,
                    models.for_searches(scorer),
                    max_failed=max_failed,
                    report=tell,
                )
            )
        if Stage.grade in asked:
            run_blocking(stages.grade(graders))
        complain(stages, max_failed)
        if Stage.select in asked:
            recorded = RecordedRun(out, problems, grader=grader, prices=priced)
            for selector in result_file or ():
                write_predictions(recorded, selector, stages.n, result_format, raw=raw)
            if recorded.graded:
                write_report(stages, recorded, baseline or [])
            else:
                why = f"{file}: no problem has a published answer, so there is nothing to report"
                if not result_file:
                    raise RecordError(f"{why}; --result-file SELECTOR writes what is chosen")
                tell(why)
        else:
            tell(_done(asked, out))


@evaluate.command()
def diff(
    first: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")],
    second: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of another one.")],
    problems: Annotated[
        Path | None, typer.Option(help="The problem set; default: the file of the first run.")
    ] = None,
    images: options.ImageRoot = None,
    select: Annotated[
        list[str] | None,
        typer.Option(metavar="SELECTOR", help="What both choose by, or each; default: prm:mean."),
    ] = None,
    n: Annotated[
        int | None, typer.Option("--n", min=1, help="Among how many; default: all there are.")
    ] = None,
    grader: Annotated[str | None, typer.Option(help="Whose grades count.")] = None,
    html: Annotated[
        Path | None, typer.Option(help="Write the problems with their pictures as a page.")
    ] = None,
    json: options.AsJson = False,
) -> None:
    """List the problems on which two runs differ, or one run by two selectors."""
    from vprm_search.evaluate.differences import compared, markdown, page
    from vprm_search.evaluate.pooling import RecordedRun, set_of_run

    console.check_place(html)
    selectors = select or ["prm:mean"]
    if len(selectors) > 2:
        raise ConfigError("--select may be given twice: once for each run")
    problem_set = set_of_run(first, problems, images)
    runs = [RecordedRun(path, problem_set, grader=grader) for path in (first, second)]
    sizes = [n or one.largest() for one in runs]
    found = compared(
        runs[0].pools(sizes[0]),
        runs[1].pools(sizes[1]),
        selectors=(selectors[0], selectors[-1]),
        sizes=(sizes[0], sizes[1]),
    )
    names = (f"{first.name}, {selectors[0]}", f"{second.name}, {selectors[-1]}")
    if html is not None:
        console.write_file(html, page(found, problem_set, names))
    if json:
        console.print_json(found.to_json())
    else:
        console.OUT.file.write(printable(markdown(found, names), lines=True) + "\n")
