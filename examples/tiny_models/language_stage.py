"""Stage 1 of the tiny policy: arithmetic, binding and grammar, learned on symbolic pictures."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import InternVLForConditionalGeneration, PreTrainedTokenizerFast

from examples.tiny_models.optimisation import Schedule, Stepper
from examples.tiny_models.policy_data import Batch, BatchMaker
from examples.tiny_models.policy_model import SymbolIds, language_loss, noisy_symbols
from examples.tiny_models.progress import Progress
from vprm_search.tiny.world import FAMILIES, generate

TRAINED = ("language_model",)


@dataclass(frozen=True, slots=True)
class LanguagePlan:
    """How long and on what mixture the language model is trained without seeing."""

    schedule: Schedule = field(default_factory=lambda: Schedule(steps=1100))
    kinds: dict[str, float] = field(
        default_factory=lambda: {"arithmetic": 0.25, "caption": 0.15, "solution": 0.6}
    )
    rows: int = 28
    arithmetic_rows: int = 16
    noise: float = 0.3


def train_language(
    model: InternVLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    plan: LanguagePlan,
    seed: int,
    log_folder: Path,
) -> None:
    """Train the language model in place."""
    rng = random.Random(f"language|{seed}")
    generator = torch.Generator().manual_seed(seed)
    training = Stepper(model, plan.schedule, TRAINED)
    symbols, maker = SymbolIds(tokenizer), BatchMaker(tokenizer)
    progress = Progress(log_folder, "language", plan.schedule.steps)
    for step in range(plan.schedule.steps):
        (kind,) = rng.choices(list(plan.kinds), list(plan.kinds.values()))
        rows = plan.arithmetic_rows if kind == "arithmetic" else plan.rows
        batch = draw_batch(kind, maker, rows, rng)
        features = (
            noisy_symbols(model, symbols, batch, plan.noise, generator) if batch.problems else None
        )
        loss = language_loss(model, batch, features)
        loss.backward()
        training.step(step)
        progress.add(step, **{kind: loss.item()})


def draw_batch(
    kind: str, maker: BatchMaker, rows: int, rng: random.Random, family: str | None = None
) -> Batch:
    """Draw fresh rows: ``arithmetic``, ``caption`` or ``solution``; of one family, or mixed."""
    if kind == "arithmetic":
        return maker.arithmetic(rows, rng)
    problems = [
        generate(family or rng.choice(FAMILIES), "train", rng.getrandbits(40)) for _ in range(rows)
    ]
    return maker.captions(problems, rng) if kind == "caption" else maker.solutions(problems)
