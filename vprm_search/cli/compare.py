"""`vprm-search compare`: which strategy pays, at equal generated tokens.

It is measured on the tiny world, on a synthetic one, or on a problem set in a file.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vprm_search.cli import options
from vprm_search.cli.evaluate_output import tell, write_results
from vprm_search.compare.worlds import LoadedWorld, Task
from vprm_search.errors import ConfigError, RecordError, SearchError, need
from vprm_search.types import Problem

if TYPE_CHECKING:
    from vprm_search.compare.worlds import World
    from vprm_search.evaluate.searches import Comparison
    from vprm_search.evaluate.strategies import SetProblems

_what = partial(typer.Option, rich_help_panel="What is compared")
on_what = partial(typer.Option, rich_help_panel="On what")
_output = partial(typer.Option, rich_help_panel="Output")
_FAST_PROBLEMS, _FAST_SIZES = 60, (4, 16)
_FILE, _TINY, _SYNTHETIC = "--problems FILE", "--world tiny", "--world synthetic"
_ONLY_FOR = {  # options of models that are not here: for a file's problems
    "world": "--problems NUMBER",
    "difficulty": _SYNTHETIC,
    "first": _TINY,
    "split": _TINY,
    "temperature": f"{_FILE} and {_TINY}",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldOptions:
    """What problems there are: a built-in world's, or a file's."""

    world: Annotated[str, on_what(metavar="tiny|synthetic", help="A built-in world.")] = "tiny"
    problems: Annotated[
        str | None,
        on_what(
            metavar="NUMBER|FILE",
            help="How many problems of the world, or a problem set: TSV, JSONL, JSON, parquet.",
        ),
    ] = None
    images: options.ImageRoot = None
    difficulty: Annotated[str, on_what(help="synthetic: easy, medium or hard.")] = "hard"

    def load(
        self,
        policy: options.PolicyOptions,
        scorer: options.ScorerOptions,
        *,
        count: int,
        limit: int | None,
        labelled: bool = True,
        first: int = 0,
        split: str = "validation",
    ) -> World:
        """Return the world.

        Args:
            policy: of a file's problems; the built-in worlds have their own, and its temperature.
            scorer: as `policy`.
            count: problems of a built-in world, if none are named.
            limit: most problems of a file, None for all.
            labelled: whether every problem of a file must have its right answer.
            first: first problem of each family of the tiny world.
            split: of the tiny world.

        Raises:
            ConfigError: a name is not known, or an option is for another world.
            RecordError: a bad row of the file.
        """
        told = {**_told(self), **_told(policy), **_told(scorer)}
        told |= {"first": first > 0, "split": split != "validation"}
        if self.problems is not None and not self.problems.isdecimal():
            _check_told(told, _FILE)
            file = Path(self.problems)
            return file_world(file, limit, self.images, policy, scorer, labelled=labelled)
        count = count if self.problems is None else int(self.problems)
        if not count:
            raise ConfigError("--problems 0: there is nothing to compare; give at least 1")
        if self.world not in ("tiny", "synthetic"):
            raise ConfigError(
                f"--world {self.world!r} is not known; use tiny, synthetic, or --problems FILE"
            )
        _check_told({**told, "world": False}, f"--world {self.world}")
        if self.world == "synthetic":
            from vprm_search.compare.worlds import WORLDS, SyntheticProblems

            if self.difficulty not in WORLDS:
                names = ", ".join(WORLDS)
                raise ConfigError(f"--difficulty {self.difficulty!r}: one of {names}")
            return SyntheticProblems(WORLDS[self.difficulty], count)
        need("torch", "local")
        from vprm_search.tiny.world import SPLITS

        if split not in SPLITS:
            raise ConfigError(f"--split {split!r}: one of {', '.join(SPLITS)}")
        return TinyProblems(count, first, split, temperature=policy.temperature)


def _told(group: Any) -> dict[str, bool]:
    """Return which options of a group are not what they are by default."""
    unlike = {one.name: getattr(group, one.name) != one.default for one in fields(group)}
    for name in ("problems", "scorer_api_key"):  # for every world; from the environment
        unlike.pop(name, None)
    return unlike


def _check_told(told: dict[str, bool], kind: str) -> None:
    """Raise `ConfigError` for the first option that was given and is for other problems."""
    for name in (name for name, given in told.items() if given):
        place = _ONLY_FOR.get(name, _FILE)
        if kind not in place:
            raise ConfigError(f"--{name.replace('_', '-')} is for {place}, and this is {kind}")


def compare(
    *,
    on: WorldOptions,
    first: Annotated[int, on_what(min=0, help="tiny: first problem of each family.")] = 0,
    split: Annotated[str, on_what(help="tiny: train, validation or test.")] = "validation",
    policy: options.PolicyOptions,
    scorer: options.ScorerOptions,
    strategy: Annotated[list[str] | None, _what(help="Repeatable; default: all.")] = None,
    selector: Annotated[
        list[str] | None,
        _what(
            metavar="NAME[:AGGREGATION]",
            help="Repeatable, as weighted-vote:product; default: some for each strategy.",
        ),
    ] = None,
    n: Annotated[list[int] | None, _what("--n", help="Repeatable: sizes.")] = None,
    seed: options.Seed = 0,
    fast: Annotated[
        bool,
        typer.Option(help=f"{_FAST_PROBLEMS} problems, N = 4 and 16: minutes, no conclusions."),
    ] = False,
    batch: Annotated[
        int,
        typer.Option(min=1, help="Problems that advance together; a kill loses no others."),
    ] = 50,
    jobs: Annotated[int, typer.Option(min=1, help="Processes, one thread each.")] = 1,
    max_failed: options.MaxFailed = 0.05,
    out: Annotated[Path, _output(help="Folder; what is measured there stays.")] = Path(
        "comparison"
    ),
    page: Annotated[
        Path | None,
        _output(help="File whose strategies section gets the tables."),
    ] = None,
) -> None:
    """Compare strategies, selectors and sizes at equal generated tokens.

    Best-of-N sets the budget: what its N samples cost on a problem is what every other strategy
    of that size may generate on it. Writes tables (Markdown), results (JSON) and plots (PNG) into
    the folder; a stopped run is taken up again. `--n`, `--strategy` and `--selector` may be added
    to later. Exits with 1 when so many calls failed that something is no result (`--max-failed`);
    the same command then makes those searches again.
    """
    need("numpy", "local")
    from vprm_search.evaluate.searches import Comparison

    sizes = tuple(n) if n else (_FAST_SIZES if fast else Comparison().sizes)
    comparison = Comparison(
        tuple(strategy) if strategy else Comparison().entrants,
        sizes,
        tuple(selector or ()),
        seed,
        batch,
        max_failed=max_failed,
    )
    problem_set = on.load(
        policy,
        scorer,
        count=_FAST_PROBLEMS if fast else 500,
        limit=_FAST_PROBLEMS if fast else None,
        first=first,
        split=split,
    )
    _run(comparison, problem_set, out, jobs, page)


def file_world(
    file: Path,
    limit: int | None,
    images: Path | None,
    policy: options.PolicyOptions,
    scorer: options.ScorerOptions,
    *,
    labelled: bool = True,
) -> SetProblems:
    """Return the problems of a file, with the models that the options name.

    Raises `RecordError` for a bad row, and where `labelled` for one without the right answer.
    """
    from vprm_search.datasets.problem_set import read_problem_set
    from vprm_search.evaluate.strategies import SetProblems

    problems = read_problem_set(file, image_root=images, limit=limit)
    for item in problems if labelled else ():
        if item.answer_type == "none":
            raise RecordError(f"{file}, row {item.row}, column answer: there is no right answer")
    named: dict[str, Any] = {"name": scorer.scorer, "device": scorer.device}
    if scorer.scorer_tokenizer is not None:
        named["tokenizer"] = str(scorer.scorer_tokenizer)
    return SetProblems(
        problems,
        partial(options.load_policy, **policy.arguments),
        partial(options.scorer_maker, **named, api_key=scorer.scorer_api_key),
        {"policy": policy.arguments, "scorer": named},
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
