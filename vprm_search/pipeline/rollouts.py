"""Sample solutions, and continuations of partial solutions, from any policy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vprm_search.ids import digest
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
