"""The rendered world written as VisualProcessBench is: solutions with a label for every step.

The packaged policy writes the solutions, at two temperatures, and the world knows the truth of each
step: it is right (1) if it follows from what stands before it, a mistake included, and wrong (-1)
otherwise; where nothing follows from what stands there it is neither (0). As in the published
file, labels are of the step alone, so a right one may stand behind a wrong one.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from examples.tiny_models.corruption import consistent_steps
from examples.tiny_models.problem_files import png_of
from vprm_search import ids
from vprm_search.images.normalise import normalise_image
from vprm_search.steps import split_steps
from vprm_search.tiny.policy import TinyPolicy
from vprm_search.tiny.weights import weights_path
from vprm_search.tiny.world import TinyProblem, generate, render
from vprm_search.types import Problem, ProposeRequest

SOURCES = (("tiles", 0.7), ("tiles", 1.2), ("tiles-long", 0.7), ("bars", 0.7), ("bars", 1.2))
"""Family and temperature: five, as the published file has."""


def write_step_benchmark(
    folder: Path, *, problems: int, samples: int = 2, split: str = "test", first: int = 0
) -> int:
    """Write `test.jsonl` and its pictures; return the number of solutions.

    Args:
        folder: where they go.
        problems: of each source.
        samples: solutions of a problem; equal ones are written once.
        split: of the world.
        first: the first problem of each family.
    """
    folder.mkdir(parents=True, exist_ok=True)
    policy = TinyPolicy.from_pretrained(weights_path("policy"))
    count = 0
    with (folder / "test.jsonl").open("w", encoding="utf-8") as file:
        for family, temperature in SOURCES:
            source = f"{family}@{temperature:g}"
            (folder / "images" / source).mkdir(parents=True, exist_ok=True)
            tasks = [generate(family, split, first + number) for number in range(problems)]
            written = _solutions(tasks, policy.at_temperature(temperature), samples)
            for problem, texts in zip(tasks, written, strict=True):
                name = f"images/{source}/{problem.index}.png"
                (folder / name).write_bytes(png_of(problem))
                for record in _records(problem, texts, name, source):
                    file.write(json.dumps(record) + "\n")
                    count += 1
    return count


def labels_of(problem: TinyProblem, steps: list[str]) -> list[int]:
    """Return 1, -1 or 0 for every step of a solution."""
    follows = consistent_steps(problem, steps)
    return [0 if right is None else 1 if step.strip() == right else -1
            for step, right in zip(steps, follows, strict=True)]  # fmt: skip


def _solutions(problems: list[TinyProblem], policy: TinyPolicy, samples: int) -> list[list[str]]:
    requests = []
    for problem in problems:
        image = normalise_image(render(problem))
        asked = Problem(problem.question, (image.digest,))
        seeds = tuple(ids.child_seed(problem.id, number) for number in range(samples))
        requests.append(ProposeRequest(asked, (), seeds, until="end", images=(image,)))
    replies = asyncio.run(policy.propose(requests))
    return [[proposal.text for proposal in reply if proposal.text] for reply in replies]


def _records(
    problem: TinyProblem, texts: list[str], picture: str, source: str
) -> Iterator[dict[str, Any]]:
    for text in dict.fromkeys(texts):
        steps = list(split_steps(text))
        yield {
            "image": [picture],
            "question": problem.question,
            "answer": problem.answer,
            "response": {"steps": steps, "process_correctness": labels_of(problem, steps)},
            "policy_model": "tiny",
            "data_source": source,
        }
