"""`vprm-search datasets …`: what is in a problem set, and how answers to it are graded."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.panel import Panel
from rich.text import Text

from vprm_search.cli import console, options
from vprm_search.datasets.known import PublishedSet
from vprm_search.errors import ConfigError, InputError
from vprm_search.report.view import printable

if TYPE_CHECKING:
    from vprm_search.datasets.problem_set import Item, ProblemSet

datasets = typer.Typer(
    help="Problem sets as people have them: look at one, grade answers to it.",
    no_args_is_help=True,
)
_EXAMPLES = 3
_LONGEST = 1200  # characters of a question that are shown


File = Annotated[
    Path,
    typer.Argument(metavar="FILE", help="TSV, CSV, JSONL, JSON, or a folder of parquet or arrow."),
]
Set = Annotated[
    PublishedSet | None,
    typer.Option("--set", help="Which published set it is; default: told by its columns."),
]


def read(
    file: Path,
    images: Path | None,
    name: PublishedSet | None,
    *,
    limit: int | None = None,
    check_images: bool = True,
) -> ProblemSet:
    """Read a set as the options say."""
    from vprm_search.datasets.problem_set import read_problem_set

    return read_problem_set(
        file, image_root=images, name=name, limit=limit, check_images=check_images
    )


@datasets.command()
def inspect(
    file: File,
    images: options.ImageRoot = None,
    set_name: Set = None,
    html: Annotated[
        Path | None, typer.Option(help="Write the examples with their pictures as a page.")
    ] = None,
    json: options.AsJson = False,
) -> None:
    """Show what is understood of a problem set: counts, types and three examples.

    Pictures that are not there are counted; no command that runs a model starts without them.
    """
    console.check_place(html)
    problems = read(file, images, set_name, check_images=False)
    facts = facts_of(problems)
    count = min(_EXAMPLES, len(problems))  # the first, the last, and what is between
    examples = [problems[n * (len(problems) - 1) // max(1, count - 1)] for n in range(count)]
    if json:
        console.print_json({**facts, "examples": [_as_json(item) for item in examples]})
    else:
        for name, fact in facts.items():
            line = Text.assemble((f"{name}: ", "bold"), printable(_said(fact)))
            console.OUT.print(line, soft_wrap=True)
        for item in examples:
            console.OUT.print(_panel(item))
    if html is not None:
        from vprm_search.report.problem_page import problem_page

        told = [f"{name}: {_said(fact)}" for name, fact in facts.items()]
        console.write_file(html, problem_page(problems, examples, told))


def facts_of(problems: ProblemSet) -> dict[str, object]:
    """Return what is understood of a set, as plain JSON."""
    from vprm_search.datasets.graders import grader_of

    pictures = Counter(len(item.pictures) for item in problems)
    grader = grader_of(problems.name)
    known = {item.id for item in problems}
    return {
        "file": str(problems.path),
        "set": problems.name or "not known",
        "problems": len(problems),
        "answer types": dict(Counter(item.answer_type for item in problems).most_common()),
        "choices": _counted(Counter(len(item.choices) for item in problems)),
        "pictures": _counted(pictures),
        "text alone": pictures[0],
        "missing pictures": len(problems.missing),
        "repeated ids": sum(item.id.rpartition("#")[0] in known for item in problems),
        "groups": len({item.group for item in problems}),
        "categories": dict(Counter(i.category for i in problems if i.category).most_common(12)),
        "columns": list(problems.columns),
        "graded by": f"{grader.name} ({grader.source})",
    }


def _counted(counts: Counter[int]) -> dict[str, int]:
    return {str(number): counts[number] for number in sorted(counts)}


def _said(fact: object) -> str:
    if isinstance(fact, dict):
        return ", ".join(f"{name}: {count}" for name, count in fact.items()) or "none"
    return ", ".join(fact) if isinstance(fact, list) else str(fact)


def _as_json(item: Item) -> dict[str, object]:
    return {
        "id": item.id,
        "question": item.question,
        "answer": item.answer,
        "answer_type": item.answer_type,
        "choices": list(item.choices),
        "letters": item.letters,
        "pictures": len(item.pictures),
        "category": item.category,
        "group": item.group,
        "variant": item.variant,
    }


def _panel(item: Item) -> Panel:
    answer = " or ".join((item.answer, *item.also)) or "not published"
    kind = f"{item.answer_type}{' ' + item.letters if item.letters else ''}"
    pictures = f"{len(item.pictures)} pictures" if len(item.pictures) != 1 else "1 picture"
    asked = printable(item.question, lines=True)
    body = Text(asked if len(asked) <= _LONGEST else asked[: _LONGEST - 1].rstrip() + "…")
    body.append(f"\n\nAnswer: {printable(answer)} ({kind}); {pictures}", style="bold")
    return Panel(body, title=Text(printable(item.id)), title_align="left")


@datasets.command()
def grade(
    file: File,
    predictions: Annotated[
        Path,
        typer.Argument(help="TSV, CSV or JSONL with the columns index or id, and prediction."),
    ],
    set_name: Set = None,
    judge: Annotated[
        str | None,
        typer.Option(metavar=options.JUDGES, help="A chat model that judges, too."),
    ] = None,
    base_url: Annotated[str | None, typer.Option(help="OpenAI-compatible server.")] = None,
    record: Annotated[
        Path | None, typer.Option(help="JSONL file of the judge's verdicts; none is asked twice.")
    ] = None,
    json: options.AsJson = False,
) -> None:
    """Grade predictions by the set's published rule, by sameness of answers, and by a judge.

    A prediction is a whole solution or its final answer. Problems without a prediction are wrong,
    and counted.
    """
    if record is not None and judge is None:
        raise ConfigError("--record is for --judge")
    console.check_place(record)
    problems = read(file, None, set_name, check_images=False)
    said = _predictions(predictions, problems)
    from vprm_search.datasets.graders import SAMENESS, grader_of
    from vprm_search.datasets.set_scores import by_category, set_scores

    answered = [item for item in problems if item.answer_type != "none"]
    rules = {rule.name: rule for rule in (grader_of(problems.name), SAMENESS)}
    rights = {
        name: [(item, bool(rule.grade(item, said.get(item.id, "")).right)) for item in answered]
        for name, rule in rules.items()
    }
    failures: list[str] = []
    if judge is not None:
        from vprm_search.datasets.answer_judge import AnswerJudge

        asked = AnswerJudge(options.chat_model(judge, base_url, 0.0), name=judge, record=record)
        grades = asyncio.run(asked.grade([(i, said.get(i.id, "")) for i in answered]))
        rights[judge] = [(i, bool(g.right)) for i, g in zip(answered, grades, strict=True)]
        failures = asked.failures
    result: dict[str, Any] = {
        "set": problems.name or "not known",
        "problems": len(problems),
        "without an answer": len(problems) - len(answered),
        "without a prediction": sum(item.id not in said for item in problems),
        "without a verdict": len(failures),
        "scores": {name: set_scores(problems.name, graded) for name, graded in rights.items()},
        "paper": _paper(problems.name),
    }
    if json:
        console.print_json(result)
        return
    for name, fact in result.items():
        if name not in ("scores", "paper"):
            console.OUT.print(f"{name}: {fact}", markup=False)
    for name, graded in rights.items():
        shown = "  ".join(f"{key} {_figure(value)}"
                          for key, value in set_scores(problems.name, graded).items())  # fmt: skip
        console.OUT.print(Text.assemble((f"{name}  ", "bold"), shown), soft_wrap=True)
    for category, (right, count) in by_category(rights[next(iter(rights))]).items():
        if category:
            console.OUT.print(f"  {printable(category)}: {right} of {count}", markup=False)
    if result["paper"]:
        console.OUT.print(
            "The paper's figures (arXiv 2503.10291, table 5; of GPQA its Diamond part), "
            "alone and as the best of 8 by VisualPRM-8B:",
            markup=False,
            soft_wrap=True,
        )
    for policy, (alone, best) in result["paper"].items():
        console.OUT.print(f"  {policy}: {alone} %, {best} %", markup=False, highlight=False)


def _paper(name: str) -> dict[str, tuple[float, float]]:
    """Return the paper's figures of a text set by policy, none for other sets."""
    from vprm_search.datasets.set_scores import PAPER_TEXT_ROWS, PAPER_TEXT_SETS

    if name not in PAPER_TEXT_SETS:
        return {}
    place = PAPER_TEXT_SETS.index(name)
    return {policy: pairs[place] for policy, pairs in PAPER_TEXT_ROWS.items()}


def _figure(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{100 * value:.1f} %"


def _predictions(file: Path, problems: ProblemSet) -> dict[str, str]:
    """Return predictions by id, told apart as in the set where it repeats one.

    Raises `InputError` for a file without any, an id that is stray, repeated or not there, and a
    column that lacks.
    """
    from vprm_search.datasets.cells import as_text
    from vprm_search.datasets.known import id_of
    from vprm_search.datasets.tables import open_table

    known = {item.id for item in problems}
    said: dict[str, str] = {}
    copies: Counter[str] = Counter()
    for number, row in enumerate(open_table(file), start=1):
        where = f"{file}, row {number}"
        if "prediction" not in row:
            raise InputError(f"{where}: there is no column 'prediction'")
        own = id_of(row, problems.name)
        if not own:
            raise InputError(f"{where}: there is no id; give the problem's as index or id")
        if own not in known:
            raise InputError(f"{where}: {own!r} is no problem of {problems.path}")
        copies[own] += 1
        copy = own if copies[own] == 1 else f"{own}#{copies[own]}"
        if copy not in known or copy in said:
            raise InputError(f"{where}: {own!r} has a prediction already; leave one of them")
        said[copy] = as_text(row["prediction"])
    if not said:
        raise InputError(f"{file} holds no predictions")
    return said
