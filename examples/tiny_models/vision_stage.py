"""Stage 2 of the tiny policy: vision pre-training, the stand-in for a pre-trained vision tower.

Every image token learns to say what is in its cell, in the language model's own words: a colour
(or nothing) and a digit by cosine similarity with the token embeddings, and the symbolic picture
itself by regression. For a bar chart only the bottom token of a column answers, so a bar reads
like a tile.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.nn import functional
from transformers import InternVLForConditionalGeneration, PreTrainedTokenizerFast

from examples.tiny_models.optimisation import Schedule, Stepper
from examples.tiny_models.policy_data import EMPTY, Boards, boards
from examples.tiny_models.policy_model import SymbolIds, image_features, symbolic_features
from examples.tiny_models.progress import Progress
from vprm_search.tiny.inputs import pixel_values
from vprm_search.tiny.rendering import render
from vprm_search.tiny.world import generate

TRAINED = ("vision_tower", "multi_modal_projector")


@dataclass(frozen=True, slots=True)
class VisionPlan:
    """How long the vision tower is pre-trained, and on which pictures, `pictures` a step.

    `families` is gone through in turn, one family a step.
    """

    schedule: Schedule = field(default_factory=lambda: Schedule(steps=900, decay_share=0.5))
    families: tuple[str, ...] = ("tiles", "bars", "tiles-long", "bars")
    pictures: int = 64
    regression_weight: float = 0.5


class CellReadout:
    """Judges image tokens against the words for what their cells hold."""

    def __init__(self, embedding: torch.Tensor, symbols: SymbolIds) -> None:
        self.scale = torch.nn.Parameter(torch.tensor(8.0))
        self._embedding, self._symbols = embedding, symbols
        words = torch.cat([symbols.colours, torch.tensor([symbols.placeholder])])
        self._colour_words = functional.normalize(embedding[words], dim=-1)
        self._digit_words = functional.normalize(embedding[symbols.digits], dim=-1)

    def losses(self, features: torch.Tensor, layout: Boards) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the classification and the regression loss of `[pictures, 16, width]` tokens."""
        colours, digits = self._logits(features)
        occupied = layout.colours != EMPTY
        nothing = colours.shape[-1] - 1
        wanted = torch.where(occupied, layout.colours, nothing)
        naming = functional.cross_entropy(
            colours.flatten(0, 1), wanted.flatten()
        ) + functional.cross_entropy(digits[occupied], layout.digits[occupied])
        ideal = symbolic_features(self._embedding, self._symbols, layout)
        distance = (features - ideal).pow(2).mean(-1) / ideal.pow(2).mean()
        return naming, distance[occupied].mean() + distance[~occupied].mean()

    def accuracy(self, features: torch.Tensor, layout: Boards) -> tuple[float, float]:
        """Return the share of occupied cells whose colour, and whose digit, is named rightly."""
        colours, digits = self._logits(features)
        occupied = layout.colours != EMPTY
        return (
            float((colours.argmax(-1) == layout.colours)[occupied].float().mean()),
            float((digits.argmax(-1) == layout.digits)[occupied].float().mean()),
        )

    def _logits(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        directions = functional.normalize(features, dim=-1) * self.scale
        return directions @ self._colour_words.T, directions @ self._digit_words.T


def train_vision(
    model: InternVLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    plan: VisionPlan,
    seed: int,
    folder: Path,
) -> None:
    """Train the vision tower and the projector in place; the language model stays as it is.

    Kept checkpoints go to ``folder/step-NNNN``, progress to ``folder``.
    """
    rng = random.Random(f"vision|{seed}")
    embedding = model.get_input_embeddings().weight.detach().clone()
    readout = CellReadout(embedding, SymbolIds(tokenizer))
    training = Stepper(model, plan.schedule, TRAINED, extra=(readout.scale,))
    progress = Progress(folder, "vision", plan.schedule.steps)
    for step in range(plan.schedule.steps):
        family = plan.families[step % len(plan.families)]
        problems = [generate(family, "train", rng.getrandbits(40)) for _ in range(plan.pictures)]
        pixels = pixel_values([render(problem) for problem in problems])
        features = image_features(model, pixels)
        layout = boards(problems)
        naming, distance = readout.losses(features, layout)
        (naming + plan.regression_weight * distance).backward()
        training.step(step)
        colour, digit = readout.accuracy(features.detach(), layout)
        progress.add(
            step,
            naming=naming.item(),
            distance=distance.item(),
            **{f"{family}_colour": colour, f"{family}_digit": digit},
        )
