"""Exact judgement of written solutions in the tiny world, from the ground truth alone."""

from __future__ import annotations

import re
from collections.abc import Sequence

from vprm_search.tiny.problem import (
    TinyProblem,
    answer_suffix,
    apply_operator,
    arithmetic_step,
    in_range,
    reading_step,
)

_ANSWER = re.compile(r"Answer: (\d+)\s*$")
_READING = re.compile(r"^Step \d+: [a-z]+ = (\d+)\.")
_ARITHMETIC = re.compile(r"^Step \d+: \d+ [-+x] \d+ = (\d+)\.")


def parse_answer(text: str) -> str | None:
    """Return the digits after a solution's final ``Answer:``, or None if it ends without one."""
    match = _ANSWER.search(text)
    return match.group(1) if match else None


def exact_labels(problem: TinyProblem, steps: Sequence[str]) -> list[bool]:
    """Label each step: True while every step so far equals the gold solution.

    A solution that stops early has its last label False: ending there is the error.
    """
    gold = problem.steps
    labels: list[bool] = []
    correct = True
    for position, step in enumerate(steps):
        correct = correct and position < len(gold) and step.strip() == gold[position]
        labels.append(correct)
    if labels and correct and len(steps) < len(gold):
        labels[-1] = False
    return labels


def _written_number(pattern: re.Pattern[str], step: str) -> int | None:
    match = pattern.match(step)
    return int(match.group(1)) if match else None


def consistent_steps(problem: TinyProblem, steps: Sequence[str]) -> list[str | None]:
    """Say what each step should be, given what is *written* before it.

    A reading always has one right text; a calculation is judged on the numbers written before it,
    so a step which is faithful to an earlier mistake is right here and wrong for `exact_labels`.
    None: no such step exists (past the end, unreadable history, or a result outside 0..99).
    """
    value_of = dict(zip(problem.names, problem.values, strict=True))
    last = 2 * len(problem.operators)
    expected: list[str | None] = []
    running: int | None = None
    operand: int | None = None
    for position, step in enumerate(steps):
        if position > last:
            expected.append(None)
        elif position == 0 or position % 2 == 1:
            name = problem.operands[(position + 1) // 2]
            expected.append(reading_step(position + 1, name, value_of[name]))
            operand = _written_number(_READING, step)
            running = operand if position == 0 else running
        else:
            expected.append(_calculation(problem, position, running, operand))
            running = _written_number(_ARITHMETIC, step)
    return expected


def _calculation(
    problem: TinyProblem, position: int, running: int | None, operand: int | None
) -> str | None:
    """Write the calculation step at `position` from the two numbers written before it."""
    if running is None or operand is None:
        return None
    operator = problem.operators[position // 2 - 1]
    result = apply_operator(running, operator, operand)
    if not in_range(result):
        return None
    step = arithmetic_step(position + 1, running, operator, operand, result)
    is_last = position == 2 * len(problem.operators)
    return step + answer_suffix(result) if is_last else step
