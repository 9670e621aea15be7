"""The files of the labelling pipeline: label records and scored paths, one line of JSON each.

A record is one problem with its labelled solutions. The fields inside a solution are those of
VisualPRM400K's raw records (`response`, `steps_with_score` with `step`, `score`, `num_mc_correct`,
`num_mc_total`, and `num_mc_sequences`); `training_record` turns a solution into that data set's
conversation form.

A scored path is `{"problem": id, "policy": name, "scorer": identity, "steps": [{"step": text,
"score": P('+') or null, "label": true, false or null}, …], "correct": true, false or null}`. The
labels may come from anywhere; `score_records` makes paths from label records.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field

from vprm_search.aggregate import counted_scores, path_score
from vprm_search.errors import RecordError, ScorerError
from vprm_search.records import read_record, record_json
from vprm_search.types import ImageData, Problem, ScoreRequest, ScoreResult, StepScorer

Json = Any
T = TypeVar("T")
_Probability = Annotated[float, Field(ge=0, le=1, strict=True)]
_Flag = Annotated[bool, Field(strict=True)]


@dataclass(frozen=True, slots=True)
class StepLabel:
    """A step and how often the policy reached the right answer from it.

    `total` is the number of continuations; 0 means that none was sampled: the step closes an ended
    solution, whose correctness is its label, or comes after an early stop. `score` is None when
    every continuation failed: such a step has no label.
    """

    step: str
    score: _Probability | None
    correct: Annotated[int, Field(alias="num_mc_correct")] = 0
    total: Annotated[int, Field(alias="num_mc_total")] = 0

    def positive(self, threshold: float = 0.0) -> bool | None:
        """Tell whether the step is '+': score strictly above the threshold (paper: 0)."""
        return None if self.score is None else self.score > threshold


@dataclass(frozen=True, slots=True)
class LabelledSolution:
    """One solution of the policy with a label per step.

    `finish` is "stop" when the policy ended it, "length" when it was cut; `correct` says whether
    its own final answer is right; `copies` how many samples had this very text.
    """

    response: str
    steps: Annotated[tuple[StepLabel, ...], Field(alias="steps_with_score")]
    finish: str
    correct: bool
    copies: int = 1


@dataclass(frozen=True, slots=True)
class ProblemRecord:
    """What was learned about one problem. `images` are digests; `failed` counts lost samples."""

    id: str
    question: str
    images: Annotated[tuple[str, ...], Field(alias="image")]
    answer: str
    continuations: Annotated[int, Field(alias="num_mc_sequences")]
    solutions: tuple[LabelledSolution, ...]
    failed: int = 0

    def to_line(self) -> str:
        """Return the record as one line of JSON, newline included."""
        data = record_json(self)
        told = {"num_mc_sequences": self.continuations}
        data["solutions"] = [{**solution, **told} for solution in data["solutions"]]
        return json.dumps(data, ensure_ascii=False) + "\n"

    @classmethod
    def from_line(cls, line: str) -> ProblemRecord:
        """Read a line written by `to_line`. Raises `RecordError` on anything else."""
        return _read(cls, line, "not a problem record")


def training_record(
    record: ProblemRecord, solution: LabelledSolution, threshold: float = 0.0
) -> dict[str, Json]:
    """Return one solution in VisualPRM400K's conversation form (without a system turn).

    It ends before the first step without a label.
    """
    turns: list[dict[str, str]] = []
    for place, label in enumerate(solution.steps):
        if label.score is None:
            break
        text = label.step
        if place == 0:
            text = f"### Question:\n{record.question}\n\n### Solution Process:\n{text}"
        turns.append({"from": "human", "value": text})
        turns.append({"from": "gpt", "value": "+" if label.positive(threshold) else "-"})
    return {"id": record.id, "image": list(record.images), "conversations": turns}


class RecordFile:
    """An append-only JSONL file of problem records that survives being cut anywhere.

    A line is written in one piece and flushed to disk; a last line without its newline was cut by
    a crash and is removed, so its problem is done again. `settings` are kept beside the file: a
    run with other settings is refused (`RecordError`), because its labels would not be comparable.
    """

    def __init__(self, path: Path, settings: Mapping[str, Json]) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._check_settings(dict(settings))
        self._drop_cut_line()
        self.done = {record.id for record in self} if path.exists() else set()

    def append(self, record: ProblemRecord) -> None:
        """Write one record. Raises `RecordError` if its problem is already there."""
        if record.id in self.done:
            raise RecordError(f"problem {record.id} is already in {self.path}")
        with self.path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(record.to_line())
            file.flush()
            os.fsync(file.fileno())
        self.done.add(record.id)

    def __iter__(self) -> Iterator[ProblemRecord]:
        return read_records(self.path)

    def _check_settings(self, settings: dict[str, Json]) -> None:
        beside = self.path.with_suffix(".settings.json")
        text = json.dumps(settings, indent=1, sort_keys=True) + "\n"
        if not beside.exists():
            part = beside.with_suffix(".part")
            part.write_text(text, encoding="utf-8")
            os.replace(part, beside)
        elif beside.read_text(encoding="utf-8") != text:
            raise RecordError(
                f"{self.path} was begun with other settings (see {beside.name}); finish it with "
                "those or write to another file"
            )

    def _drop_cut_line(self) -> None:
        if not self.path.exists():
            return
        with self.path.open("r+b") as file:
            data = file.read()
            file.truncate(data.rfind(b"\n") + 1)


def read_records(path: Path) -> Iterator[ProblemRecord]:
    """Read all records of a file. Raises `RecordError` naming the first damaged line."""
    return _lines(path, ProblemRecord.from_line)


# --- scored paths: what a calibration is fitted on ---


_BATCH = 64


@dataclass(frozen=True, slots=True)
class ScoredStep:
    """One step: its text, its score, and whether it is right (None: unknown, for both)."""

    text: Annotated[str, Field(alias="step")]
    score: _Probability | None
    label: _Flag | None


@dataclass(frozen=True, slots=True)
class ScoredPath:
    """One solution of `policy` to `problem`, scored by `scorer`.

    `correct` says whether its final answer is right; None if it has none or nobody knows.
    """

    problem: str
    policy: str
    scorer: str
    steps: tuple[ScoredStep, ...]
    correct: _Flag | None = None

    def path_score(self, aggregate: str) -> float | None:
        """Return the path score, as a search would make it; None if a step has no score."""
        texts = [step.text for step in self.steps]
        return path_score(aggregate, counted_scores(texts, [step.score for step in self.steps]))

    def to_line(self) -> str:
        """Return the path as one line of JSON, newline included."""
        return json.dumps(record_json(self), ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_line(cls, line: str) -> ScoredPath:
        """Read a line written by `to_line`. Raises `RecordError` on anything else."""
        return _read(cls, line, "not a scored path")


def read_scored_paths(path: Path) -> Iterator[ScoredPath]:
    """Read all paths of a file. Raises `RecordError` naming the first damaged line."""
    return _lines(path, ScoredPath.from_line)


def write_scored_paths(path: Path, paths: Iterable[ScoredPath]) -> int:
    """Write paths to a file, whole or not at all; return how many there are."""
    partial = path.with_name(path.name + ".part")
    count = 0
    with partial.open("w", encoding="utf-8", newline="\n") as file:
        for scored in paths:
            file.write(scored.to_line())
            count += 1
    partial.replace(path)
    return count


async def score_records(
    records: Iterable[ProblemRecord],
    scorer: StepScorer,
    images_of: Callable[[ProblemRecord], tuple[ImageData, ...]],
    *,
    policy: str,
    threshold: float = 0.0,
    system: str = "",
) -> AsyncIterator[ScoredPath]:
    """Score every labelled solution of the records; yield one path each, in order.

    A step is right if the share of its continuations that end right is above `threshold` (as in
    VisualPRM400K: 0). `images_of` finds the pictures of a record. Solutions that several samples
    share come once for each of them: they are draws of the policy. Raises what the scorer raises.
    """
    identity = str(getattr(scorer, "identity", ""))
    stream = ((record, solution) for record in records for solution in record.solutions)
    while batch := list(islice(stream, _BATCH)):
        requests = [_request(record, solution, images_of, system) for record, solution in batch]
        results = await scorer.score(requests)
        if len(results) != len(requests):
            raise ScorerError(f"the scorer got {len(requests)} requests, returned {len(results)}")
        for (record, solution), result in zip(batch, results, strict=True):
            path = ScoredPath(
                record.id, policy, identity, _steps(solution, result, threshold), _ended(solution)
            )
            for _ in range(solution.copies):
                yield path


def _request(
    record: ProblemRecord,
    solution: LabelledSolution,
    images_of: Callable[[ProblemRecord], tuple[ImageData, ...]],
    system: str,
) -> ScoreRequest:
    problem = Problem(record.question, record.images, system)
    return ScoreRequest(problem, tuple(s.step for s in solution.steps), images_of(record))


def _steps(
    solution: LabelledSolution, result: ScoreResult, threshold: float
) -> tuple[ScoredStep, ...]:
    return tuple(
        ScoredStep(label.step, score.value, label.positive(threshold))
        for label, score in zip(solution.steps, result.scores, strict=True)
    )


def _ended(solution: LabelledSolution) -> bool | None:
    return solution.correct if solution.finish == "stop" else None


def step_points(paths: Sequence[ScoredPath]) -> tuple[list[float], list[bool], list[str]]:
    """Return scores, labels and problems of all steps that have a score and a label, `[steps]`."""
    known = [
        (step.score, step.label, path.problem)
        for path in paths
        for step in path.steps
        if step.score is not None and step.label is not None
    ]
    return [k[0] for k in known], [k[1] for k in known], [k[2] for k in known]


def path_points(
    paths: Sequence[ScoredPath], aggregate: str
) -> tuple[list[float], list[bool], list[str]]:
    """Return path scores, correctness and problems of all paths that have both, `[paths]`."""
    known = [
        (score, path.correct, path.problem)
        for path in paths
        if path.correct is not None and (score := path.path_score(aggregate)) is not None
    ]
    return [k[0] for k in known], [k[1] for k in known], [k[2] for k in known]


def by_policy(paths: Iterable[ScoredPath]) -> Mapping[str, list[ScoredPath]]:
    """Return the paths of each policy, in the order in which the policies first appear.

    Raises `RecordError` if one policy's paths were scored by several scorers.
    """
    groups: dict[str, list[ScoredPath]] = {}
    for path in paths:
        group = groups.setdefault(path.policy, [])
        if group and group[0].scorer != path.scorer:
            raise RecordError(
                f"the paths of policy {path.policy!r} have two scorers, {group[0].scorer!r} and "
                f"{path.scorer!r}; a calibration belongs to one"
            )
        group.append(path)
    return groups


def _read(kind: type[T], line: str, where: str) -> T:
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{where}: {error} in {line[:80]!r}") from error
    return read_record(kind, data, where)


def _lines(path: Path, read: Callable[[str], T]) -> Iterator[T]:
    try:
        with path.open(encoding="utf-8", newline="\n") as file:
            for number, line in enumerate(file, start=1):
                try:
                    yield read(line)
                except RecordError as error:
                    raise RecordError(f"{path} line {number}: {error}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError(f"{path} cannot be read: {error}") from error
