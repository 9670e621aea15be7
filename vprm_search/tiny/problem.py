"""One problem of the tiny visual-maths world: the picture's values, the question, the solution."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

STEP_SEPARATOR = "\n\n"
COLOURS: tuple[str, ...] = ("red", "blue", "green", "yellow", "purple", "black")
OPERATORS: tuple[str, ...] = ("+", "-", "x")
SMALLEST_RESULT, LARGEST_RESULT = 0, 99


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
