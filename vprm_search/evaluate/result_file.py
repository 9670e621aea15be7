"""What was selected, as a result file of VLMEvalKit: its graders read it, with `--mode eval`.

`{model}_{set}.tsv` or `.xlsx`: all columns of the set but `image`, unchanged, and `prediction`; all
rows, in their order. VLMEvalKit reads it with pandas, which takes some texts for a number or for
nothing; what it would not read back as written is in the notes.
"""

from __future__ import annotations

import csv
import importlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vprm_search.compare.report import many
from vprm_search.datasets.graders import letter_chosen, letters_chosen, number_said
from vprm_search.datasets.known import PICTURE_COLUMNS
from vprm_search.datasets.problem_set import Item, ProblemSet
from vprm_search.errors import ConfigError, MissingDependencyError, RecordError
from vprm_search.evaluate.estimators import chosen
from vprm_search.evaluate.pool import PooledProblem

Form = Literal["tsv", "xlsx"]
LONGEST_CELL = 32_767
"""Characters of a cell of an xlsx file; Excel cuts longer ones."""
NO_PREDICTION = "?"
"""Stands where nothing was answered: an empty cell would be read as the words "nan"."""

_PREDICTION = "prediction"
_MISSING = frozenset(
    {"#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>",
     "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"}
)  # fmt: skip
"""What pandas reads as nothing."""
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class ResultFile:
    """A file that was written, and what its reader has to know.

    Args:
        path: of the file.
        rows: how many it has.
        notes: what pandas reads otherwise than it was written.
    """

    path: Path
    rows: int
    notes: tuple[str, ...]


def predictions_of(
    pools: Iterable[PooledProblem],
    problems: ProblemSet,
    selector: str,
    size: int,
    *,
    raw: bool = False,
) -> dict[str, str]:
    """Return what a selector takes among the first `size` of each pool, by the problem's id.

    Args:
        pools: the problems with their candidates.
        problems: the set that they are of.
        selector: a critic ("prm:mean"), "majority", "vote:CRITIC", "pass@1", …
        size: N.
        raw: the whole solution, for a judge; else the final answer, for matching: the letter of a
            choice, a plain number, or the answer as it was read.

    Raises:
        RecordError: a pool of another set.
        ConfigError: no such selector.
    """
    items = {item.id: item for item in problems}
    found = {}
    for pool in pools:
        if pool.id not in items:
            raise RecordError(f"problem {pool.id} is not in {problems.path}")
        one = chosen(pool, selector, size)
        if one is not None:
            found[pool.id] = one.text if raw else matched_form(items[pool.id], one.answer)
    return found


def matched_form(item: Item, answer: str) -> str:
    """Return an answer as exact matching reads it: letters alone, a number without its unit."""
    if len(item.letters) == 1:
        return letter_chosen(answer, item.choices) or answer
    if item.letters:
        return ", ".join(letters_chosen(answer, item.choices)) or answer
    if answer and item.answer_type in ("integer", "float"):
        number = number_said(answer)
        if number is not None and number.denominator == 1:
            return str(number.numerator)
        if number is not None:
            return repr(float(number))
    return answer


def write_result_file(
    folder: Path,
    problems: ProblemSet,
    predictions: Mapping[str, str],
    *,
    model: str,
    form: Form = "tsv",
) -> ResultFile:
    """Write a result file, whole or not at all.

    Args:
        folder: where to.
        problems: the set; a picture in a column `image` is left out, paths of pictures stay.
        predictions: by the problem's id; a problem without one gets `NO_PREDICTION`.
        model: how the model is called in the file's name, and by VLMEvalKit.
        form: xlsx is VLMEvalKit's default; tsv has no limit (there: `PRED_FORMAT=tsv`).

    Raises:
        ConfigError: the model's name is none for a file, or the set has a column "prediction".
        RecordError: a prediction for a problem that is not there, or an xlsx cell too long.
        MissingDependencyError: xlsx without xlsxwriter.
    """
    if not re.fullmatch(r"[\w.+@ -]{1,100}", model) or model.startswith("."):
        raise ConfigError(f"{model!r} cannot be a part of a file's name; use letters, digits, ._-")
    if stray := sorted(set(predictions) - {item.id for item in problems}):
        raise RecordError(f"a prediction for {stray[0]!r}, which is not in {problems.path}")
    if _PREDICTION in problems.columns:
        raise ConfigError(f"{problems.path} has a column {_PREDICTION!r} already")
    columns = [*(name for name in problems.columns if name != "image"), _PREDICTION]
    path = folder / f"{model}_{problems.path.stem}.{form}"
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".{path.name}.part"
    rows = _rows(problems, predictions, columns, path if form == "xlsx" else None)
    try:
        (_write_xlsx if form == "xlsx" else _write_tsv)(part, columns, rows)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return ResultFile(path, len(problems), tuple(_notes(problems, predictions)))


def _rows(
    problems: ProblemSet, predictions: Mapping[str, str], columns: list[str], limited: Path | None
) -> Iterator[list[str]]:
    for item in problems:
        row = problems.row(item)
        said = predictions.get(item.id, "").strip() or NO_PREDICTION
        cells = [*(_text(name, row.get(name)) for name in columns[:-1]), said]
        cells = [_CONTROL.sub("\ufffd", cell) for cell in cells]
        if limited is not None:
            for name, cell in zip(columns, cells, strict=True):
                length = len(cell.encode("utf-16-le")) // 2  # as Excel counts
                if length > LONGEST_CELL:
                    raise RecordError(
                        f"{limited.name}, row {item.row}, column {name}: {length} characters; a "
                        f"cell of an xlsx file holds {LONGEST_CELL}. Write a tsv file (and set "
                        "PRED_FORMAT=tsv for VLMEvalKit), or extracted answers"
                    )
        yield cells


def _text(column: str, value: object) -> str:
    """Return a cell as VLMEvalKit has it: lists as Python writes them, pictures left out."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if column in PICTURE_COLUMNS and not isinstance(value, list | tuple):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return "" if _has_bytes(value) else str(value)


def _has_bytes(value: object) -> bool:
    if isinstance(value, dict):
        return any(map(_has_bytes, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_has_bytes, value))
    return isinstance(value, bytes | bytearray | memoryview)


def _write_tsv(path: Path, columns: list[str], rows: Iterable[list[str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", quoting=csv.QUOTE_ALL, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)


def _write_xlsx(path: Path, columns: list[str], rows: Iterable[list[str]]) -> None:
    try:
        library: Any = importlib.import_module("xlsxwriter")
    except ModuleNotFoundError as error:
        raise MissingDependencyError("xlsxwriter", "xlsx") from error
    with library.Workbook(path, {"constant_memory": True}) as book:
        sheet = book.add_worksheet("Sheet1")
        _string_cells(sheet, 0, columns)
        for number, cells in enumerate(rows, start=1):
            _string_cells(sheet, number, cells)


def _string_cells(sheet: Any, row: int, cells: list[str]) -> None:
    """Write cells as text: what a model wrote is no formula and no link."""
    for column, cell in enumerate(cells):
        sheet.write_string(row, column, cell)


def _notes(problems: ProblemSet, predictions: Mapping[str, str]) -> Iterator[str]:
    without = sum(not predictions.get(item.id, "").strip() for item in problems)
    if without:
        rows = many(without, "row has", "rows have")
        yield f"{rows} no prediction: {NO_PREDICTION!r} stands there, which is wrong"
    said = [predictions.get(item.id, "").strip() for item in problems]
    if lost := [text for text in said if text in _MISSING]:
        are = many(len(lost), "prediction is", "predictions are")
        yield f"{are} read as nothing by pandas: {lost[0]!r}"
    numbers = [text for text in said if re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", text)]
    if len(numbers) == len(said) and not all(text.lstrip("-").isdigit() for text in numbers):
        yield (
            "all predictions are numbers and some have decimals: pandas reads all as floating "
            "point, and VLMEvalKit's rule for whole numbers (MathVista) calls 5.0 wrong"
        )
