"""Training rows of a reward model: tokens, pictures, and a label at each read position.

Rows are written by the scorer's own prompt builder, so training and scoring see equal tokens. Two
things differ from VisualPRM's public code on purpose: its history holds the true verdicts in
training and '+' at scoring time; ours always holds '+', as at scoring time.

Rule-made rows of the tiny world carry two token-level targets beside the verdicts (`expected`,
`mismatch`). Both are local: what a token should be given what is *written* before it, whatever was
wrong earlier.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from examples.tiny_models.corruption import consistent_steps
from examples.tiny_models.tokenizer import IMAGE_TOKENS
from vprm_search.errors import InputError
from vprm_search.scoring.prompt.layout import PrmLayout, build_prompt
from vprm_search.scoring.prompt.text_encoder import Tokenizer
from vprm_search.tiny.sampler import pixel_values
from vprm_search.tiny.world import TinyProblem, render

# --- rows of any reward model ---


Supervision = Literal["every_step", "final_step"]
"""Which verdicts are trained: all of them (a process reward model), or only the last one.

An outcome reward model is trained on "final_step": the layout keeps one turn per step and only the
verdict behind the last step carries a label, so process and outcome models differ in supervision
and in nothing else, and the outcome model's last step score is its verdict on the solution.
"""
IGNORED = -100


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """One labelled solution.

    Attributes:
        ids: tokens of the whole conversation, `[tokens]`.
        read_positions: where the verdicts are read, `[labels]`.
        labels: probability that the verdict is '+', in [0, 1], `[labels]`.
        pixels: normalised tiles `[tiles, channels, height, width]`, or None without an image.
        targets: further per-token targets for auxiliary losses, each `[tokens]`, `IGNORED` where
            there is none.
    """

    ids: tuple[int, ...]
    read_positions: tuple[int, ...]
    labels: tuple[float, ...]
    pixels: Tensor | None = field(default=None, repr=False, compare=False)
    targets: Mapping[str, Sequence[int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows padded on the right.

    Attributes:
        ids: `[rows, tokens]`.
        reads: (row, position) of every verdict, `[verdicts, 2]`.
        labels: probability of '+', `[verdicts]`.
        pixels: all tiles in row order, `[tiles, channels, height, width]`, or None.
        targets: auxiliary targets by name, each `[rows, tokens]`.
    """

    ids: Tensor
    reads: Tensor
    labels: Tensor
    pixels: Tensor | None
    targets: Mapping[str, Tensor]


def build_row(
    tokenizer: Tokenizer,
    layout: PrmLayout,
    question: str,
    steps: Sequence[str],
    labels: Sequence[float | None],
    image_token_counts: Sequence[int] = (),
    pixels: Tensor | None = None,
    supervision: Supervision = "every_step",
) -> TrainingRow:
    """Write one row with a label per step, None for a step that has no label.

    Raises `InputError` if there is not one label (or None) per step.
    """
    if len(labels) != len(steps):
        raise InputError(f"{len(steps)} steps have {len(labels)} labels; give one per step")
    prompt = build_prompt(tokenizer, layout, question, steps, image_token_counts)
    first = len(steps) - 1 if supervision == "final_step" else 0
    pairs = list(zip(prompt.read_positions, labels, strict=True))[first:]
    known = [(read, float(label)) for read, label in pairs if label is not None]
    return TrainingRow(
        ids=prompt.ids,
        read_positions=tuple(read for read, _ in known),
        labels=tuple(label for _, label in known),
        pixels=pixels,
    )


def collate(rows: Sequence[TrainingRow], pad_id: int) -> Batch:
    """Pad rows to one batch. Raises `InputError` on an empty batch."""
    if not rows:
        raise InputError("a batch needs at least one row")
    width = max(len(row.ids) for row in rows)
    names = sorted({name for row in rows for name in row.targets})
    pixels = [row.pixels for row in rows if row.pixels is not None]
    reads = [(place, read) for place, row in enumerate(rows) for read in row.read_positions]
    return Batch(
        ids=_padded([row.ids for row in rows], width, pad_id),
        reads=torch.tensor(reads, dtype=torch.long).reshape(-1, 2),
        labels=torch.tensor([label for row in rows for label in row.labels]),
        pixels=torch.cat(pixels) if pixels else None,
        targets={
            name: _padded([row.targets.get(name, ()) for row in rows], width, IGNORED)
            for name in names
        },
    )


def _padded(rows: Sequence[Sequence[int]], width: int, fill: int) -> Tensor:
    table = torch.full((len(rows), width), fill, dtype=torch.long)
    for place, row in enumerate(rows):
        table[place, : len(row)] = torch.tensor(row, dtype=torch.long)
    return table


# --- rows of the tiny world ---


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
