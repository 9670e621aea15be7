"""Solutions to a slightly different question: another object, another operator, or an early end.

Policies do not only misread values and miscalculate; they also lose their place in the question.
The gold solution of a changed question is exactly such a solution to the asked one.
"""

from __future__ import annotations

import random
from dataclasses import replace

from vprm_search.tiny.problem import OPERATORS, TinyProblem, apply_operator, in_range

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
