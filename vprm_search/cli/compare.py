"""`vprm-search compare`: which strategy pays, at equal generated tokens."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from vprm_search.cli import console, options
from vprm_search.errors import ConfigError, MissingDependencyError
from vprm_search.report.printable import printable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vprm_search.compare.comparison import Comparison
    from vprm_search.compare.problems import World

_WHAT, _ON, _OUT = "What is compared", "On what", "Output"
_FAST_PROBLEMS, _FAST_SIZES = 60, (4, 16)


def compare(
    world: Annotated[
        str, typer.Option(metavar="tiny|synthetic", rich_help_panel=_ON, help="A built-in world.")
    ] = "tiny",
    problems: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBER|FILE.jsonl",
            rich_help_panel=_ON,
            help="How many problems of the world, or a file of your own: question, image, answer.",
        ),
    ] = None,
    first: Annotated[
        int, typer.Option(min=0, rich_help_panel=_ON, help="tiny: first problem of each family.")
    ] = 0,
    split: Annotated[
        str, typer.Option(rich_help_panel=_ON, help="tiny: train, validation or test.")
    ] = "validation",
    difficulty: Annotated[
        str, typer.Option(rich_help_panel=_ON, help="synthetic: easy, medium or hard.")
    ] = "hard",
    policy: Annotated[
        str,
        typer.Option(metavar="tiny|openai:MODEL|PROVIDER:MODEL", rich_help_panel=_ON),
    ] = "tiny",
    base_url: Annotated[
        str | None, typer.Option(rich_help_panel=_ON, help="OpenAI-compatible server.")
    ] = None,
    temperature: Annotated[float, typer.Option(min=0.0, help="Of the policy.")] = 0.7,
    scorer: options.Scorer = "tiny",
    device: options.Device = "auto",
    strategy: Annotated[
        list[str] | None, typer.Option(rich_help_panel=_WHAT, help="Repeatable; default: all.")
    ] = None,
    selector: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[:AGGREGATION]",
            rich_help_panel=_WHAT,
            help="Repeatable, as weighted-vote:product; default: some for each strategy.",
        ),
    ] = None,
    n: Annotated[
        list[int] | None, typer.Option("--n", rich_help_panel=_WHAT, help="Repeatable: sizes.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Makes all draws.")] = 0,
    fast: Annotated[
        bool,
        typer.Option(help=f"{_FAST_PROBLEMS} problems, N = 4 and 16: minutes, no conclusions."),
    ] = False,
    batch: Annotated[int, typer.Option(min=1, help="Problems that advance together.")] = 50,
    jobs: Annotated[int, typer.Option(min=1, help="Processes, one thread each.")] = 1,
    out: Annotated[
        Path, typer.Option(rich_help_panel=_OUT, help="Folder; what is measured there stays.")
    ] = Path("comparison"),
    readme: Annotated[
        Path | None,
        typer.Option(rich_help_panel=_OUT, help="File whose strategies section gets the tables."),
    ] = None,
) -> None:
    """Compare strategies, selectors and sizes at equal generated tokens.

    Best-of-N sets the budget: what its N samples cost on a problem is what every other strategy
    of that size may generate on it. Writes tables (Markdown), results (JSON) and plots (PNG) into
    the folder; a stopped run is taken up again. `--n` and `--strategy` may be added to later.
    """
    _need("numpy")
    from vprm_search.compare.comparison import Comparison

    count = None if problems is None or not problems.isdecimal() else int(problems)
    file = Path(problems) if problems is not None and count is None else None
    if count is None and fast:
        count = _FAST_PROBLEMS
    sizes = tuple(n) if n else (_FAST_SIZES if fast else Comparison().sizes)
    comparison = Comparison(
        tuple(strategy) if strategy else Comparison().entrants,
        sizes,
        tuple(selector or ()),
        seed,
        batch,
    )
    if file is not None:
        ground = _file_world(file, count, policy, base_url, temperature, scorer, device)
    else:
        built_in = {
            "problems": count or 500,
            "first": first,
            "split": split,
            "difficulty": difficulty,
            "temperature": temperature,
        }
        if (policy, scorer, base_url) != ("tiny", "tiny", None):
            raise ConfigError("--policy and --scorer are for --problems FILE.jsonl")
        ground = _built_in_world(world, built_in)
    _run(comparison, ground, out, jobs, readme)


def _file_world(
    file: Path,
    limit: int | None,
    policy: str,
    base_url: str | None,
    temperature: float,
    scorer: str,
    device: str,
) -> World:
    from vprm_search.cli.compare_worlds import FileProblems

    made_by = {"name": policy, "base_url": base_url, "temperature": temperature}
    return FileProblems.read(file, made_by, {"name": scorer, "device": device}, limit)


def _built_in_world(name: str, given: Mapping[str, Any]) -> World:
    if name == "synthetic":
        from vprm_search.compare.synthetic import WORLDS, SyntheticProblems

        if given["difficulty"] not in WORLDS:
            raise ConfigError(f"--difficulty {given['difficulty']!r}: one of {', '.join(WORLDS)}")
        return SyntheticProblems(WORLDS[given["difficulty"]], given["problems"])
    if name != "tiny":
        raise ConfigError(
            f"--world {name!r} is not known; use tiny, synthetic, or --problems FILE.jsonl"
        )
    _need("torch")
    from vprm_search.cli.compare_worlds import TinyProblems
    from vprm_search.tiny.world import SPLITS

    if given["split"] not in SPLITS:
        raise ConfigError(f"--split {given['split']!r}: one of {', '.join(SPLITS)}")
    return TinyProblems(
        problems=given["problems"],
        first_index=given["first"],
        split=given["split"],
        temperature=given["temperature"],
    )


def _run(comparison: Comparison, world: World, out: Path, jobs: int, readme: Path | None) -> None:
    from vprm_search.compare.comparison import run_comparison
    from vprm_search.compare.plots import comparison_png, new_figure
    from vprm_search.compare.summary import read_cells, summarise
    from vprm_search.compare.table import fill_section, full_report, readme_section

    new_figure()  # fails without matplotlib: before hours of measuring, not after
    if readme is not None:
        _check_marks(readme)
    run_comparison(comparison, world, out, jobs=jobs, report=_tell)
    summary = {**summarise(read_cells(out)), "comparison": comparison.identity(world)}
    text = full_report(summary)
    console.write_file(out / "comparison-results.json", json.dumps(summary, indent=1))
    console.write_file(out / "comparison.md", text)
    console.write_file(out / "comparison.png", comparison_png(summary))
    if readme is not None:
        fill_section(readme, readme_section(summary), marks=("strategies",))
    console.OUT.file.write(printable(text, lines=True) + "\n")


def _check_marks(page: Path) -> None:
    try:
        text = page.read_text()
    except OSError as error:
        raise ConfigError(f"{page} cannot be read: {error.strerror}") from error
    if not all(f"<!-- strategies:{end} -->" in text for end in ("begin", "end")):
        raise ConfigError(
            f"{page} lacks the marks <!-- strategies:begin --> and <!-- strategies:end -->; put "
            "them where the tables belong"
        )


def _need(package: str) -> None:
    try:
        importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise MissingDependencyError(package, "local") from error


def _tell(line: str) -> None:
    console.ERR.print(Text(line), soft_wrap=True)
