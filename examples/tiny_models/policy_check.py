"""How good a policy checkpoint is: in closed form while it trains, by sampling when it is done.

At temperature T a sampled solution equals the gold one with the product of its tokens' tempered
probabilities, so one teacher-forced pass per problem gives the expected share of flawless samples
without sampling. It is a lower bound of pass@1 (a wrong path can still reach the right answer).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import InternVLForConditionalGeneration

from examples.tiny_models.policy_batches import (
    IGNORED,
    BatchMaker,
    image_features,
    logits_and_targets,
    render_batch,
)
from vprm_search.tiny.sampler import SampleRequest, TinySampler
from vprm_search.tiny.world import FAMILIES, TinyProblem, generate, parse_answer, render

# --- closed form ---


ROWS_PER_PASS = 64


@dataclass(frozen=True, slots=True)
class GoldProbabilities:
    """Mean probabilities of a right reading, calculation, and whole solution."""

    reading: float
    arithmetic: float
    solution: float

    def figures(self, prefix: str) -> dict[str, float]:
        """Return the three figures under prefixed names."""
        return {
            f"{prefix}_read": self.reading,
            f"{prefix}_calc": self.arithmetic,
            f"{prefix}_gold": self.solution,
        }


def validation_problems(family: str, count: int) -> list[TinyProblem]:
    """Return the first `count` validation problems of a family."""
    return [generate(family, "validation", index) for index in range(count)]


@torch.inference_mode()
def gold_probabilities(
    model: InternVLForConditionalGeneration,
    batches: BatchMaker,
    problems: Sequence[TinyProblem],
    temperature: float,
) -> GoldProbabilities:
    """Measure the probability of the gold steps and solutions of problems at a temperature."""
    separator = batches.encode([".\n\n"])[0][0]
    model.eval()
    readings: list[float] = []
    calculations: list[float] = []
    solutions: list[float] = []
    for start in range(0, len(problems), ROWS_PER_PASS):
        batch = batches.solutions(problems[start : start + ROWS_PER_PASS])
        features = image_features(model, render_batch(batch).to(model.dtype))
        logits, targets = logits_and_targets(model, batch, features)
        chosen = (logits / temperature).log_softmax(-1).gather(1, targets[:, None]).squeeze(1)
        lengths = (batch.targets[:, 1:] != IGNORED).sum(1).tolist()
        for scores, tokens in zip(chosen.split(lengths), targets.split(lengths), strict=True):
            steps = _step_probabilities(scores.tolist(), tokens.tolist(), separator)
            readings += [p for i, p in enumerate(steps) if i == 0 or i % 2]
            calculations += [p for i, p in enumerate(steps) if i and i % 2 == 0]
            solutions.append(float(scores.sum().exp()))
    means = [sum(values) / len(values) for values in (readings, calculations, solutions)]
    return GoldProbabilities(*means)


def _step_probabilities(scores: list[float], tokens: list[int], separator: int) -> list[float]:
    """Cut token log-probabilities into steps (after each separator) and multiply within them."""
    sums = [0.0]
    for score, token in zip(scores, tokens, strict=True):
        sums[-1] += score
        if token == separator:
            sums.append(0.0)
    return [float(torch.tensor(value).exp()) for value in sums]


# --- sampled ---


@dataclass(frozen=True, slots=True)
class PassRates:
    """Measured pass@1 of one checkpoint per family, and how that was measured."""

    checkpoint: str
    temperature: float
    problems: int
    samples: int
    pass_at_1: dict[str, float]


def sampled_answers(
    sampler: TinySampler, problems: Sequence[TinyProblem], samples: int, temperature: float
) -> list[list[str | None]]:
    """Sample whole solutions; return the final answer of each, None where none was given."""
    features = sampler.encode_images([render(problem) for problem in problems])
    requests = [
        SampleRequest(
            question=problem.question,
            seeds=tuple(range(row * samples, (row + 1) * samples)),
            image_features=features[row : row + 1],
            temperature=temperature,
        )
        for row, problem in enumerate(problems)
    ]
    return [[parse_answer(sample.text) for sample in row] for row in sampler.sample(requests)]


def measure_pass_rates(
    checkpoint: Path, problems: int, samples: int, temperature: float
) -> PassRates:
    """Measure pass@1 on the first validation problems of every family."""
    sampler = TinySampler.from_pretrained(checkpoint)
    rates: dict[str, float] = {}
    for family in FAMILIES:
        chosen = validation_problems(family, problems)
        answers = sampled_answers(sampler, chosen, samples, temperature)
        hits = [
            answer == problem.answer
            for problem, row in zip(chosen, answers, strict=True)
            for answer in row
        ]
        rates[family] = sum(hits) / len(hits)
    return PassRates(checkpoint.name, temperature, problems, samples, rates)


def install(checkpoint: Path, destination: Path, rates: PassRates) -> None:
    """Copy a checkpoint to its final place, with what was measured about it."""
    if destination.exists():
        shutil.rmtree(destination)
    shutil.copytree(checkpoint, destination)
    record = {
        "checkpoint": rates.checkpoint,
        "split": "validation",
        "temperature": rates.temperature,
        "problems_per_family": rates.problems,
        "samples_per_problem": rates.samples,
        "pass_at_1": {family: round(rate, 4) for family, rate in rates.pass_at_1.items()},
    }
    text = json.dumps(record, indent=2) + "\n"
    (destination / "validation.json").write_text(text, encoding="utf-8")
