"""Whole runs on published records, where they are at hand: text alone and with pictures."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from vprm_search.datasets.graders import grader_of
from vprm_search.datasets.problem_set import Item, read_problem_set
from vprm_search.evaluate.candidates import Sampling
from vprm_search.evaluate.critics import summarise, tabulate
from vprm_search.evaluate.folder import RunFolder
from vprm_search.evaluate.grading import ByRule
from vprm_search.evaluate.pooling import RecordedRun
from vprm_search.evaluate.prompts import PROMPTS
from vprm_search.evaluate.report import markdown
from vprm_search.evaluate.scoring import Critic
from vprm_search.evaluate.stages import Stages
from vprm_search.testing import ScriptedPolicy, ScriptedScorer
from vprm_search.types import ProposeRequest


@pytest.mark.parametrize(
    "name", ["mathverse_testmini_text_only.jsonl", "mathvision_vlmevalkit_form.tsv"]
)
def test_a_policy_that_knows_the_answers_is_right(
    name: str, shared_data: Path, tmp_path: Path
) -> None:
    problems = read_problem_set(shared_data / "samples" / name)
    known: dict[str, Item] = {}
    for item in problems:
        known[PROMPTS["cot"].put(problems.load(item).problem).question] = item

    def answer(request: ProposeRequest, seed: int) -> str:
        item = known[request.problem.question]
        assert len(request.images) == len(item.pictures)
        said = item.letters or item.answer
        return f"Step 1: I look.\n\nAnswer: \\boxed{{{said if seed % 2 else 'nothing'}}}"

    stages = Stages(problems, RunFolder(tmp_path), 3)
    scorer = ScriptedScorer(lambda r: 0.1 if "nothing" in r.steps[-1] else 0.9, identity="s")

    async def run() -> None:
        sampling = Sampling("answers", PROMPTS["cot"])
        await stages.generate(sampling, lambda: ScriptedPolicy(answer))
        await stages.score([Critic("prm", scorer, "s")])
        await stages.grade([ByRule(grader_of(problems.name))])

    asyncio.run(run())
    pools = list(RecordedRun(tmp_path, problems).pools(3))
    assert len(pools) == len(problems)
    for pool in pools:
        for candidate in pool.candidates:
            assert candidate.right == ("nothing" not in candidate.text), (pool.id, candidate)
    summary = summarise(tabulate(pools, 3, name=problems.name))
    rows = {(row["selector"], row["size"]): row["first"]["mean"] for row in summary["rows"]}
    assert rows["prm:last", 3] == rows["oracle", 3] > rows["pass@1", 1]
    assert "PRM, mean" in markdown(summary)
