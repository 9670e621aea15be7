"""Solutions whose steps people have labelled: VisualProcessBench, ProcessBench, PRMBench.

VL-RewardBench has pairs of responses, one of which people prefer; they are read here, too.

Steps are taken as they are given. What is wrong with a record (a picture that is not there, another
number of labels than of steps, an error that points past the last step) is named and counted, and
never skipped in silence.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from vprm_search.datasets.cells import Picture, as_text, pictures_in
from vprm_search.datasets.problem_set import load_pictures, picture_is_there
from vprm_search.datasets.tables import Row, Table, open_table
from vprm_search.errors import ImageError, RecordError
from vprm_search.steps import normalise_text, split_solution
from vprm_search.types import Problem, ScoreRequest

BenchmarkName = Literal["visualprocessbench", "processbench", "prmbench", "vlrewardbench"]
NO_PICTURE = "a picture is not there"
UNEVEN = "other numbers of steps and labels"
EMPTY_STEP = "an empty step"
PAST_END = "an error past the last step"
_FATAL = (NO_PICTURE, UNEVEN)


@dataclass(frozen=True, slots=True)
class LabelledSteps:
    """One solution with a label for every step.

    Args:
        row: its row in the file, from 1.
        id: tells it from all others of the file.
        question: the question, as it was published.
        steps: the steps, as they were published.
        labels: `[steps]`: 1 right, -1 wrong, 0 neither (neutral, or unknown).
        source: the set or class that its figures are given for.
        policy: the model that wrote it, "" if nobody says.
        pictures: where its pictures are.
        defects: what is wrong with the record.
    """

    row: int
    id: str
    question: str
    steps: tuple[str, ...]
    labels: tuple[int, ...]
    source: str
    policy: str = ""
    pictures: tuple[Picture, ...] = ()
    defects: tuple[str, ...] = ()

    @property
    def asked(self) -> tuple[str, ...]:
        """What it answers: the same for all solutions of one question about the same pictures."""
        return (self.question, *(p.path or f"{p.row}/{p.place}" for p in self.pictures))

    @property
    def first_error(self) -> int:
        """The place of the first wrong step, from 0; -1 if none is wrong."""
        return self.labels.index(-1) if -1 in self.labels else -1

    @property
    def usable(self) -> bool:
        """Whether it can be scored and its scores be compared with the labels."""
        return not any(defect in _FATAL for defect in self.defects)


@dataclass(frozen=True, slots=True)
class StepBenchmark:
    """All solutions of a file.

    Args:
        path: the file.
        name: which benchmark it is of.
        solutions: its solutions, in order.
        image_root: the folder that paths of pictures are taken from.
    """

    path: Path
    name: BenchmarkName
    solutions: tuple[LabelledSteps, ...] = field(repr=False)
    image_root: Path
    table: Table = field(repr=False)

    @property
    def defects(self) -> Counter[str]:
        """How many records have each defect."""
        return Counter(defect for solution in self.solutions for defect in solution.defects)

    def check(self) -> None:
        """Raise `RecordError` if records cannot be measured: how many, and which is the first."""
        bad = [solution for solution in self.solutions if not solution.usable]
        if not bad:
            return
        told = ", ".join(f"{defect} in {count}" for defect, count in self.defects.most_common())
        left = (
            ""
            if len(bad) == len(self.solutions)
            else (" or leave such records out and have them counted (--leave-out)")
        )
        first = next(defect for defect in bad[0].defects if defect in _FATAL)
        missing = next((p.path for p in bad[0].pictures if first == NO_PICTURE), "")
        named = f": {self.image_root / missing}" if missing else ""
        raise RecordError(
            f"{self.path}: {len(bad)} of {len(self.solutions)} cannot be measured ({told}), "
            f"the first in row {bad[0].row} ({first}{named}); name the pictures' folder (--images)"
            + left
        )

    def request(self, solution: LabelledSteps) -> ScoreRequest:
        """Return what a scorer is asked. Raises `ImageError` naming row and column."""
        where = f"{self.path}, row {solution.row}"
        images = load_pictures(solution.pictures, self.table, self.image_root, where)
        problem = Problem(solution.question, tuple(image.digest for image in images))
        return ScoreRequest(problem, solution.steps, images)


def read_step_benchmark(
    path: str | os.PathLike[str],
    name: BenchmarkName,
    *,
    image_root: str | os.PathLike[str] | None = None,
    limit: int | None = None,
) -> StepBenchmark:
    """Read a benchmark of step labels (JSONL, JSON, or a folder of parquet or arrow files).

    Args:
        path: the file or folder.
        name: which benchmark it is of.
        image_root: where paths of pictures begin. Default: the file's folder.
        limit: records to take, the first ones; None takes all.

    Raises:
        RecordError: a record lacks a column or holds something else than the benchmark does.
        ImageError: the folder of pictures is not there, or a picture is the address of a server.
    """
    path = Path(path)
    root = Path(image_root) if image_root is not None else path if path.is_dir() else path.parent
    if not root.is_dir():
        raise ImageError(f"{root}: there is no such folder of pictures")
    table = open_table(path)
    read = _READERS[name]
    solutions: list[LabelledSteps] = []
    for number, row in enumerate(table, start=1):
        if limit is not None and number > limit:
            break
        where = f"{path}, row {number}"
        solutions += (_checked(one, root, where) for one in read(row, number, where, path))
    if not solutions:
        raise RecordError(f"{path} holds no solutions")
    return StepBenchmark(path, name, tuple(solutions), root, table)


def _checked(solution: LabelledSteps, root: Path, where: str) -> LabelledSteps:
    found = list(solution.defects)
    if len(solution.steps) != len(solution.labels) or not solution.steps:
        found.append(UNEVEN)
    if any(not step.strip() for step in solution.steps):
        found.append(EMPTY_STEP)
    if not all(picture_is_there(picture, root, where) for picture in solution.pictures):
        found.append(NO_PICTURE)
    if tuple(found) == solution.defects:
        return solution
    return replace(solution, defects=tuple(found))


# --- the formats ---------------------------------------------------------------------------------


def _visual(row: Row, number: int, where: str, _: Path) -> Iterator[LabelledSteps]:
    """A record of VisualProcessBench: 1, 0 and -1 for every step, wherever they stand."""
    response = row.get("response")
    if not isinstance(response, Mapping):
        raise RecordError(f"{where}, column response: expected an object with steps and labels")
    labels = response.get("process_correctness")
    if not isinstance(labels, list) or any(type(x) is not int or abs(x) > 1 for x in labels):
        raise RecordError(f"{where}, column response.process_correctness: expected 1, 0 and -1")
    try:
        pictures = pictures_in(row.get("image"), number, "image", references=False)
    except ValueError as error:
        raise RecordError(f"{where}, column image: {error}") from error
    yield LabelledSteps(
        row=number,
        id=str(number),
        question=_text(row, "question", where),
        steps=_steps(response.get("steps"), f"{where}, column response.steps"),
        labels=tuple(labels),
        source=as_text(row.get("data_source")),
        policy=as_text(row.get("policy_model")),
        pictures=tuple(pictures),
    )


def _first_error(row: Row, number: int, where: str, path: Path) -> Iterator[LabelledSteps]:
    """A record of ProcessBench: the place of the first wrong step, from 0, or -1.

    What stands behind the first error is not labelled.
    """
    steps = _steps(row.get("steps"), f"{where}, column steps")
    label = row.get("label")
    if type(label) is not int or label < -1:
        raise RecordError(f"{where}, column label: expected the place of a step, or -1")
    right = len(steps) if label == -1 else min(label, len(steps))
    labels = (1,) * right
    if 0 <= label < len(steps):
        labels += (-1, *(0,) * (len(steps) - label - 1))
    own = as_text(row.get("id")) or str(number)
    yield LabelledSteps(
        row=number,
        id=own,
        question=_text(row, "problem", where),
        steps=steps,
        labels=labels,
        source=own.rpartition("-")[0] or path.stem,
        policy=as_text(row.get("generator")),
        defects=(PAST_END,) if label >= len(steps) else (),
    )


def _modified(row: Row, number: int, where: str, _: Path) -> Iterator[LabelledSteps]:
    """A record of PRMBench: the numbers of the wrong steps, from 1.

    Of its class "redundency" the unmodified process is a right solution, too.
    """
    wrong = row.get("error_steps") or []
    if not isinstance(wrong, list) or any(type(n) is not int or n < 1 for n in wrong):
        raise RecordError(f"{where}, column error_steps: expected numbers of steps, from 1")
    source = as_text(row.get("classification"))
    steps = _steps(row.get("modified_process"), f"{where}, column modified_process")
    question = "modified_question" if row.get("modified_question") else "question"
    own = as_text(row.get("idx")) or str(number)
    yield LabelledSteps(
        row=number,
        id=own,
        question=_text(row, question, where),
        steps=steps,
        labels=tuple(-1 if place in wrong else 1 for place in range(1, len(steps) + 1)),
        source=source,
        defects=(PAST_END,) if wrong and max(wrong) > len(steps) else (),
    )
    if source == "redundency":
        original = _steps(row.get("original_process"), f"{where}, column original_process")
        asked = "original_question" if row.get("original_question") else "question"
        yield LabelledSteps(
            row=number,
            id=f"{own}/original",
            question=_text(row, asked, where),
            steps=original,
            labels=(1,) * len(original),
            source=source,
        )


_PREFERENCE_GROUPS: Mapping[str, str] = MappingProxyType(
    {
        "vlfeedback": "general",
        "wildvision-battle": "general",
        "povid": "hallucination",
        "rlhf-v": "hallucination",
        "rlaif-v": "hallucination",
        "reasoning_tasks": "reasoning",
    }
)
"""VL-RewardBench's three groups, by the folder of a picture (its own evaluation script)."""
_GROUPS_BY_ID: Mapping[str, str] = MappingProxyType(
    {
        "hallucination_pair": "hallucination",
        "rlaif": "hallucination",
        "rlhf": "hallucination",
        "mathverse": "reasoning",
        "mmmu": "reasoning",
    }
)


def _pair(row: Row, number: int, where: str, _: Path) -> Iterator[LabelledSteps]:
    """A record of VL-RewardBench: two responses; the one that is preferred (rank 0) comes first.

    Responses are cut and merged as VisualPRM's own code does before it selects; their steps have no
    labels. Most records name the preferred one first, so that a tie must not go to the first.
    """
    said, ranking = row.get("response"), row.get("human_ranking")
    if not isinstance(said, list) or len(said) != 2 or not all(isinstance(x, str) for x in said):
        raise RecordError(f"{where}, column response: expected two texts")
    if not isinstance(ranking, list) or sorted(ranking) != [0, 1]:
        raise RecordError(f"{where}, column human_ranking: expected 0 and 1")
    own = as_text(row.get("id")) or str(number)
    column = "image" if row.get("image") else "image_path"
    try:
        pictures = pictures_in(row.get(column), number, column, references=False)
    except ValueError as error:
        raise RecordError(f"{where}, column {column}: {error}") from error
    folders = Path(as_text(row.get("image_path"))).parts
    group = next((_PREFERENCE_GROUPS[f] for f in folders if f in _PREFERENCE_GROUPS), None)
    for place in (ranking.index(0), ranking.index(1)):
        steps = tuple(split_solution(normalise_text(said[place])))
        yield LabelledSteps(
            row=number,
            id=f"{own}/{place}",
            question=_text(row, "query", where),
            steps=steps,
            labels=(0,) * len(steps),
            source=group
            or _GROUPS_BY_ID.get(own.partition("-")[0].lower(), "")
            or _GROUPS_BY_ID.get(own.partition("_")[0].lower(), "general"),
            pictures=tuple(pictures),
        )


_READERS: Mapping[BenchmarkName, Callable[[Row, int, str, Path], Iterator[LabelledSteps]]] = (
    MappingProxyType(
        {
            "visualprocessbench": _visual,
            "processbench": _first_error,
            "prmbench": _modified,
            "vlrewardbench": _pair,
        }
    )
)


def _text(row: Row, column: str, where: str) -> str:
    text = row.get(column)
    if not isinstance(text, str) or not text.strip():
        raise RecordError(f"{where}, column {column}: expected a text")
    return text


def _steps(value: object, where: str) -> tuple[str, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise RecordError(f"{where}: expected a list of texts")
    if any(not isinstance(step, str) for step in value):
        raise RecordError(f"{where}: expected a list of texts, and nothing else in it")
    return tuple(value)
