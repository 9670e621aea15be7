"""Monte Carlo labels in the tiny world.

The policy's own solutions to problems of a split, labelled by the paper's recipe
(`vprm_search.labelling`). Solutions are drawn at several temperatures in turn, so that the reward
model also knows the texts of a hotter search; continuations are drawn at one temperature.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from vprm_search.labelling.monte_carlo import LabelConfig, LabelTask, label_problems
from vprm_search.labelling.records import ProblemRecord, read_records
from vprm_search.tiny.policy import TinyPolicy
from vprm_search.tiny.scored import label_task, problem_of
from vprm_search.tiny.world import (
    FAMILIES,
    exact_labels,
    generate,
    parse_answer,
)
from vprm_search.types import Policy, Proposal, ProposeRequest

TEMPERATURES = (0.7, 1.0, 0.7, 1.2)
CONTINUATION_TEMPERATURE = 0.7


class TemperatureMix:
    """A policy that draws child i of a request at temperature i of a fixed cycle."""

    def __init__(self, policy: TinyPolicy, temperatures: Sequence[float]) -> None:
        self.policies = [policy.at_temperature(t) for t in temperatures]

    async def propose(self, requests: Sequence[ProposeRequest]) -> list[list[Proposal]]:
        """Answer all requests as `Policy.propose` does."""
        answers: list[list[Proposal]] = [[] for _ in requests]
        kinds = len(self.policies)
        parts = []
        for kind, policy in enumerate(self.policies):
            own = [
                ProposeRequest(r.problem, r.steps, r.seeds[kind::kinds], r.until, r.images)
                for r in requests
            ]
            parts.append(await policy.propose(own))
        for place, request in enumerate(requests):
            answers[place] = [
                parts[i % kinds][place][i // kinds] for i in range(len(request.seeds))
            ]
        return answers


def label_tasks(split: str, count: int, first: int = 0) -> Iterator[LabelTask]:
    """Yield `count` tasks, the families in turn, from problem number `first` of each on."""
    for place in range(count):
        family = FAMILIES[place % len(FAMILIES)]
        yield label_task(generate(family, split, first + place // len(FAMILIES)))


def answer_is_right(response: str, answer: str) -> bool:
    """Tell whether a response ends with the right answer."""
    return parse_answer(response) == answer


def label(
    out: Path,
    policy_dir: Path,
    *,
    problems: int = 3000,
    seed: int = 0,
    split: str = "train",
    first: int = 0,
    config: LabelConfig | None = None,
    report: Callable[[str], None] | None = None,
) -> dict[str, float]:
    """Label `problems` problems of a split into `out` (JSONL); resume; return the statistics.

    The policy's own continuations label its steps.
    """
    config = config or LabelConfig(seed=seed)
    policy = TinyPolicy.from_pretrained(policy_dir)
    completer = TinyPolicy.from_pretrained(policy_dir, temperature=CONTINUATION_TEMPERATURE)
    mix: Policy = TemperatureMix(policy, TEMPERATURES)
    settings = {
        "policy": policy_dir.name,
        "completer": (policy_dir).name,
        "temperatures": " ".join(map(str, TEMPERATURES)),
        "continuation_temperature": str(CONTINUATION_TEMPERATURE),
        "split": f"{split} from {first}",
    }
    began = time.monotonic()

    def progress(done: int) -> None:
        seconds = time.monotonic() - began
        tokens = policy.sampler.tokens_sampled + completer.sampler.tokens_sampled
        rate = tokens / max(seconds, 1e-9)
        if report:
            report(f"labelled {done}/{problems} problems, {seconds:.0f} s, {rate:.0f} tokens/s")

    asyncio.run(
        label_problems(
            label_tasks(split, problems, first),
            mix,
            answer_is_right,
            out,
            config,
            continuation_policy=completer,
            settings=settings,
            progress=progress,
        )
    )
    return label_statistics(read_records(out))


def label_statistics(records: Iterator[ProblemRecord]) -> dict[str, float]:
    """Compare Monte Carlo labels with the exact truth, over distinct solutions.

    Returns counts, the share of '+' (score > 0), agreement with exact prefix-correctness, and
    P(+ | right) and P(+ | wrong).
    """
    solutions = steps = positive = agree = right = right_positive = wrong_positive = 0
    for record in records:
        problem = problem_of(record.id)
        for solution in record.solutions:
            solutions += 1
            truth = exact_labels(problem, [label.step for label in solution.steps])
            for exact, found in zip(truth, solution.steps, strict=True):
                plus = bool(found.positive())
                steps += 1
                positive += plus
                agree += plus == exact
                right += exact
                right_positive += plus and exact
                wrong_positive += plus and not exact
    return {
        "solutions": solutions,
        "steps": steps,
        "plus_share": positive / max(1, steps),
        "agreement": agree / max(1, steps),
        "plus_if_right": right_positive / max(1, right),
        "plus_if_wrong": wrong_positive / max(1, steps - right),
    }
