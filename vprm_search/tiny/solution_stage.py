"""Stage 3 of the tiny policy: sight and language together, on rendered problems of every family."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path

from transformers import InternVLForConditionalGeneration, PreTrainedTokenizerFast

from vprm_search.tiny.architecture import save_checkpoint
from vprm_search.tiny.language_stage import draw_batch
from vprm_search.tiny.optimisation import Schedule, Stepper
from vprm_search.tiny.policy_check import gold_probabilities, validation_problems
from vprm_search.tiny.policy_data import BatchMaker
from vprm_search.tiny.policy_model import image_features, language_loss, render_batch
from vprm_search.tiny.progress import Progress
from vprm_search.tiny.world import FAMILIES

TEMPERATURE = 0.7


@dataclass(frozen=True, slots=True)
class SolutionPlan:
    """How long, on what mixture, and at which steps a checkpoint is kept."""

    schedule: Schedule = field(
        default_factory=lambda: Schedule(steps=1200, vision_factor=0.25, decay_share=0.5)
    )
    kinds: dict[str, float] = field(
        default_factory=lambda: {"arithmetic": 0.1, "caption": 0.05, "solution": 0.85}
    )
    families: dict[str, float] = field(default_factory=lambda: dict.fromkeys(FAMILIES, 1.0))
    rows: int = 28
    arithmetic_rows: int = 16
    early_checkpoints: tuple[int, ...] = (5, 10, 20, 30, 40, 60, 80, 100, 150, 200)
    checkpoint_every: int = 100
    checked_problems: int = 96

    def keeps(self, step: int) -> bool:
        """Tell whether the model is saved and checked after `step` steps."""
        return step in self.early_checkpoints or step % self.checkpoint_every == 0


def train_solutions(
    model: InternVLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    plan: SolutionPlan,
    seed: int,
    folder: Path,
) -> None:
    """Train the whole model in place; checkpoints go to ``folder/step-NNNN`` on the way."""
    rng = random.Random(f"solutions|{seed}")
    stepper, maker = Stepper(model, plan.schedule), BatchMaker(tokenizer)
    progress = Progress(folder, "solutions", plan.schedule.steps)
    for step in range(plan.schedule.steps):
        if plan.keeps(step):
            check(model, maker, plan.checked_problems, progress, step)
            save_checkpoint(model, tokenizer, folder / f"step-{step:04d}")
            model.train()
        (kind,) = rng.choices(list(plan.kinds), list(plan.kinds.values()))
        (family,) = rng.choices(list(plan.families), list(plan.families.values()))
        rows = plan.arithmetic_rows if kind == "arithmetic" else plan.rows
        batch = draw_batch(kind, maker, rows, rng, family)
        features = image_features(model, render_batch(batch)) if batch.problems else None
        loss = language_loss(model, batch, features)
        loss.backward()
        stepper.step(step)
        name = kind if kind == "arithmetic" else f"{kind}_{family}"
        progress.add(step, **{name: loss.item()})
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
