"""Score a benchmark's solutions, one line a solution, so that a killed run loses what is under way.

A line is `{"key": …, "row": …, "id": …, "scorer": …, "scores": [P('+') or null, …], "reasons":
[…]}`. The key names question, pictures and steps; scores of another scorer are refused.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from vprm_search.bench.labelled_solutions import LabelledSteps, StepBenchmark
from vprm_search.errors import RecordError
from vprm_search.ids import digest
from vprm_search.types import ScoreRequest, ScoreResult, StepScorer

Scored = dict[str, tuple[float | None, ...]]
"""The scores of a solution's steps by its key."""


class ScoreFile:
    """Scores that are there already, and where new ones go.

    Args:
        path: JSONL file; a last line that was cut is removed.
        scorer: names the scorer.

    Raises:
        RecordError: a damaged line, or scores of another scorer.
    """

    def __init__(self, path: Path, scorer: str) -> None:
        self.path, self._scorer = path, scorer
        self.known: Scored = {}
        self.reasons: dict[str, int] = {}
        if path.exists():
            self._drop_cut_line()
            with path.open("rb") as file:
                for number, line in enumerate(file, start=1):
                    self._take(line, number)

    def append(self, solution: LabelledSteps, result: ScoreResult) -> None:
        """Write the scores of one solution, in one piece."""
        scores = tuple(score.value for score in result.scores)
        line = {
            "key": key_of(solution),
            "row": solution.row,
            "id": solution.id,
            "scorer": self._scorer,
            "scores": scores,
            "reasons": sorted({s.reason for s in result.scores if s.value is None}),
        }
        with self.path.open("ab", buffering=0) as file:
            file.write((json.dumps(line, allow_nan=False) + "\n").encode())
            os.fsync(file.fileno())
        self._note(line)

    def _note(self, line: dict[str, Any]) -> None:
        self.known[line["key"]] = tuple(line["scores"])
        for reason in line["reasons"]:
            self.reasons[reason] = self.reasons.get(reason, 0) + 1

    def _take(self, line: bytes, number: int) -> None:
        where = f"{self.path}, line {number}"
        try:
            data = json.loads(line)
            scorer = data["scorer"]
            self._note(data)
        except (ValueError, KeyError, TypeError) as error:
            raise RecordError(f"{where}: not scores ({error}); remove the line") from error
        if scorer != self._scorer:
            raise RecordError(
                f"{where}: scores of another scorer ({scorer}); finish with that one, or give "
                "another --out folder"
            )

    def _drop_cut_line(self) -> None:
        with self.path.open("r+b") as file:
            data = file.read()
            file.truncate(data.rfind(b"\n") + 1)


def key_of(solution: LabelledSteps) -> str:
    """Name what is scored: row, question, pictures and steps."""
    asked = (str(solution.row), *solution.asked, "steps", *solution.steps)
    return digest("step-benchmark", *asked).hex()[:32]


async def score_benchmark(
    benchmark: StepBenchmark,
    solutions: Sequence[LabelledSteps],
    scorer: StepScorer,
    file: ScoreFile,
    *,
    batch: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> list[tuple[float | None, ...]]:
    """Return the scores of solutions, `[solutions][steps]`; those in the file are not made again.

    Args:
        benchmark: the benchmark they are of.
        solutions: what to score; solutions of one question share a call, its picture is opened
            once.
        scorer: the scorer; a step that it cannot score has None.
        file: where scores are kept.
        batch: solutions of a call.
        progress: is told how many solutions have scores, and of how many.

    Raises:
        ImageError: a picture cannot be opened.
    """
    left = [solution for solution in solutions if key_of(solution) not in file.known]
    left.sort(key=lambda solution: (solution.asked, solution.row))
    done = len(solutions) - len(left)
    for group in _batches(left, batch):
        requests: list[ScoreRequest] = [benchmark.request(solution) for solution in group]
        for solution, result in zip(group, await scorer.score(requests), strict=True):
            file.append(solution, result)
        done += len(group)
        if progress is not None:
            progress(done, len(solutions))
    return [file.known[key_of(solution)] for solution in solutions]


def _batches(items: Sequence[LabelledSteps], size: int) -> Iterator[list[LabelledSteps]]:
    left = iter(items)
    while group := list(islice(left, size)):
        yield group
