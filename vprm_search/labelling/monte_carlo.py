"""Monte Carlo step labels: the recipe behind VisualPRM400K (arXiv 2503.10291 §3), for any policy.

For every step of every sampled solution the policy continues the solution from there sixteen times;
the step's score is the share of continuations that reach the right answer, and it is '+' when the
score is above 0. All solutions of a batch of problems advance together, one step a round, and each
distinct prefix of a problem is continued once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from vprm_search.errors import InputError
from vprm_search.ids import digest
from vprm_search.labelling.records import (
    LabelledSolution,
    ProblemRecord,
    RecordFile,
    StepLabel,
)
from vprm_search.steps import join_steps, split_steps
from vprm_search.types import ImageData, Policy, Problem, ProposeRequest

AnswerCheck = Callable[[str, str], bool]
"""(whole response, reference answer) → is its final answer right?"""
_SEED_MASK = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class LabelTask:
    """A problem whose answer is known. `images` are the problem's images, in its order."""

    id: str
    problem: Problem
    answer: str
    images: tuple[ImageData, ...] = ()


@dataclass(frozen=True, slots=True)
class Solution:
    """A distinct solution; `copies` samples had this text; `finish` is "stop" or "length"."""

    response: str
    steps: tuple[str, ...]
    finish: str
    correct: bool
    copies: int = 1


@dataclass(frozen=True, slots=True)
class Sampled:
    """The distinct solutions of one problem, in order of appearance, and the number of failures."""

    solutions: tuple[Solution, ...]
    failed: int


def seeds(run_seed: int, count: int, *parts: str) -> tuple[int, ...]:
    """Return `count` sampling seeds for the text named by `parts`, independent of all others."""
    return tuple(
        int.from_bytes(digest("rollout", run_seed, i, *parts)[:8], "big") & _SEED_MASK
        for i in range(count)
    )


Key = tuple[int, tuple[str, ...]]
"""A prefix of a problem in a batch: the problem's place and the steps."""


class LabelConfig(BaseModel):
    """The labelling recipe; the defaults are the paper's.

    With `early_stop` the steps after the first one with score 0 are not continued and get score 0
    (their `total` is 0). The paper's published run did not stop early.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    solutions: int = Field(default=4, ge=1)
    continuations: int = Field(default=16, ge=1)
    max_steps: int = Field(default=12, ge=1)
    early_stop: bool = False
    seed: int = 0


async def label_problems(
    tasks: Iterable[LabelTask],
    policy: Policy,
    check: AnswerCheck,
    out: Path,
    config: LabelConfig | None = None,
    *,
    continuation_policy: Policy | None = None,
    batch_size: int = 72,
    settings: dict[str, str] | None = None,
    progress: Callable[[int], None] | None = None,
) -> RecordFile:
    """Label every task once and write one record each to `out`; resume where a run was cut.

    `policy` writes the solutions and `continuation_policy` (default: the same) the continuations.
    `settings` are further facts (policy, temperatures) that a resumed run must share. `progress`
    is told the number of finished problems. `tasks` may be lazy: one batch is held at a time.

    Raises:
        RecordError: `out` belongs to a run with other settings, or is damaged.
        InputError: two tasks have the same id.
    """
    config = config or LabelConfig()
    file = RecordFile(out, config.model_dump() | (settings or {}))
    finished = frozenset(file.done)
    seen: set[str] = set()

    def new_tasks() -> Iterable[LabelTask]:
        for task in tasks:
            if task.id in seen:
                raise InputError(f"two tasks have the id {task.id!r}; ids must be unique")
            seen.add(task.id)
            if task.id not in finished:
                yield task

    stream = iter(new_tasks())
    while batch := list(islice(stream, batch_size)):
        for record in await label_batch(batch, policy, check, config, continuation_policy):
            file.append(record)
        if progress:
            progress(len(file.done))
    return file


async def label_batch(
    tasks: Sequence[LabelTask],
    policy: Policy,
    check: AnswerCheck,
    config: LabelConfig,
    continuation_policy: Policy | None = None,
) -> list[ProblemRecord]:
    """Sample and label the solutions of one batch of problems."""
    sampled = await sample_solutions(
        policy, tasks, config.solutions, check, config.seed, config.max_steps
    )
    counts: dict[Key, tuple[int, int]] = {}
    for depth in count(1):
        wanted = _prefixes(sampled, depth, counts, config.early_stop)
        if not wanted:
            break
        found = await count_right_continuations(
            continuation_policy or policy,
            [(tasks[place], steps) for place, steps in wanted],
            config.continuations,
            check,
            config.seed,
        )
        counts.update(zip(wanted, found, strict=True))
        if depth >= config.max_steps:
            break
    return [
        _record(task, place, found, counts, config)
        for place, (task, found) in enumerate(zip(tasks, sampled, strict=True))
    ]


def _prefixes(
    sampled: Sequence[Sampled], depth: int, counts: dict[Key, tuple[int, int]], early_stop: bool
) -> list[Key]:
    """Return the distinct prefixes of `depth` steps that need continuations, in order."""
    wanted: dict[Key, None] = {}
    for place, found in enumerate(sampled):
        for solution in found.solutions:
            if depth > len(solution.steps) or _is_ending(solution, depth):
                continue
            if early_stop and _stopped(place, solution, depth, counts):
                continue
            wanted[place, solution.steps[:depth]] = None
    return list(wanted)


def _is_ending(solution: Solution, depth: int) -> bool:
    """Tell whether the step at `depth` ends the solution by the policy's own decision."""
    return depth == len(solution.steps) and solution.finish == "stop"


def _stopped(
    place: int, solution: Solution, depth: int, counts: dict[Key, tuple[int, int]]
) -> bool:
    """Tell whether a step before `depth` has no right continuation."""
    return any(counts.get((place, solution.steps[:d]), (0, 0))[0] == 0 for d in range(1, depth))


def _record(
    task: LabelTask,
    place: int,
    sampled: Sampled,
    counts: dict[Key, tuple[int, int]],
    config: LabelConfig,
) -> ProblemRecord:
    return ProblemRecord(
        id=task.id,
        question=task.problem.question,
        images=task.problem.images,
        answer=task.answer,
        continuations=config.continuations,
        solutions=tuple(
            LabelledSolution(
                solution.response,
                tuple(_step_labels(place, solution, counts, config)),
                solution.finish,
                solution.correct,
                solution.copies,
            )
            for solution in sampled.solutions
        ),
        failed=sampled.failed,
    )


def _step_labels(
    place: int, solution: Solution, counts: dict[Key, tuple[int, int]], config: LabelConfig
) -> Iterable[StepLabel]:
    """Label the steps: share of right continuations; the end of an ended solution by itself."""
    for depth, step in enumerate(solution.steps, start=1):
        if config.early_stop and _stopped(place, solution, depth, counts):
            yield StepLabel(step, 0.0)
        elif _is_ending(solution, depth):
            yield StepLabel(step, float(solution.correct))
        else:
            right, total = counts[place, solution.steps[:depth]]
            yield StepLabel(step, right / total if total else None, right, total)


# --- rollouts ---


async def sample_solutions(
    policy: Policy,
    tasks: Sequence[LabelTask],
    n: int,
    check: AnswerCheck,
    run_seed: int,
    max_steps: int | None = 12,
) -> list[Sampled]:
    """Sample `n` solutions of each task; equal texts are kept once and counted.

    Solutions are split at blank lines and merged to at most `max_steps` steps (`split_steps`).
    """
    requests = [
        ProposeRequest(
            task.problem, (), seeds(run_seed, n, "solution", task.id), "end", task.images
        )
        for task in tasks
    ]
    answers = await policy.propose(requests)
    return [
        _distinct(task, [(p.text, p.finish) for p in proposals], check, max_steps)
        for task, proposals in zip(tasks, answers, strict=True)
    ]


async def count_right_continuations(
    policy: Policy,
    prefixes: Sequence[tuple[LabelTask, tuple[str, ...]]],
    n: int,
    check: AnswerCheck,
    run_seed: int,
) -> list[tuple[int, int]]:
    """Continue each (task, steps) `n` times to the end; return (right, sampled) for each.

    A continuation that failed (a dead request) is not counted; one that was cut by the token limit
    or has no answer is counted as wrong.
    """
    requests = [
        ProposeRequest(
            task.problem, steps, seeds(run_seed, n, "continue", task.id, *steps), "end", task.images
        )
        for task, steps in prefixes
    ]
    counts: list[tuple[int, int]] = []
    answers = await policy.propose(requests)
    for (task, steps), proposals in zip(prefixes, answers, strict=True):
        texts = [join_steps((*steps, p.text)) for p in proposals if p.finish != "error"]
        counts.append((sum(check(text, task.answer) for text in texts), len(texts)))
    return counts


def _distinct(
    task: LabelTask,
    texts: Sequence[tuple[str, str]],
    check: AnswerCheck,
    max_steps: int | None,
) -> Sampled:
    usable = Counter((text, finish) for text, finish in texts if finish != "error")
    solutions = []
    for (text, finish), copies in usable.items():
        steps = tuple(split_steps(text, max_steps=max_steps))
        if steps:
            right = finish == "stop" and check(text, task.answer)
            solutions.append(Solution(text, steps, finish, right, copies))
    kept = sum(solution.copies for solution in solutions)
    return Sampled(tuple(solutions), len(texts) - kept)
