"""What a comparison is measured on: problems with their right answers, and the models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from vprm_search.answers import answer_classes, extract_answer
from vprm_search.types import ImageData, Policy, Problem, StepScorer


@dataclass(frozen=True, slots=True)
class Task:
    """A problem with its images and its right answer."""

    problem: Problem
    images: tuple[ImageData, ...]
    answer: str


@dataclass(frozen=True, slots=True)
class Ground:
    """What a shard is measured on.

    `new_scorer` is called for every cell: what one strategy had scored must not be another's gain.
    `extract` reads the answer out of a whole solution.
    """

    tasks: Sequence[Task]
    policy: Policy
    new_scorer: Callable[[], StepScorer]
    extract: Callable[[str], str | None] = extract_answer


class World(Protocol):
    """Problems and models. It is sent to other processes and loaded there, shard by shard."""

    @property
    def size(self) -> int:
        """The number of problems."""
        ...

    def identity(self) -> dict[str, Any]:
        """Say as plain JSON what is measured: equal identities give equal results."""
        ...

    def load(self, start: int, stop: int) -> Ground:
        """Return the problems from `start` up to `stop`, and the models."""
        ...


def is_right(task: Task, answer: str | None) -> bool:
    """Return whether an answer equals the task's."""
    if answer is None or answer == task.answer:
        return answer is not None
    first, second = answer_classes([answer, task.answer])
    return first is not None and first == second
