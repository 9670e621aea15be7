"""A real pretrained language model as policy and judge, on a vLLM server."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.real_models.competition import competition_problems
from tests.real_models.searches import bare, check_nothing_lost, report, solve
from tests.real_models.server import self_judge
from tests.real_models.word_problems import WORD_PROBLEMS, WordProblem
from vprm_search.search import BeamSearch, BestOfN, WeightedVote
from vprm_search.testing import ScriptedScorer, chance
from vprm_search.types import StepScorer

pytestmark = pytest.mark.slow

STEP_SEARCH = BeamSearch(width=2, expand=2, max_depth=4)


@pytest.fixture(scope="module")
def competition(vllm_python: Path) -> tuple[WordProblem, ...]:
    return competition_problems(vllm_python)


async def test_best_of_8_loses_no_candidate(
    address: str, competition: tuple[WordProblem, ...]
) -> None:
    await best_of_8(address, [*WORD_PROBLEMS[::6], competition[0]])


async def test_a_step_search_by_its_own_judgement_loses_no_candidate(
    address: str, competition: tuple[WordProblem, ...]
) -> None:
    judge = self_judge(address)
    await step_search(address, [WORD_PROBLEMS[0], competition[0]], judge, "judged by itself")
    assert (judge.mode, judge.meter.failed_calls) == ("logprobs", 0)


@pytest.mark.soak
async def test_both_on_all_problems(address: str, competition: tuple[WordProblem, ...]) -> None:
    """Steps are scored by chance here: a judge reads 6,000 tokens a problem, one step at a time."""
    by_chance = ScriptedScorer(lambda request: chance("score", *request.steps))
    for name, problems in (("ours", WORD_PROBLEMS), ("CHAMP", competition)):
        await best_of_8(address, problems, name)
        await step_search(address, problems, by_chance, f"scored by chance, {name}")


async def best_of_8(address: str, problems: Sequence[WordProblem], name: str = "some") -> None:
    solved = await solve(address, problems, BestOfN(8))
    print("\n" + json.dumps(report(f"best of 8, majority, {name}", solved)))
    check_nothing_lost(solved)
    paths = [run.tree.steps(leaf.id) for run in solved.runs for leaf in run.tree.ended()]
    assert len(paths) == len(solved.wire.texts) == 8 * len(problems)
    assert {bare(text) for text in solved.wire.texts} == {bare("".join(path)) for path in paths}


async def step_search(
    address: str, problems: Sequence[WordProblem], scorer: StepScorer, name: str
) -> None:
    solved = await solve(address, problems, STEP_SEARCH, scorer=scorer, selector=WeightedVote())
    print("\n" + json.dumps(report(f"beam 2x2, {name}", solved)))
    check_nothing_lost(solved)
    replies = "\0".join(map(bare, solved.wire.texts))
    for run in solved.runs:
        steps = [record for record in run.tree if record.is_step]
        assert all(record.score is not None for record in steps), "a step has no score"
        assert all(bare(record.text) in replies for record in steps), "nobody wrote a step"
        assert len(run.tree) == 1 + run.result.usage.candidates
    assert len(solved.wire.texts) >= sum(run.result.usage.candidates for run in solved.runs)
