"""Training rows for the tiny reward models: rule-made solutions and the policy's own, with targets.

Rule-made rows carry two token-level targets beside the verdicts (`expected`, `mismatch`). Both are
local: what a token should be given what is *written* before it, whatever was wrong earlier.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from transformers import PreTrainedTokenizerFast

from examples.tiny_models.rows import IGNORED, Supervision, TrainingRow, build_row
from examples.tiny_models.tokenizer import IMAGE_TOKENS
from vprm_search.errors import InputError
from vprm_search.scoring.prompt.layout import PrmLayout
from vprm_search.tiny.inputs import pixel_values
from vprm_search.tiny.world import TinyProblem, consistent_steps, render

TINY_LAYOUT = PrmLayout(system_prompt=None)
"""VisualPRM's conversation without the system turn (a tenth of the tiny model's row)."""


@dataclass(frozen=True)
class RowWriter:
    """Writes rows with one tokenizer, for one kind of supervision."""

    tokenizer: PreTrainedTokenizerFast
    supervision: Supervision = "every_step"

    def write(
        self, problem: TinyProblem, steps: Sequence[str], labels: Sequence[float | None]
    ) -> TrainingRow:
        """Write one labelled solution, with verdicts only."""
        return build_row(
            self.tokenizer,
            TINY_LAYOUT,
            problem.question,
            steps,
            labels,
            (IMAGE_TOKENS,),
            pixel_values([render(problem)]),
            self.supervision,
        )

    def write_local(
        self, problem: TinyProblem, steps: Sequence[str], labels: Sequence[float | None]
    ) -> TrainingRow:
        """Write one labelled solution with the token-level targets."""
        row = self.write(problem, steps, labels)
        full = build_row(
            self.tokenizer, TINY_LAYOUT, problem.question, steps, labels, (IMAGE_TOKENS,)
        )
        expected, mismatch = [IGNORED] * len(row.ids), [IGNORED] * len(row.ids)
        gold = consistent_steps(problem, steps)
        for step, right, read in zip(steps, gold, full.read_positions, strict=True):
            if right is not None:
                self._mark_step(row.ids, step, right, read, expected, mismatch)
        return replace(row, targets={"expected": expected, "mismatch": mismatch})

    def _mark_step(
        self,
        ids: Sequence[int],
        step: str,
        right: str,
        read: int,
        expected: list[int],
        mismatch: list[int],
    ) -> None:
        """Set the targets inside one step, up to and including the first token that deviates."""
        written = (*self._encode(step), self._turn_end)
        wanted = (*self._encode(right), self._turn_end)
        # The step ends four tokens before the '+': <|im_end|> \n <|im_start|> assistant\n.
        first = read - 3 - len(written) + 1
        if tuple(ids[first : first + len(written)]) != written:
            raise InputError(f"step {step!r} is not where the prompt builder put it")
        for place, (token, gold) in enumerate(zip(written, wanted, strict=False)):
            if place > 0:
                expected[first + place] = gold
            if token != gold:
                mismatch[first + place] = 1
                return
            if token in self._digits:
                mismatch[first + place] = 0

    @cached_property
    def _turn_end(self) -> int:
        return int(self.tokenizer.convert_tokens_to_ids("<|im_end|>"))

    @cached_property
    def _digits(self) -> frozenset[int]:
        words = [f"{space}{digit}" for digit in range(10) for space in ("", " ")]
        return frozenset(self._encode(word)[0] for word in words)

    @cached_property
    def _memo(self) -> dict[str, tuple[int, ...]]:
        return {}

    def _encode(self, text: str) -> tuple[int, ...]:
        if text not in self._memo:
            encoded = self.tokenizer.encode(
                text, add_special_tokens=False, split_special_tokens=True
            )
            self._memo[text] = tuple(encoded)
        return self._memo[text]
