"""The stages of the tiny policy's training: language, vision, solutions.

*Language*: arithmetic, binding and grammar, learned on symbolic pictures. *Vision*: the stand-in
for a pre-trained vision tower; every image token learns to say what is in its cell, in the language
model's own words: a colour (or nothing) and a digit by cosine similarity with the token embeddings,
and the symbolic picture itself by regression (for a bar chart only the bottom token of a column
answers, so a bar reads like a tile). *Solutions*: both together, on rendered pictures.
"""

from __future__ import annotations

import json
import random
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.nn import functional
from transformers import InternVLForConditionalGeneration, PreTrainedTokenizerFast

from examples.tiny_models.muon import Muon
from examples.tiny_models.policy_batches import (
    EMPTY,
    Batch,
    BatchMaker,
    Boards,
    SymbolIds,
    boards,
    image_features,
    language_loss,
    noisy_symbols,
    render_batch,
    symbolic_features,
)
from examples.tiny_models.policy_check import gold_probabilities, validation_problems
from vprm_search.tiny.sampler import pixel_values
from vprm_search.tiny.world import FAMILIES, generate, render

# --- optimisation: Muon for matrices, AdamW for the rest, one fixed schedule ---


MAX_GRADIENT_NORM = 1.0
WEIGHT_DECAY = 0.01


@dataclass(frozen=True, slots=True)
class Schedule:
    """Learning rates and their course over the steps: warm up, hold, decay linearly."""

    steps: int
    matrix_rate: float = 0.02
    other_rate: float = 3e-3
    vision_factor: float = 1.0
    warmup_steps: int = 50
    decay_share: float = 0.3
    final_factor: float = 0.05

    def factor(self, step: int) -> float:
        """Return the multiple of the full rates to use at `step` (counted from 0)."""
        warmup = min(1.0, (step + 1) / self.warmup_steps)
        remaining = (self.steps - step) / max(1.0, self.steps * self.decay_share)
        return warmup * max(self.final_factor, min(1.0, remaining))


class Stepper:
    """Updates the chosen part of a model, and freezes the rest."""

    def __init__(
        self,
        model: torch.nn.Module,
        schedule: Schedule,
        trained: tuple[str, ...] = ("",),
        extra: tuple[torch.nn.Parameter, ...] = (),
    ) -> None:
        """Train the parameters whose name contains one of `trained`, and the `extra` ones."""
        self._schedule = schedule
        groups: dict[tuple[bool, bool], list[torch.nn.Parameter]] = {}
        groups[False, False] = list(extra)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(any(part in name for part in trained))
            if parameter.requires_grad:
                is_matrix = parameter.ndim == 2 and "embed" not in name
                groups.setdefault((is_matrix, "vision_tower" in name), []).append(parameter)
        self._parameters = [parameter for group in groups.values() for parameter in group]
        self._optimisers = _optimisers(groups, schedule)

    def step(self, index: int) -> None:
        """Apply the gradients at the rates of step `index`, and clear them."""
        torch.nn.utils.clip_grad_norm_(self._parameters, MAX_GRADIENT_NORM)
        factor = self._schedule.factor(index)
        for optimiser in self._optimisers:
            for group in optimiser.param_groups:
                group["lr"] = group["full_rate"] * factor
            optimiser.step()
            optimiser.zero_grad()


def _optimisers(
    groups: dict[tuple[bool, bool], list[torch.nn.Parameter]], schedule: Schedule
) -> list[torch.optim.Optimizer]:
    """Build Muon and AdamW over groups keyed (matrix?, vision?), each with its full rate."""
    by_kind: dict[bool, list[dict[str, object]]] = {True: [], False: []}
    for (is_matrix, is_vision), parameters in groups.items():
        rate = schedule.matrix_rate if is_matrix else schedule.other_rate
        rate *= schedule.vision_factor if is_vision else 1.0
        if parameters:
            by_kind[is_matrix].append({"params": parameters, "lr": rate, "full_rate": rate})
    return [
        Muon(by_kind[True], weight_decay=WEIGHT_DECAY),
        torch.optim.AdamW(by_kind[False], betas=(0.9, 0.97), weight_decay=WEIGHT_DECAY),
    ]


# --- progress ---


SMOOTHING = 0.95


class Progress:
    """Smooths losses, prints them now and then, and appends every report to ``metrics.jsonl``."""

    def __init__(self, folder: Path, stage: str, steps: int, every: int = 25) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "metrics.jsonl"
        self._stage, self._steps, self._every = stage, steps, every
        self._smooth: dict[str, float] = {}
        self._started = time.monotonic()

    def add(self, step: int, **losses: float) -> None:
        """Note the losses of one step (counted from 0) and report if it is time to."""
        for name, value in losses.items():
            old = self._smooth.get(name, value)
            self._smooth[name] = SMOOTHING * old + (1 - SMOOTHING) * value
        if (step + 1) % self._every == 0:
            self.report(step, self._smooth)

    def report(self, step: int, figures: dict[str, float]) -> None:
        """Print and store figures at a step."""
        seconds = time.monotonic() - self._started
        rounded = {name: round(value, 4) for name, value in figures.items()}
        shown = "  ".join(f"{name} {value:g}" for name, value in rounded.items())
        print(f"{self._stage} {step + 1}/{self._steps}  {seconds:.0f} s  {shown}", flush=True)
        record = {"stage": self._stage, "step": step + 1, "seconds": round(seconds, 1), **rounded}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


# --- language ---


LANGUAGE_PARTS = ("language_model",)


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
    training = Stepper(model, plan.schedule, LANGUAGE_PARTS)
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


# --- vision ---


SIGHT_PARTS = ("vision_tower", "multi_modal_projector")


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
    training = Stepper(model, plan.schedule, SIGHT_PARTS, extra=(readout.scale,))
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


# --- solutions ---


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
