"""Measure a policy by sampling solutions of validation problems, and put it in its place."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from examples.tiny_models.policy_check import validation_problems
from vprm_search.tiny.sampler import SampleRequest, TinySampler
from vprm_search.tiny.world import FAMILIES, TinyProblem, parse_answer, render


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
