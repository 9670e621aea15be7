"""Train the tiny policy from nothing: `python -m examples.tiny_models policy --out DIR`.

Stages, each resumed from its saved result: language (on symbolic pictures), vision, solutions (both
together, on rendered pictures) and practice (more, of the long ones), which gives the
``policy_strong``. The ``policy`` must err, and know how unsure it is: a new vision tower is trained
for the language model before practice and stopped while its sight is poor (sight), then the
language model learns how far to trust that sight (trust). Without the last stage it repeats the
same wrong reading in every sample. Schedules count steps, never seconds.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import InternVLForConditionalGeneration, PreTrainedTokenizerFast

from examples.tiny_models.model import build_model, save_checkpoint
from examples.tiny_models.policy_check import install, measure_pass_rates
from examples.tiny_models.policy_stages import (
    SIGHT_PARTS,
    LanguagePlan,
    Schedule,
    SolutionPlan,
    VisionPlan,
    train_language,
    train_solutions,
    train_vision,
)
from examples.tiny_models.tokenizer import build_tokenizer, save_tokenizer
from vprm_search.tiny.sampler import load_checkpoint


@dataclass(frozen=True, slots=True)
class PolicyPlan:
    """The whole recipe: every stage, and how pass@1 is measured on validation problems."""

    language: LanguagePlan = field(default_factory=LanguagePlan)
    vision: VisionPlan = field(default_factory=VisionPlan)
    solutions: SolutionPlan = field(default_factory=SolutionPlan)
    practice: SolutionPlan = field(
        default_factory=lambda: SolutionPlan(
            Schedule(
                steps=700, matrix_rate=0.015, other_rate=2e-3, vision_factor=0.25, decay_share=0.7
            ),
            families={"tiles": 0.2, "tiles-long": 0.65, "bars": 0.15},
        )
    )
    sight: VisionPlan = field(
        default_factory=lambda: VisionPlan(
            Schedule(steps=250, decay_share=0.0),
            families=("bars", "tiles", "bars", "tiles-long", "bars"),
        )
    )
    trust: SolutionPlan = field(
        default_factory=lambda: SolutionPlan(
            Schedule(
                steps=100, matrix_rate=0.006, other_rate=1e-3, vision_factor=0.0, decay_share=0.8
            )
        )
    )
    temperature: float = 0.7
    problems: int = 200
    samples: int = 4


Start = Callable[[], InternVLForConditionalGeneration]
Trainer = Callable[[InternVLForConditionalGeneration], None]


def run_stage(
    folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    start: Start,
    train: Trainer,
    dtype: torch.dtype = torch.float32,
) -> InternVLForConditionalGeneration:
    """Load a stage's saved result, or train it from `start` and save it."""
    if not folder.exists():
        model = copy.deepcopy(start())
        train(model)
        save_checkpoint(model, tokenizer, folder, dtype)
    return load_checkpoint(folder)


def train_policy(out: Path, plan: PolicyPlan, seed: int) -> None:
    """Run every stage that has no saved result yet; install ``policy`` and ``policy_strong``."""
    tokenizer = build_tokenizer()
    save_tokenizer(out / "tokenizer")
    stages, logs = out / "policy_stages", out / "policy_stages" / "logs"

    def stage(name: str, start: Start, train: Trainer) -> InternVLForConditionalGeneration:
        return run_stage(stages / name, tokenizer, start, train)

    language = stage(
        "language",
        lambda: build_model(tokenizer, seed=seed),
        lambda model: train_language(model, tokenizer, plan.language, seed, logs),
    )
    vision = stage(
        "vision",
        lambda: language,
        lambda model: train_vision(model, tokenizer, plan.vision, seed, logs),
    )
    solutions = stage(
        "solutions",
        lambda: vision,
        lambda model: train_solutions(model, tokenizer, plan.solutions, seed, logs),
    )
    stage(
        "practice",
        lambda: solutions,
        lambda model: train_solutions(model, tokenizer, plan.practice, seed, logs, "practice"),
    )
    sight = run_stage(
        stages / "sight",
        tokenizer,
        lambda: forget_sight(solutions, tokenizer, seed),
        lambda model: train_vision(model, tokenizer, plan.sight, seed, stages / "sights"),
        torch.float16,
    )
    stage(
        "trust",
        lambda: sight,
        lambda model: train_solutions(model, tokenizer, plan.trust, seed, logs, "trust"),
    )
    install_half_precision(out, "trust", "policy", plan)
    install_half_precision(out, "practice", "policy_strong", plan)


def forget_sight(
    model: InternVLForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, seed: int
) -> InternVLForConditionalGeneration:
    """Replace the vision tower and the projector by untrained ones, in place."""
    untrained = build_model(tokenizer, seed=seed).state_dict()
    sight = {
        name: value
        for name, value in untrained.items()
        if any(part in name for part in SIGHT_PARTS)
    }
    model.load_state_dict(sight, strict=False)
    return model


def install_half_precision(out: Path, stage: str, name: str, plan: PolicyPlan) -> None:
    """Save a stage's model in half precision as `name`, with its measured pass@1, once."""
    destination = out / name
    if destination.exists():
        return
    halved = out / "policy_stages" / f"{name}-fp16"
    save_checkpoint(load_checkpoint(out / "policy_stages" / stage), build_tokenizer(), halved)
    rates = measure_pass_rates(halved, plan.problems, plan.samples, plan.temperature)
    install(halved, destination, rates)
