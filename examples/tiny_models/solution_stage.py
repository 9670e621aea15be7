"""Stage 3 of the tiny policy: sight and language together, on rendered problems of every family."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path

from transformers import InternVLForConditionalGeneration, PreTrainedTokenizerFast

from examples.tiny_models.language_stage import draw_batch
from examples.tiny_models.optimisation import Schedule, Stepper
from examples.tiny_models.policy_check import gold_probabilities, validation_problems
from examples.tiny_models.policy_data import BatchMaker
from examples.tiny_models.policy_model import image_features, language_loss, render_batch
from examples.tiny_models.progress import Progress
from vprm_search.tiny.world import FAMILIES

TEMPERATURE = 0.7


@dataclass(frozen=True, slots=True)
class SolutionPlan:
    """How long, on what mixture, and how often the model is checked."""

    schedule: Schedule = field(
        default_factory=lambda: Schedule(
            steps=650, matrix_rate=0.01, other_rate=1.5e-3, vision_factor=0.25, decay_share=0.7
        )
    )
    kinds: dict[str, float] = field(
        default_factory=lambda: {"arithmetic": 0.1, "caption": 0.05, "solution": 0.85}
    )
    families: dict[str, float] = field(
        default_factory=lambda: {"tiles": 0.25, "tiles-long": 0.5, "bars": 0.25}
    )
    rows: int = 28
    arithmetic_rows: int = 16
    check_every: int = 100
    checked_problems: int = 96


def train_solutions(
    model: InternVLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    plan: SolutionPlan,
    seed: int,
    log_folder: Path,
    name: str = "solutions",
) -> None:
    """Train the whole model in place."""
    rng = random.Random(f"{name}|{seed}")
    stepper, maker = Stepper(model, plan.schedule), BatchMaker(tokenizer)
    progress = Progress(log_folder, name, plan.schedule.steps)
    for step in range(plan.schedule.steps):
        if step % plan.check_every == 0:
            check(model, maker, plan.checked_problems, progress, step)
        (kind,) = rng.choices(list(plan.kinds), list(plan.kinds.values()))
        (family,) = rng.choices(list(plan.families), list(plan.families.values()))
        rows = plan.arithmetic_rows if kind == "arithmetic" else plan.rows
        batch = draw_batch(kind, maker, rows, rng, family)
        features = image_features(model, render_batch(batch)) if batch.problems else None
        loss = language_loss(model, batch, features)
        loss.backward()
        stepper.step(step)
        label = kind if kind == "arithmetic" else f"{kind}_{family}"
        progress.add(step, **{label: loss.item()})
    check(model, maker, plan.checked_problems, progress, plan.schedule.steps)


def check(
    model: InternVLForConditionalGeneration,
    maker: BatchMaker,
    count: int,
    progress: Progress,
    step: int,
) -> None:
    """Report the closed-form quality on validation problems of every family."""
    figures: dict[str, float] = {}
    for family in FAMILIES:
        problems = validation_problems(family, count)
        figures |= gold_probabilities(model, maker, problems, TEMPERATURE).figures(family)
    progress.report(step - 1, figures)
