"""Rule-made wrong solutions: reading and arithmetic slips at random steps, exactly labelled."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import replace

from vprm_search.tiny.world import (
    LARGEST_RESULT,
    OPERATORS,
    TinyProblem,
    answer_suffix,
    apply_operator,
    arithmetic_step,
    exact_labels,
    in_range,
    reading_step,
)

CLEAN_SHARE = 0.25
"""Share of solutions without any error."""
LATER_ERROR_SHARE = 0.2
"""Chance that a step after the first error is wrong by itself."""
RANDOM_DIGIT_SHARE = 0.4
"""Share of wrong readings that are any other digit; the rest are near or another value's."""
WRONG_OPERAND_SHARE = 0.25
"""Share of wrong calculations that copy an operand wrongly instead of missing the result."""


def corrupt(problem: TinyProblem, rng: random.Random) -> tuple[list[str], list[bool]]:
    """Write a solution with rule-made errors; return its steps and their exact labels.

    The first error is uniform over the steps (none in a quarter of the solutions); what follows an
    error is consistent with it, except where a second error is made.
    """
    length = 2 * len(problem.operators) + 1
    first = length if rng.random() < CLEAN_SHARE else rng.randrange(length)

    def slips(position: int) -> bool:
        return position == first or (position > first and rng.random() < LATER_ERROR_SHARE)

    steps: list[str] = []

    def read(name: str) -> int:
        right = dict(zip(problem.names, problem.values, strict=True))[name]
        value = _wrong_reading(problem, right, rng) if slips(len(steps)) else right
        steps.append(reading_step(len(steps) + 1, name, value))
        return value

    running = read(problem.operands[0])
    for operator, name in zip(problem.operators, problem.operands[1:], strict=True):
        operand = read(name)
        number = len(steps) + 1
        if slips(len(steps)):
            step, running = _wrong_calculation(number, running, operator, operand, rng)
        else:
            result = apply_operator(running, operator, operand)
            result = result if in_range(result) else rng.randint(0, LARGEST_RESULT)
            step = arithmetic_step(number, running, operator, operand, result)
            running = result
        steps.append(step)
    steps[-1] += answer_suffix(running)
    return steps, exact_labels(problem, steps)


def _wrong_reading(problem: TinyProblem, right: int, rng: random.Random) -> int:
    """Draw a wrong digit: any, or a sloppy reader's (off by one, or another object's)."""
    anything = [digit for digit in range(1, 10) if digit != right]
    if rng.random() < RANDOM_DIGIT_SHARE:
        return rng.choice(anything)
    likely = [*problem.values, max(1, right - 1), min(9, right + 1)]
    return rng.choice([digit for digit in likely if digit != right])


def _wrong_calculation(
    number: int, left: int, operator: str, right: int, rng: random.Random
) -> tuple[str, int]:
    """Write a wrong calculation; return the step and the result that it leaves behind."""
    result = apply_operator(left, operator, right)
    if in_range(result) and rng.random() < WRONG_OPERAND_SHARE:
        if rng.random() < 0.6:
            left = rng.choice([digit for digit in range(1, 10) if digit != left])
        else:
            right = rng.choice([digit for digit in range(1, 10) if digit != right])
        return arithmetic_step(number, left, operator, right, result), result
    near = [result + delta for delta in (-10, -2, -1, 1, 2, 10)] + [rng.randint(0, LARGEST_RESULT)]
    wrong = [value for value in near if in_range(value) and value != result]
    written = rng.choice(wrong) if wrong else (result + 1) % (LARGEST_RESULT + 1)
    return arithmetic_step(number, left, operator, right, written), written


# --- another question ---


_TRIES = 8


def misread_question(problem: TinyProblem, rng: random.Random) -> TinyProblem:
    """Return the problem with one operand or operator changed, or cut short.

    All results of the changed question are writable (`in_range`); the picture is the same.
    """
    for _ in range(_TRIES):
        changed = _change(problem, rng)
        if changed != problem and _is_writable(changed):
            return changed
    return _cut(problem, rng)


def _change(problem: TinyProblem, rng: random.Random) -> TinyProblem:
    kind = rng.choice(("operand", "operator", "cut"))
    if kind == "operand":
        place = rng.randrange(len(problem.operands))
        operands = list(problem.operands)
        operands[place] = rng.choice(problem.names)
        return replace(problem, operands=tuple(operands))
    if kind == "operator":
        place = rng.randrange(len(problem.operators))
        operators = list(problem.operators)
        operators[place] = rng.choice(OPERATORS)
        return replace(problem, operators=tuple(operators))
    return _cut(problem, rng)


def _cut(problem: TinyProblem, rng: random.Random) -> TinyProblem:
    kept = rng.randint(1, len(problem.operators) - 1)
    return replace(
        problem, operands=problem.operands[: kept + 1], operators=problem.operators[:kept]
    )


def _is_writable(problem: TinyProblem) -> bool:
    value_of = dict(zip(problem.names, problem.values, strict=True))
    result = value_of[problem.operands[0]]
    for operator, name in zip(problem.operators, problem.operands[1:], strict=True):
        result = apply_operator(result, operator, value_of[name])
        if not in_range(result):
            return False
    return True


# --- what each step should be ---

_READING = re.compile(r"^Step \d+: [a-z]+ = (\d+)\.")
_ARITHMETIC = re.compile(r"^Step \d+: \d+ [-+x] \d+ = (\d+)\.")


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
