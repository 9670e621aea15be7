"""What the labelling pipeline writes: one line of JSON per problem, with its labelled solutions.

The fields inside a solution are those of VisualPRM400K's raw records (`response`,
`steps_with_score` with `step`, `score`, `num_mc_correct`, `num_mc_total`, and `num_mc_sequences`);
`training_record` turns a solution into that data set's conversation form.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vprm_search.errors import RecordError

Json = Any


@dataclass(frozen=True, slots=True)
class StepLabel:
    """A step and how often the policy reached the right answer from it.

    `total` is the number of continuations; 0 means that none was sampled: the step closes an ended
    solution, whose correctness is its label, or comes after an early stop. `score` is None when
    every continuation failed: such a step has no label.
    """

    step: str
    score: float | None
    correct: int = 0
    total: int = 0

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
    steps: tuple[StepLabel, ...]
    finish: str
    correct: bool
    copies: int = 1

    def to_json(self, continuations: int) -> dict[str, Json]:
        """Return the raw record of one solution."""
        return {
            "response": self.response,
            "finish": self.finish,
            "correct": self.correct,
            "copies": self.copies,
            "num_mc_sequences": continuations,
            "steps_with_score": [
                {
                    "step": label.step,
                    "score": label.score,
                    "num_mc_correct": label.correct,
                    "num_mc_total": label.total,
                }
                for label in self.steps
            ],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Json]) -> LabelledSolution:
        """Read a solution written by `to_json`."""
        steps = tuple(
            StepLabel(s["step"], s["score"], s["num_mc_correct"], s["num_mc_total"])
            for s in data["steps_with_score"]
        )
        return cls(data["response"], steps, data["finish"], data["correct"], data["copies"])


@dataclass(frozen=True, slots=True)
class ProblemRecord:
    """What was learned about one problem. `images` are digests; `failed` counts lost samples."""

    id: str
    question: str
    images: tuple[str, ...]
    answer: str
    continuations: int
    solutions: tuple[LabelledSolution, ...]
    failed: int = 0

    def to_line(self) -> str:
        """Return the record as one line of JSON, newline included."""
        data = {
            "id": self.id,
            "image": list(self.images),
            "question": self.question,
            "answer": self.answer,
            "num_mc_sequences": self.continuations,
            "failed": self.failed,
            "solutions": [s.to_json(self.continuations) for s in self.solutions],
        }
        return json.dumps(data, ensure_ascii=False) + "\n"

    @classmethod
    def from_line(cls, line: str) -> ProblemRecord:
        """Read a line written by `to_line`. Raises `RecordError` on anything else."""
        try:
            data = json.loads(line)
            return cls(
                id=data["id"],
                question=data["question"],
                images=tuple(data["image"]),
                answer=data["answer"],
                continuations=data["num_mc_sequences"],
                solutions=tuple(LabelledSolution.from_json(s) for s in data["solutions"]),
                failed=data["failed"],
            )
        except (ValueError, KeyError, TypeError) as error:
            raise RecordError(f"not a problem record: {error!r} in {line[:80]!r}") from error


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
    with path.open(encoding="utf-8", newline="\n") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield ProblemRecord.from_line(line)
            except RecordError as error:
                raise RecordError(f"{path} line {number}: {error}") from error
