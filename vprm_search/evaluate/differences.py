"""Where two runs over the same problems come to something else, and a page to look at it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vprm_search.answers import same_answer
from vprm_search.compare.intervals import bootstrap
from vprm_search.compare.report import cell, many
from vprm_search.datasets.problem_set import ProblemSet
from vprm_search.errors import RecordError
from vprm_search.evaluate.estimators import chosen
from vprm_search.evaluate.pool import PooledCandidate, PooledProblem
from vprm_search.report.problem_page import problem_page

KINDS = ("only the first is right", "only the second is right", "another answer, no more right")
"""How the choices of two runs can differ, in the order in which they are listed."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A problem on which two runs chose differently.

    Args:
        id: of the problem.
        kind: one of `KINDS`.
        first, second: what each run chose; None where it has no candidate.
    """

    id: str
    kind: str
    first: PooledCandidate | None
    second: PooledCandidate | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two runs, problem by problem.

    Args:
        differences: where they differ, by kind, then in the order of the first run.
        problems: that both have; only these are compared.
        apart: problems that only one of them has.
        accuracy: of each on the problems that both have.
        gain: second less first, `intervals.Estimate` as JSON, over questions.
    """

    differences: tuple[Difference, ...]
    problems: int
    apart: int
    accuracy: tuple[float, float]
    gain: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as plain JSON, without the whole solutions."""
        return {
            "problems": self.problems,
            "apart": self.apart,
            "accuracy": list(self.accuracy),
            "gain": self.gain,
            "kinds": dict(Counter(one.kind for one in self.differences)),
            "differences": [
                {"id": one.id, "kind": one.kind, "first": _told(one.first),
                 "second": _told(one.second)}
                for one in self.differences
            ],
        }  # fmt: skip


def _told(candidate: PooledCandidate | None) -> dict[str, Any] | None:
    if candidate is None:
        return None
    return {"index": candidate.index, "answer": candidate.answer, "right": candidate.right}


def compared(
    first: Iterable[PooledProblem],
    second: Iterable[PooledProblem],
    *,
    selectors: tuple[str, str],
    sizes: tuple[int, int],
) -> Comparison:
    """Compare what two runs choose; each pool is read once, one problem at a time.

    Args:
        first: the pools of one run.
        second: those of the other.
        selectors: how each chooses (`estimators.chosen`).
        sizes: among how many each chooses.

    Raises:
        RecordError: the runs have no problem in common.
        ConfigError: no such selector.
    """
    ours = {p.id: (p.group or p.id, chosen(p, selectors[0], sizes[0])) for p in first}
    rights: list[tuple[bool, bool]] = []
    groups, found, others = [], {}, 0
    for problem in second:
        if problem.id not in ours:
            others += 1
            continue
        group, one = ours[problem.id]
        other = chosen(problem, selectors[1], sizes[1])
        rights.append((one is not None and one.right, other is not None and other.right))
        groups.append(group)
        if kind := _kind(one, other):
            found[problem.id] = Difference(problem.id, kind, one, other)
    if not rights:
        least = " and ".join(map(str, dict.fromkeys(sizes)))
        raise RecordError(
            f"the two runs have no problem in common with N = {least} candidates: "
            f"{len(ours)} in the first, {others} in the second; give runs of one set, or a "
            "smaller --n"
        )
    ordered = sorted(
        (found[name] for name in ours if name in found), key=lambda one: KINDS.index(one.kind)
    )
    table = np.array(rights, dtype=np.float64)
    a, b = table.mean(axis=0).tolist()
    return Comparison(
        tuple(ordered),
        len(rights),
        len(ours) - len(rights) + others,
        (a, b),
        bootstrap(table[:, 1] - table[:, 0], groups).to_json(),
    )


def _kind(one: PooledCandidate | None, other: PooledCandidate | None) -> str:
    right = (one is not None and one.right, other is not None and other.right)
    if right[0] != right[1]:
        return KINDS[0] if right[0] else KINDS[1]
    said = ("" if one is None else one.answer, "" if other is None else other.answer)
    same = said[0] == said[1] or same_answer(*said)
    return "" if same or all(right) else KINDS[2]


def markdown(found: Comparison, names: tuple[str, str]) -> str:
    """Return the comparison as a table, one line per problem."""
    first, second = (100 * share for share in found.accuracy)
    gain = {key: 100 * value for key, value in found.gain.items()}
    kinds = Counter(one.kind for one in found.differences)
    lines = [
        f"{many(found.problems, 'problem')} in both runs, {found.apart} in one alone. "
        f"{cell(names[0])}: {first:.1f} %, {cell(names[1])}: {second:.1f} %; "
        f"{gain['mean']:+z.1f} points [{gain['low']:+z.1f}, {gain['high']:+z.1f}].",
        "",
        *(f"- {kind}: {kinds[kind]}" for kind in KINDS),
        "",
        f"| problem | | {cell(names[0])} | {cell(names[1])} |",
        "|---|---|---|---|",
        *(
            f"| {cell(one.id)} | {one.kind} | {cell(_answer(one.first))} "
            f"| {cell(_answer(one.second))} |"
            for one in found.differences
        ),
    ]
    return "\n".join(lines) + "\n"


def _answer(candidate: PooledCandidate | None) -> str:
    return "–" if candidate is None else candidate.answer or "no answer"


def page(
    found: Comparison, problems: ProblemSet, names: tuple[str, str], *, limit: int = 50
) -> str:
    """Return one HTML page with the first `limit` differences: pictures, and what each run chose.

    Pictures that are not there are said on the page.
    """
    items = {item.id: item for item in problems}
    shown = [one for one in found.differences if one.id in items][:limit]
    facts = [
        f"{many(found.problems, 'problem')} in both runs; shown are {len(shown)} of "
        f"{len(found.differences)} on which they differ",
        *(f"{kind}: {count}" for kind, count in Counter(d.kind for d in found.differences).items()),
    ]
    said = {one.id: _solutions(one, names) for one in shown}
    return problem_page(problems, [items[one.id] for one in shown], facts, said)


def _solutions(one: Difference, names: Sequence[str]) -> list[tuple[str, str]]:
    texts = []
    for name, candidate in zip(names, (one.first, one.second), strict=True):
        if candidate is None:
            texts.append((f"{name}: no candidate", ""))
        else:
            verdict = "right" if candidate.right else "wrong"
            told = f"{name}: {verdict}, candidate {candidate.index}, {_answer(candidate)}"
            texts.append((told, candidate.text))
    return texts
