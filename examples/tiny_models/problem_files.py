"""Problems of the rendered world in the formats that published problem sets come in.

A TSV file as VLMEvalKit has them (pictures as base64), a JSONL file with pictures beside it, or a
parquet file as Hugging Face has them; the file's ending tells which. In the world's own terms they
are all the same problems, so what reads them can be held against the world.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vprm_search.errors import ConfigError
from vprm_search.tiny.world import FAMILIES, TinyProblem, generate, render

LETTERS = "ABCD"


def draw(count: int, *, split: str = "test", first: int = 0) -> list[TinyProblem]:
    """Return problems of all families, which take turns."""
    return [
        generate(FAMILIES[n % len(FAMILIES)], split, first + n // len(FAMILIES))
        for n in range(count)
    ]


def choices_for(problem: TinyProblem) -> tuple[str, ...]:
    """Return four choices, the right answer among them; a pure function of the problem."""
    rng = random.Random(f"choices|{problem.id}")
    right = int(problem.answer)
    wrong = rng.sample([n for n in range(100) if n != right], len(LETTERS) - 1)
    choices = [str(n) for n in (right, *wrong)]
    rng.shuffle(choices)
    return tuple(choices)


def write_problems(path: Path, problems: Sequence[TinyProblem], *, choices: bool = False) -> None:
    """Write problems as the ending of `path` says: .tsv, .jsonl or .parquet.

    Args:
        path: the file; pictures of a JSONL file go into the folder `images` beside it.
        problems: what is written.
        choices: whether they are multiple choice, the answer a letter.

    Raises:
        ConfigError: the ending is none of these.
    """
    writers = {".tsv": _write_tsv, ".jsonl": _write_jsonl, ".parquet": _write_parquet}
    if path.suffix not in writers:
        raise ConfigError(f"{path}: name a file that ends in {', '.join(writers)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    writers[path.suffix](path, problems, choices)


def png_of(problem: TinyProblem) -> bytes:
    """Return the problem's picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    render(problem).save(buffer, "PNG")
    return buffer.getvalue()


def _texts(problem: TinyProblem, choices: bool) -> dict[str, Any]:
    answer = LETTERS[choices_for(problem).index(problem.answer)] if choices else problem.answer
    return {"question": problem.question, "answer": answer, "category": problem.family}


def _write_tsv(path: Path, problems: Sequence[TinyProblem], choices: bool) -> None:
    letters = LETTERS if choices else ""
    columns = ["index", "image", "question", *letters, "answer", "category"]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, delimiter="\t", lineterminator="\n")
        writer.writeheader()
        for index, problem in enumerate(problems):
            picture = base64.b64encode(png_of(problem)).decode()
            offered = dict(zip(letters, choices_for(problem), strict=False))
            writer.writerow(
                {"index": index, "image": picture, **_texts(problem, choices), **offered}
            )


def _write_jsonl(path: Path, problems: Sequence[TinyProblem], choices: bool) -> None:
    (path.parent / "images").mkdir(exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for index, problem in enumerate(problems):
            name = f"images/{index}.png"
            (path.parent / name).write_bytes(png_of(problem))
            offered = {"choices": list(choices_for(problem))} if choices else {}
            line = {"id": str(index), "image": name, **_texts(problem, choices), **offered}
            file.write(json.dumps(line) + "\n")


def _write_parquet(path: Path, problems: Sequence[TinyProblem], choices: bool) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = []
    for index, problem in enumerate(problems):
        offered = list(choices_for(problem)) if choices else []
        picture = {"bytes": png_of(problem), "path": None}
        row = {"id": str(index), "image": picture, **_texts(problem, choices), "options": offered}
        rows.append(row)
    picture_type = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    texts = [(name, pyarrow.string()) for name in ("id", "question", "answer", "category")]
    schema = pyarrow.schema(
        [*texts, ("image", picture_type), ("options", pyarrow.list_(pyarrow.string()))]
    )
    table = pyarrow.Table.from_pylist(rows, schema)
    pyarrow.parquet.write_table(table, path, row_group_size=100)
