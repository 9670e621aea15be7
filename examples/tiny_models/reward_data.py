"""The training batches of the tiny reward models: what kind, family and length at which step."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from examples.tiny_models.corruption import corrupt, misread_question
from examples.tiny_models.reward_rows import RowWriter, TrainingRow
from vprm_search.labelling.records import LabelledSolution, ProblemRecord
from vprm_search.tiny.scored import problem_of
from vprm_search.tiny.world import (
    FAMILIES,
    TinyProblem,
    exact_labels,
    generate,
    parse_answer,
)

LabelKind = Literal["monte_carlo", "exact", "outcome"]
"""Labels of the policy's solutions: Monte Carlo ("+" iff score > 0), exact, or the final answer."""
ENDLESS = 1 << 40
"""Rule-made problems are drawn from this many indices of the training split: never repeated."""
MISREAD_SHARE = 0.25
"""Share of rule-made solutions that answer a slightly different question."""
SHORT = 5
"""Steps of the shortest problems."""
_SHORTEST = 2  # steps; shorter "solutions" are broken samples


@dataclass(frozen=True)
class LabelledText:
    """A solution to a known problem with one label per step."""

    problem: TinyProblem
    steps: tuple[str, ...]
    labels: tuple[float | None, ...]


def labelled_texts(records: Iterable[ProblemRecord], kind: LabelKind) -> list[LabelledText]:
    """Read labelling records as training texts; each distinct solution once."""
    texts = []
    for record in records:
        problem = problem_of(record.id)
        for solution in record.solutions:
            if _SHORTEST <= len(solution.steps) <= len(problem.steps) + 1:
                steps = tuple(label.step for label in solution.steps)
                texts.append(LabelledText(problem, steps, _labels(problem, solution, kind)))
    return texts


def _labels(
    problem: TinyProblem, solution: LabelledSolution, kind: LabelKind
) -> tuple[float | None, ...]:
    if kind == "monte_carlo":
        signs = (label.positive() for label in solution.steps)
        return tuple(None if sign is None else float(sign) for sign in signs)
    if kind == "exact":
        return tuple(map(float, exact_labels(problem, [label.step for label in solution.steps])))
    return (float(solution.correct),) * len(solution.steps)


@dataclass(frozen=True)
class RewardBatches:
    """Makes the rows of training step i, a function of `seed` and i alone.

    A batch holds problems of one length (family and number of steps), so that little is padded, and
    as many of them as give about `verdicts` steps, so that every batch costs the same. Its rows are
    either rule-made solutions to fresh problems (a share `rule_share` of the batches) or the
    policy's solutions from `texts`. Before step `short_until` only the shortest problems are used.
    """

    writer: RowWriter
    seed: int
    verdicts: int = 264
    texts: Sequence[LabelledText] = ()
    rule_share: float = 1.0
    local_targets: bool = False
    short_until: int = 0
    families: tuple[str, ...] = FAMILIES

    def __call__(self, step: int) -> list[TrainingRow]:
        """Return the rows of one step."""
        rng = random.Random(f"reward-batches|{self.seed}|{step}")
        if not self.texts or rng.random() < self.rule_share:
            return self._rule_made(rng, step < self.short_until)
        same = self._buckets[_bucket(rng.choice(self.texts))]
        chosen = [rng.choice(same) for _ in range(self._count(len(same[0].steps)))]
        write = self.writer.write_local if self.local_targets else self.writer.write
        return [write(text.problem, text.steps, text.labels) for text in chosen]

    def _count(self, steps: int) -> int:
        return max(1, round(self.verdicts / steps))

    def _rule_made(self, rng: random.Random, short: bool) -> list[TrainingRow]:
        """Write fresh rule-made rows; the first fitting problem sets family and length."""
        first = self._problem(rng, self.families)
        while short and len(first.steps) > SHORT:
            first = self._problem(rng, self.families)
        rows = [self._rule_made_row(first, rng)]
        while len(rows) < self._count(len(first.steps)):
            problem = self._problem(rng, (first.family,))
            if len(problem.steps) == len(first.steps):
                rows.append(self._rule_made_row(problem, rng))
        return rows

    def _problem(self, rng: random.Random, families: tuple[str, ...]) -> TinyProblem:
        return generate(rng.choice(families), "train", rng.randrange(ENDLESS))

    def _rule_made_row(self, problem: TinyProblem, rng: random.Random) -> TrainingRow:
        changed = rng.random() < MISREAD_SHARE
        steps, _ = corrupt(misread_question(problem, rng) if changed else problem, rng)
        labels = exact_labels(problem, steps)
        if self.writer.supervision == "final_step":
            labels = [parse_answer(steps[-1]) == problem.answer] * len(steps)
        return self.writer.write_local(problem, steps, list(map(float, labels)))

    @cached_property
    def _buckets(self) -> dict[tuple[str, int], list[LabelledText]]:
        buckets: dict[tuple[str, int], list[LabelledText]] = {}
        for text in self.texts:
            buckets.setdefault(_bucket(text), []).append(text)
        return buckets


def _bucket(text: LabelledText) -> tuple[str, int]:
    return text.problem.family, len(text.steps)
