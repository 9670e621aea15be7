"""`vprm-search compare`: which strategy pays, at equal generated tokens.

It is measured on the tiny world, on a synthetic one, or on problems in a JSONL file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import SecretStr
from rich.text import Text

from vprm_search.answers import with_choices
from vprm_search.cli import console, options
from vprm_search.compare.worlds import LoadedWorld, Task
from vprm_search.errors import ConfigError, RecordError, SearchError
from vprm_search.report.view import printable
from vprm_search.steps import normalise_text
from vprm_search.types import Problem

if TYPE_CHECKING:
    from vprm_search.compare.comparison import Comparison
    from vprm_search.compare.worlds import World
    from vprm_search.types import ImageData

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
    readme: Annotated[
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
    from vprm_search.compare.comparison import Comparison

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
            raise ConfigError("--policy and --scorer are for --problems FILE.jsonl")
        problem_set = built_in_world(world, built_in)
    _run(comparison, problem_set, out, jobs, readme)


def file_world(
    file: Path,
    limit: int | None,
    *,
    policy: Mapping[str, Any],
    scorer: Mapping[str, Any],
    tokenizer: Path | None,
    key: str | None,
    labelled: bool = True,
) -> FileProblems:
    """Return the problems of a file; `policy` and `scorer` as in `FileProblems.read`."""
    if tokenizer is not None:
        scorer = {**scorer, "tokenizer": str(tokenizer)}
    secret = None if key is None else SecretStr(key)
    return FileProblems.read(file, policy, scorer, limit, scorer_key=secret, labelled=labelled)


def built_in_world(name: str, given: Mapping[str, Any]) -> World:
    """Return the tiny or a synthetic world. Raises `ConfigError` for another name or option."""
    if name == "synthetic":
        from vprm_search.compare.worlds import WORLDS, SyntheticProblems

        if given["difficulty"] not in WORLDS:
            raise ConfigError(f"--difficulty {given['difficulty']!r}: one of {', '.join(WORLDS)}")
        return SyntheticProblems(WORLDS[given["difficulty"]], given["problems"])
    if name != "tiny":
        raise ConfigError(
            f"--world {name!r} is not known; use tiny, synthetic, or --problems FILE.jsonl"
        )
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


def _run(comparison: Comparison, world: World, out: Path, jobs: int, readme: Path | None) -> None:
    from vprm_search.compare.comparison import run_comparison
    from vprm_search.compare.report import fill_section, new_figure, readme_section

    new_figure()  # fails without matplotlib: before hours of measuring, not after
    if readme is not None:
        _check_marks(readme)
    stopped: SearchError | None = None
    try:
        run_comparison(comparison, world, out, jobs=jobs, report=_tell)
    except SearchError as error:
        stopped = error  # what is there is shown first
    try:
        summary = _summary(comparison, world, out)
    except RecordError as error:
        raise (stopped or error) from None
    _write(summary, out)
    if stopped is not None:
        raise stopped
    bad = [f"{cell['name']}@{cell['size']}" for cell in summary["no_results"]]
    if bad := bad + summary["not_measured"]:
        raise SearchError(
            f"{len(bad)} of {len(comparison.cells)} cells are no results ({', '.join(bad)}), since "
            "calls failed; the same command makes those searches again"
        )
    if readme is not None:
        fill_section(readme, readme_section(summary), marks=("strategies",))


def _summary(comparison: Comparison, world: World, out: Path) -> dict[str, Any]:
    """Return what is to be told, with the cells that were asked for and are not there."""
    from vprm_search.compare.summary import read_cells, summarise

    cells = read_cells(out, comparison.choices, world.size)
    there = {(cell.name, cell.size) for cell in cells}
    return {
        **summarise(cells, comparison.max_failed),
        "not_measured": [f"{cell[0]}@{cell[1]}" for cell in comparison.cells if cell not in there],
        "comparison": json.loads((out / "comparison.json").read_text()),
    }


def _write(summary: Mapping[str, Any], out: Path) -> None:
    from vprm_search.compare.report import comparison_png, full_report

    text = full_report(summary)
    console.write_file(out / "comparison-results.json", json.dumps(summary, indent=1))
    console.write_file(out / "comparison.md", text)
    console.write_file(out / "comparison.png", comparison_png(summary))
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


def _tell(line: str) -> None:
    console.ERR.print(Text(line), soft_wrap=True)


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
        """Return the problems and the digests of the weights."""
        from vprm_search.tiny.weights import weights_path

        weights = {name: _digest(weights_path(name)) for name in ("policy", "prm")}
        return {"world": "tiny", **asdict(self), "families": list(self.families), **weights}

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


def _digest(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class FileProblems:
    """Problems of a JSONL file with a policy and a scorer of one's own.

    A line is `{"question": …, "answer": …, "image": FILE or "images": [FILE, …]}`; a relative
    image path is taken from the file's folder. `"choices": [TEXT, …]` are those of a
    multiple-choice question; they are written below it, unless it holds them.
    """

    path: Path
    lines: tuple[str, ...]
    policy: Mapping[str, Any]
    scorer: Mapping[str, Any]
    scorer_key: SecretStr | None = field(default=None, repr=False)
    labelled: bool = True

    @classmethod
    def read(
        cls,
        path: Path,
        policy: Mapping[str, Any],
        scorer: Mapping[str, Any],
        limit: int | None = None,
        scorer_key: SecretStr | None = None,
        labelled: bool = True,
    ) -> FileProblems:
        """Read the file and check every line. Raises `RecordError` naming the first bad one.

        Args:
            path: the file.
            policy: arguments of `options.load_policy`.
            scorer: arguments of `options.load_scorer`.
            limit: problems to take, the first ones; None takes all.
            scorer_key: key of the server behind the scorer; it is written nowhere.
            labelled: whether every line must hold the right answer.
        """
        try:
            lines = [line for line in path.read_text("utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise RecordError(f"{path}: cannot be read as text ({error})") from error
        for number, line in enumerate(lines, start=1):
            _parsed(line, f"{path}, problem {number}", labelled)
        if not lines:
            raise RecordError(f"{path} holds no problems; give one JSON object per line")
        return cls(path, tuple(lines[:limit]), policy, scorer, scorer_key, labelled)

    @property
    def size(self) -> int:
        """The number of problems."""
        return len(self.lines)

    def identity(self) -> dict[str, Any]:
        """Return digests of the problems and of their images' bytes, and what names the models.

        Raises `ImageError` for an image that is not there.
        """
        text, images = hashlib.sha256("\n".join(self.lines).encode()), hashlib.sha256()
        for number, line in enumerate(self.lines, start=1):
            for data in self._images(self._parts(line, f"{self.path}, problem {number}")[2]):
                images.update(hashlib.sha256(data).digest())
        return {
            "world": "file",
            "problems": text.hexdigest(),
            "images": images.hexdigest(),
            "policy": self.policy,
            "scorer": self.scorer,
        }

    def load(self, start: int, stop: int) -> LoadedWorld:
        """Read the images and load the models."""
        places = enumerate(self.lines[start:stop], start=start + 1)
        tasks = [self._task(line, f"{self.path}, problem {number}") for number, line in places]
        key = None if self.scorer_key is None else self.scorer_key.get_secret_value()
        new_scorer = options.scorer_maker(**self.scorer, api_key=key)
        models = {"scorer": getattr(new_scorer(), "identity", "")}
        return LoadedWorld(tasks, options.load_policy(**self.policy), new_scorer, models=models)

    def _task(self, line: str, where: str) -> Task:
        from vprm_search.images.normalise import normalise_image

        question, answer, names, choices = self._parts(line, where)
        images: tuple[ImageData, ...] = tuple(map(normalise_image, self._images(names)))
        digests = tuple(image.digest for image in images)
        choices = tuple(map(normalise_text, choices))
        text = with_choices(normalise_text(question).strip(), choices)
        return Task(Problem(text, digests, choices=choices), images, answer)

    def _parts(self, line: str, where: str) -> tuple[str, str, list[str], tuple[str, ...]]:
        return _parsed(line, where, self.labelled)

    def _images(self, names: Sequence[str]) -> Iterator[bytes]:
        """Yield the bytes of images. Raises `ImageError`; nothing is fetched."""
        from vprm_search.images.normalise import check_is_path, read_image_file

        for name in names:
            check_is_path(name)  # a URL is refused as such, not as a file that is missing
            yield read_image_file(str(self.path.parent / name), max_bytes=100_000_000)


def _parsed(
    line: str, where: str, labelled: bool = True
) -> tuple[str, str, list[str], tuple[str, ...]]:
    """Return question, answer ("" if none is needed), image paths, choices.

    Raises `RecordError`.
    """
    try:
        record = json.loads(line)
    except ValueError as error:
        raise RecordError(f"{where}: not JSON ({error})") from error
    if not isinstance(record, dict):
        raise RecordError(f"{where}: expected a JSON object with 'question' and 'answer'")
    question, answer = record.get("question"), record.get("answer")
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        answer = str(answer)
    if not labelled:
        answer = "unknown"
    images = record.get("images", [record["image"]] if "image" in record else [])
    choices = record.get("choices") or []
    texts = isinstance(question, str) and isinstance(answer, str) and bool(question and answer)
    listed = (isinstance(a, list) and all(isinstance(i, str) and i.strip() for i in a)
              for a in (images, choices))  # fmt: skip
    if not texts or not all(listed):
        raise RecordError(
            f"{where}: expected 'question' and 'answer' as text, 'image' as a path or 'images' "
            "as a list of paths, and 'choices', if there are any, as a list of texts"
        )
    return str(question), str(answer) if labelled else "", images, tuple(choices)
