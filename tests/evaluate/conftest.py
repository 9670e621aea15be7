"""A small set in a file, a policy and a scorer that say what a test wants, and a run over them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from vprm_search.datasets.graders import grader_of
from vprm_search.datasets.problem_set import ProblemSet, read_problem_set
from vprm_search.evaluate.candidates import Sampling
from vprm_search.evaluate.folder import RunFolder
from vprm_search.evaluate.grading import ByRule
from vprm_search.evaluate.prompts import PROMPTS
from vprm_search.evaluate.scoring import Critic
from vprm_search.evaluate.stages import Stages
from vprm_search.testing import NoisyScores, ScriptedPolicy, ScriptedScorer, chance
from vprm_search.types import ProposeRequest, ScoreRequest

SAMPLING = Sampling("scripted", PROMPTS["plain"])
MakeSet = Callable[[int], ProblemSet]


def write_set(path: Path, count: int) -> ProblemSet:
    """Write problems "What is 7 + 3?" with their answers, and read them."""
    rows = [{"id": f"p{n}", "question": f"What is {n} + 3?", "answer": str(n + 3)}
            for n in range(count)]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_problem_set(path)


def right_of(question: str) -> int:
    """Return the right answer of a question of the set."""
    return int(question.split()[2]) + 3


def solve(request: ProposeRequest, seed: int) -> str:
    """Write a solution that is right in half of the cases."""
    right = right_of(request.problem.question)
    said = right if chance("right", seed) < 0.5 else right + 1 + seed % 3
    return f"Step 1: we add ({seed % 97}).\n\nStep 2: it is done. Answer: {said}"


def is_right(request: ScoreRequest) -> bool:
    """Tell whether a solution is right."""
    return request.steps[-1].endswith(f" {right_of(request.problem.question)}")


def critics() -> list[Critic]:
    """Return a process and an outcome reward model that see the truth through noise."""
    steps = ScriptedScorer(NoisyScores(auc=0.9, depth=2, right=is_right), identity="noisy")
    whole = ScriptedScorer(NoisyScores(auc=0.7, depth=1, right=is_right, seed=1), identity="orm")
    return [Critic("prm", steps, "noisy"), Critic("orm", whole, "orm", "whole")]


async def run_all(stages: Stages, policy: ScriptedPolicy | None = None) -> Stages:
    """Make candidates, scores and grades."""
    await stages.generate(SAMPLING, lambda: policy or ScriptedPolicy(solve))
    await stages.score(critics())
    await stages.grade([ByRule(grader_of(""))])
    return stages


@pytest.fixture
def make_set(tmp_path: Path) -> MakeSet:
    """Return what writes a set of so many problems."""
    return lambda count: write_set(tmp_path / f"set{count}.jsonl", count)


@pytest.fixture
def stages(make_set: MakeSet, tmp_path: Path) -> Stages:
    """A run over six problems with four candidates each, of which nothing is done yet."""
    return Stages(make_set(6), RunFolder(tmp_path / "run"), 4)
