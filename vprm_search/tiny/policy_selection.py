"""Choose which checkpoint becomes the policy, by sampling solutions of validation problems."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vprm_search.tiny.architecture import load_checkpoint
from vprm_search.tiny.policy_check import gold_probabilities, validation_problems
from vprm_search.tiny.policy_data import BatchMaker
from vprm_search.tiny.sampler import SampleRequest, TinySampler
from vprm_search.tiny.tokenizer import build_tokenizer
from vprm_search.tiny.world import FAMILIES, TinyProblem, parse_answer, render

WANTED_FAMILY, WANTED_RATE = "tiles", 0.46
"""Pass@1 that leaves room on both sides: for voting to help and for a critic to help more."""
ALLOWED_RATES = (0.27, 0.58)
"""Where every family should lie."""


def distance_from_wanted(rates: dict[str, float]) -> float:
    """Say how far pass rates per family are from what a policy to be criticised should have."""
    low, high = ALLOWED_RATES
    outside = sum(max(0.0, low - rate, rate - high) for rate in rates.values())
    return abs(rates[WANTED_FAMILY] - WANTED_RATE) + 2 * outside


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


def shortlist(
    checkpoints: Sequence[Path], problems: int, temperature: float, length: int
) -> list[Path]:
    """Order checkpoints by the closed-form probability of the gold solutions; keep the nearest."""
    maker = BatchMaker(build_tokenizer())
    chosen = {family: validation_problems(family, problems) for family in FAMILIES}
    distances: dict[Path, float] = {}
    for path in checkpoints:
        model = load_checkpoint(path)
        rates = {
            family: gold_probabilities(model, maker, chosen[family], temperature).solution
            for family in FAMILIES
        }
        distances[path] = distance_from_wanted(rates)
    return sorted(checkpoints, key=distances.__getitem__)[:length]


def choose_policy(
    checkpoints: Sequence[Path], problems: int, samples: int, temperature: float
) -> tuple[Path, PassRates]:
    """Sample from every checkpoint; return the one nearest to the wanted rates, and its rates."""
    measured = [measure_pass_rates(path, problems, samples, temperature) for path in checkpoints]
    distances = [distance_from_wanted(rates.pass_at_1) for rates in measured]
    best = distances.index(min(distances))
    return checkpoints[best], measured[best]


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
