"""`vprm-search compare`: which strategy pays, at equal generated tokens.

It is measured on the tiny world, on a synthetic one, or on a problem set in a file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vprm_search.cli import options
from vprm_search.cli.evaluate_output import tell, write_results
from vprm_search.compare.worlds import LoadedWorld, Task
from vprm_search.errors import ConfigError, RecordError, SearchError
from vprm_search.types import Problem

if TYPE_CHECKING:
    from vprm_search.compare.worlds import World
    from vprm_search.evaluate.searches import Comparison
    from vprm_search.evaluate.strategies import SetProblems
    from vprm_search.types import StepScorer

_WHAT, _ON, _OUT = "What is compared", "On what", "Output"
_FAST_PROBLEMS, _FAST_SIZES = 60, (4, 16)


def compare(
    world: Annotated[
        str, typer.Option(metavar="tiny|synthetic", rich_help_panel=_ON, help="A built-in world.")
    ] = "tiny",
    problems: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBER|FILE",
            rich_help_panel=_ON,
            help="How many problems of the world, or a problem set: TSV, JSONL, JSON, parquet.",
        ),
    ] = None,
    images: options.ImageRoot = None,
    first: Annotated[
        int, typer.Option(min=0, rich_help_panel=_ON, help="tiny: first problem of each family.")
    ] = 0,
    split: Annotated[
        str, typer.Option(rich_help_panel=_ON, help="tiny: train, validation or test.")
    ] = "validation",
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
    batch: Annotated[
        int,
        typer.Option(min=1, help="Problems that advance together; a kill loses no others."),
    ] = 50,
    jobs: Annotated[int, typer.Option(min=1, help="Processes, one thread each.")] = 1,
    max_failed: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, help="Share of failed calls that a result may have."),
    ] = 0.05,
    out: Annotated[
        Path, typer.Option(rich_help_panel=_OUT, help="Folder; what is measured there stays.")
    ] = Path("comparison"),
    page: Annotated[
        Path | None,
        typer.Option(rich_help_panel=_OUT, help="File whose strategies section gets the tables."),
    ] = None,
) -> None:
    """Compare strategies, selectors and sizes at equal generated tokens.

    Best-of-N sets the budget: what its N samples cost on a problem is what every other strategy
    of that size may generate on it. Writes tables (Markdown), results (JSON) and plots (PNG) into
    the folder; a stopped run is taken up again. `--n`, `--strategy` and `--selector` may be added
    to later. Exits with 1 when so many calls failed that something is no result (`--max-failed`);
    the same command then makes those searches again.
    """
    options.need("numpy", "local")
    from vprm_search.evaluate.searches import Comparison

    count = None if problems is None or not problems.isdecimal() else int(problems)
    file = Path(problems) if problems is not None and count is None else None
    if count == 0:
        raise ConfigError("--problems 0: there is nothing to compare; give at least 1")
    if count is None and fast:
        count = _FAST_PROBLEMS
    sizes = tuple(n) if n else (_FAST_SIZES if fast else Comparison().sizes)
    comparison = Comparison(
        tuple(strategy) if strategy else Comparison().entrants,
        sizes,
        tuple(selector or ()),
        seed,
        batch,
        max_failed=max_failed,
    )
    problem_set: World
    if file is not None:
        problem_set = file_world(
            file,
            count,
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
        )
    else:
        built_in = {
            "problems": count or 500,
            "first": first,
            "split": split,
            "difficulty": difficulty,
            "temperature": temperature,
        }
        if (policy, scorer, base_url) != ("tiny", "tiny", None):
            raise ConfigError("--policy and --scorer are for --problems FILE")
        problem_set = built_in_world(world, built_in)
    _run(comparison, problem_set, out, jobs, page)


def file_world(
    file: Path,
    limit: int | None,
    *,
    images: Path | None,
    policy: Mapping[str, Any],
    scorer: Mapping[str, Any],
    tokenizer: Path | None,
    key: str | None,
    labelled: bool = True,
) -> SetProblems:
    """Return the problems of a file, with the models that the options name.

    `policy` and `scorer` are arguments of `options.load_policy` and `options.scorer_maker`.

    Raises `RecordError` for a bad row, and where `labelled` for one without the right answer.
    """
    from vprm_search.datasets.problem_set import read_problem_set
    from vprm_search.evaluate.strategies import SetProblems

    problems = read_problem_set(file, image_root=images, limit=limit)
    for item in problems if labelled else ():
        if item.answer_type == "none":
            raise RecordError(f"{file}, row {item.row}, column answer: there is no right answer")
    if tokenizer is not None:
        scorer = {**scorer, "tokenizer": str(tokenizer)}
    return SetProblems(
        problems,
        partial(options.load_policy, **policy),
        partial(_scorers, scorer, key),
        {"policy": policy, "scorer": scorer},
    )


def _scorers(scorer: Mapping[str, Any], key: str | None) -> Callable[[], StepScorer]:
    return options.scorer_maker(**scorer, api_key=key)


def built_in_world(name: str, given: Mapping[str, Any]) -> World:
    """Return the tiny or a synthetic world. Raises `ConfigError` for another name or option."""
    if name == "synthetic":
        from vprm_search.compare.worlds import WORLDS, SyntheticProblems

        if given["difficulty"] not in WORLDS:
            raise ConfigError(f"--difficulty {given['difficulty']!r}: one of {', '.join(WORLDS)}")
        return SyntheticProblems(WORLDS[given["difficulty"]], given["problems"])
    if name != "tiny":
        raise ConfigError(f"--world {name!r} is not known; use tiny, synthetic, or --problems FILE")
    options.need("torch", "local")
    from vprm_search.tiny.world import SPLITS

    if given["split"] not in SPLITS:
        raise ConfigError(f"--split {given['split']!r}: one of {', '.join(SPLITS)}")
    return TinyProblems(
        problems=given["problems"],
        first_index=given["first"],
        split=given["split"],
        temperature=given["temperature"],
    )


def _run(comparison: Comparison, world: World, out: Path, jobs: int, page: Path | None) -> None:
    from vprm_search.compare.report import fill_section, new_figure
    from vprm_search.evaluate.folder import MODELS, SEARCHES, RunFolder
    from vprm_search.evaluate.report import png
    from vprm_search.evaluate.search_report import page_section, section
    from vprm_search.evaluate.search_summary import read_cells, summarise
    from vprm_search.evaluate.searches import run_comparison

    new_figure()  # fails without matplotlib: before hours of measuring, not after
    if page is not None:
        _check_marks(page)
    stopped: SearchError | None = None
    try:
        with RunFolder(out).locked():
            run_comparison(comparison, world, out, jobs=jobs, report=tell)
    except SearchError as error:
        stopped = error  # what is there is shown first
    try:
        cells = read_cells(out, comparison.choices, world.size)
    except RecordError as error:
        raise (stopped or error) from None
    there = {(cell.name, cell.size) for cell in cells}
    missing = [f"{name}@{size}" for name, size in comparison.cells if (name, size) not in there]
    found = {**summarise(cells, comparison.max_failed), "not_measured": missing}
    folder = RunFolder(out)
    summary = {
        "measure": "accuracy",
        "problems": found["problems"],
        "rows": [],
        "baselines": [],
        "searches": found,
        "comparison": {**(folder.facts(SEARCHES) or {}), "models": folder.facts(MODELS)},
    }
    write_results(out, summary, "\n\n".join(section(found)), png(summary))
    if stopped is not None:
        raise stopped
    if bad := [f"{cell['name']}@{cell['size']}" for cell in found["no_results"]] + missing:
        raise SearchError(
            f"{len(bad)} of {len(comparison.cells)} cells are no results ({', '.join(bad)}), since "
            "calls failed; the same command makes those searches again"
        )
    if page is not None:
        fill_section(page, page_section(found), marks=("strategies",))


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


# --- what it is measured on

_KEPT_BYTES = 1 << 30  # of the searches that advance together; nothing is resumed here


@dataclass(frozen=True, slots=True)
class TinyProblems:
    """Rendered problems of the tiny world and the packaged models; families take turns."""

    problems: int = 500
    first_index: int = 0
    split: str = "validation"
    families: tuple[str, ...] = ("tiles", "tiles-long", "bars")
    temperature: float = 0.7

    @property
    def size(self) -> int:
        """The number of problems."""
        return self.problems

    def identity(self) -> dict[str, Any]:
        """Return what makes the problems, of which more may be taken, and digests of weights."""
        weights = {name: digest_of_weights(name) for name in ("policy", "prm")}
        settings = {**asdict(self), "families": list(self.families)}
        del settings["problems"]
        return {"world": "tiny", **settings, **weights}

    def load(self, start: int, stop: int) -> LoadedWorld:
        """Draw and render the problems; load the models."""
        from vprm_search.images.normalise import normalise_image
        from vprm_search.scoring.engine.checkpoint import load_checkpoint
        from vprm_search.scoring.transformers_scorer import TransformersScorer
        from vprm_search.tiny.policy import TinyPolicy
        from vprm_search.tiny.weights import weights_path
        from vprm_search.tiny.world import generate, parse_answer, render

        tasks = []
        for number in range(start, stop):
            turn, family = divmod(number, len(self.families))
            problem = generate(self.families[family], self.split, self.first_index + turn)
            image = normalise_image(render(problem))
            asked = Problem(problem.question, (image.digest,))
            tasks.append(Task(asked, (image,), problem.answer))
        policy = TinyPolicy.from_pretrained(weights_path("policy"), temperature=self.temperature)
        prm = load_checkpoint(weights_path("prm"), device="cpu")

        def new_scorer() -> TransformersScorer:
            return TransformersScorer(prm, prefix_cache_bytes=_KEPT_BYTES)

        return LoadedWorld(tasks, policy, new_scorer, parse_answer)


def digest_of_weights(name: str) -> str:
    """Return what tells the weights of a packaged model from others."""
    from vprm_search.tiny.weights import weights_path

    data = (weights_path(name) / "model.safetensors").read_bytes()
    return hashlib.sha256(data).hexdigest()[:16]
