"""`vprm-search score`: P('+') of every step of a written solution."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from vprm_search.aggregate import path_score
from vprm_search.cli import console, options
from vprm_search.errors import InputError
from vprm_search.scoring.solution import solution_request
from vprm_search.steps import (
    DEFAULT_LIMITS,
    REFERENCE_MAX_STEPS,
    choose_splitter,
    split_solution,
)
from vprm_search.steps.thinking import put_thinking_aside
from vprm_search.types import ScoreResult

if TYPE_CHECKING:
    from collections.abc import Sequence


def score(
    *,
    question: options.Question,
    solution: Annotated[
        str, typer.Option(metavar="FILE|-", help="The solution: a text file, or - for stdin.")
    ],
    image: options.Images = None,
    scorer: options.ScorerOptions,
    calibration: options.CalibrationOptions,
    max_steps: Annotated[
        int, typer.Option(min=1, help="Merge consecutive steps into at most this many.")
    ] = REFERENCE_MAX_STEPS,
    split: options.Split = "exact",
    json: options.AsJson = False,
) -> None:
    """Score every step of a solution; steps are separated by blank lines, or as --split says.

    Thinking (<think>…</think>) is left out. By default the texts are scored as they are: a blank
    line at the end is one more, empty, step.
    Exits with 3 when no step could be scored.
    """
    text = _read(solution)
    if not text.strip():
        raise InputError("the solution has no steps: it is empty")
    text = put_thinking_aside(text)
    if not text.strip():
        raise InputError("the solution has no steps: all of it is thinking")
    images = options.read_images(image)
    steps = split_solution(text, max_steps=max_steps, splitter=split)
    request = solution_request(question, steps, images)
    judge = calibration.around(scorer.load(scorer.scorer))
    (result,) = asyncio.run(judge.score([request]))
    values = [step.value for step in result.scores]
    whole = {name: path_score(name, values) for name in ("mean", "min", "last", "product")}
    if json:
        told = {"split": choose_splitter(text)} if split == "auto" else {}
        console.print_json({**_as_json(request.steps, result, whole), **told})
    else:
        _show(request.steps, result, whole)
        if split == "auto":
            console.OUT.print(f"Steps cut by: {choose_splitter(text)}", markup=False, style="dim")
    if all(value is None for value in values):
        raise typer.Exit(console.NO_ANSWER)


def _read(solution: str) -> str:
    limit = DEFAULT_LIMITS.max_text_bytes or sys.maxsize - 1
    try:
        if solution == "-":
            data = sys.stdin.buffer.read(limit + 1)
        else:
            with Path(solution).open("rb") as file:
                data = file.read(limit + 1)
    except OSError as error:
        raise InputError(f"{solution}: cannot be read ({error.strerror})") from error
    if len(data) > limit:
        raise InputError(f"the solution has more than {limit} bytes; shorten it")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{'the solution' if solution == '-' else solution}: byte {error.start} "
            f"(0x{data[error.start]:02x}) is not UTF-8, which a solution must be; convert it, for "
            "example with iconv"
        ) from error
    # other systems' line ends, and the mark some put before a text, are no part of the solution
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _as_json(
    steps: Sequence[str], result: ScoreResult, whole: dict[str, float | None]
) -> dict[str, object]:
    rows = [
        {"step": step, "score": score.value, "reason": score.reason}
        for step, score in zip(steps, result.scores, strict=True)
    ]
    return {"steps": rows, "path_scores": whole}


def _show(steps: Sequence[str], result: ScoreResult, whole: dict[str, float | None]) -> None:
    from vprm_search.report.view import score_text, step_table

    console.OUT.print(step_table(steps, result.scores))
    line = Text("path score ")
    for name, value in whole.items():
        line.append(f"  {name} ").append_text(score_text(value))
    console.OUT.print(line)
