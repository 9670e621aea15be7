"""One problem of the tiny visual-maths world: picture, question, solution, and what is right.

`exact_labels` judges written solutions from the ground truth alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

STEP_SEPARATOR = "\n\n"
COLOURS: tuple[str, ...] = ("red", "blue", "green", "yellow", "purple", "black")
OPERATORS: tuple[str, ...] = ("+", "-", "x")
SMALLEST_RESULT, LARGEST_RESULT = 0, 99
_ANSWER = re.compile(r"Answer: (\d+)\s*$")
_READING = re.compile(r"^Step \d+: [a-z]+ = (\d+)\.")
_ARITHMETIC = re.compile(r"^Step \d+: \d+ [-+x] \d+ = (\d+)\.")


def apply_operator(left: int, operator: str, right: int) -> int:
    """Return ``left operator right`` for one of ``+``, ``-`` and ``x``."""
    if operator == "+":
        return left + right
    if operator == "-":
        return left - right
    if operator == "x":
        return left * right
    raise ValueError(f"unknown operator {operator!r}; expected one of {', '.join(OPERATORS)}")


def in_range(result: int) -> bool:
    """Tell whether a result can be written in the world's language (0 to 99)."""
    return SMALLEST_RESULT <= result <= LARGEST_RESULT


@dataclass(frozen=True, slots=True)
class TinyProblem:
    """A picture of coloured values and a question about them; only the picture tells the values.

    `names` and `values` say what is drawn; the expression is evaluated strictly from left to right:
    ``((operands[0] operators[0] operands[1]) operators[1] operands[2]) ...``.
    """

    id: str
    family: str
    split: str
    index: int
    names: tuple[str, ...]
    values: tuple[int, ...]
    operands: tuple[str, ...]
    operators: tuple[str, ...]
    image_seed: int

    @property
    def expression(self) -> str:
        """The asked expression, fully parenthesised except for the outermost pair."""
        text = self.operands[0]
        for position, operator in enumerate(self.operators):
            left = f"({text})" if position else text
            text = f"{left} {operator} {self.operands[position + 1]}"
        return text

    @property
    def question(self) -> str:
        """The question: colours and operators only, never a value."""
        return f"What is {self.expression}?"

    @property
    def steps(self) -> tuple[str, ...]:
        """The gold steps: read the first value, then read and calculate once per operator."""
        value_of = dict(zip(self.names, self.values, strict=True))
        result = value_of[self.operands[0]]
        steps = [reading_step(1, self.operands[0], result)]
        for position, operator in enumerate(self.operators):
            name = self.operands[position + 1]
            left, right = result, value_of[name]
            result = apply_operator(left, operator, right)
            steps.append(reading_step(len(steps) + 1, name, right))
            steps.append(arithmetic_step(len(steps) + 1, left, operator, right, result))
        steps[-1] += answer_suffix(result)
        return tuple(steps)

    @property
    def solution(self) -> str:
        """The gold steps joined by a blank line."""
        return STEP_SEPARATOR.join(self.steps)

    @property
    def answer(self) -> str:
        """The final result, in decimal digits."""
        return self.steps[-1].rsplit(" ", 1)[-1]

    @property
    def content(self) -> str:
        """What the problem *is*, whatever its id or rendering: splits are told apart by it."""
        shown = ",".join(
            f"{name}={value}" for name, value in sorted(zip(self.names, self.values, strict=True))
        )
        return f"{self.family}|{shown}|{self.expression}"

    def to_json(self) -> dict[str, Any]:
        """Return a plain-JSON record; `from_json` reads it back unchanged."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
        }

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> TinyProblem:
        """Rebuild a problem from `to_json`."""
        fields: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in record.items()
        }
        return cls(**fields)


def reading_step(number: int, name: str, value: int) -> str:
    """Write the step that reads one value off the picture."""
    return f"Step {number}: {name} = {value}."


def arithmetic_step(number: int, left: int, operator: str, right: int, result: int) -> str:
    """Write the step that calculates one intermediate result."""
    return f"Step {number}: {left} {operator} {right} = {result}."


def answer_suffix(result: int) -> str:
    """Write what the last step carries after its calculation."""
    return f" Answer: {result}"


# --- judging what was written ---


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
