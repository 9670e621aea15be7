"""Searches beside the pool: at its tokens, kept, taken up again, graded as candidates are."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from tests.evaluate.conftest import critics, right_of, run_all, solve
from vprm_search.datasets.graders import grader_of
from vprm_search.errors import ConfigError, RecordError
from vprm_search.evaluate.critics import tabulate
from vprm_search.evaluate.folder import RunFolder
from vprm_search.evaluate.pooling import RecordedRun
from vprm_search.evaluate.search_records import Record, RecordFile
from vprm_search.evaluate.stages import Stages
from vprm_search.evaluate.strategies import searched
from vprm_search.testing import ScriptedPolicy
from vprm_search.types import ProposeRequest

NAMES = ("beam", "rebase")


def step(request: ProposeRequest, seed: int) -> str:
    """Write one step of a solution, or the whole."""
    if request.until == "end" and not request.steps:
        return solve(request, seed)
    if not request.steps:
        return f"Step 1: we add ({seed % 97})."
    return f"Step 2: it is done. Answer: {right_of(request.problem.question) + seed % 2}"


async def search(stages: Stages, policy: ScriptedPolicy, names: Any = NAMES) -> None:
    critic = critics()[0]
    await stages.search(names, lambda: policy, (critic, lambda: critic.scorer))


def records(stages: Stages) -> list[Record]:
    return sorted(RecordFile(stages.folder.path), key=lambda record: record.key)


async def test_searches_have_the_tokens_of_the_first_candidates(stages: Stages) -> None:
    stages.n = 8
    await run_all(stages)
    await search(stages, ScriptedPolicy(step))
    found = records(stages)
    places = [(n, name, size) for n in range(6) for name in NAMES for size in (4, 8)]
    assert [record.key for record in found] == sorted(places)
    candidates, _ = stages.candidates()
    for record in found:
        tokens = [c.generated_tokens for c in candidates.of(stages.problems[record.problem])]
        assert record.budget == sum(tokens[: record.size])
        assert 0 < record.usage.generated_tokens <= record.budget
    run = RecordedRun(stages.folder.path, stages.problems)
    table = tabulate(run.pools(8), 8)
    told = searched(stages.folder.path, stages.problems, table, grader_of(""))
    rows = {(row["name"], row["size"]): row for row in told["rows"] if row["headline"]}
    assert set(rows) == {(name, size) for name in ("best-of-n", *NAMES) for size in (4, 8)}
    for name, size in itertools.product(NAMES, (4, 8)):
        right = [
            one.choices["weighted-vote:product"].answer
            == str(right_of(f"What is {stages.problems[one.problem].id[1:]} + 3?"))
            for one in found
            if one.key[1:] == (name, size)
        ]
        assert rows[name, size]["accuracy"]["mean"] == sum(right) / 6
    asked = [sum(record.budget for record in found if record.key[1:] == ("beam", 4)) / 6]
    assert [rows["best-of-n", 4]["generated_tokens"]] == asked


async def test_what_is_searched_is_not_searched_again(stages: Stages) -> None:
    await run_all(stages)
    await search(stages, ScriptedPolicy(step), ["beam"])
    again = Stages(stages.problems, RunFolder(stages.folder.path), 4)
    policy = ScriptedPolicy(step)
    await search(again, policy, ["beam"])
    assert not policy.asked
    await search(again, policy, ["beam", "rebase"])
    assert policy.asked
    assert len(records(stages)) == 12


async def test_searches_of_a_folder_of_its_own_are_found(stages: Stages) -> None:
    await run_all(stages)
    await search(stages, ScriptedPolicy(step), ["beam"])
    found = records(stages)
    older = stages.folder.path / "searches"
    older.mkdir()
    (stages.folder.path / "records.jsonl").rename(older / "records.jsonl")
    policy = ScriptedPolicy(step)
    await search(Stages(stages.problems, RunFolder(stages.folder.path), 4), policy, ["beam"])
    assert not policy.asked
    assert records(stages) == found


async def test_failed_calls_of_searches_are_told(stages: Stages) -> None:
    await run_all(stages)

    def sometimes(request: ProposeRequest, seed: int) -> str | Exception:
        return step(request, seed) if seed % 5 else ConnectionError("down")

    await search(stages, ScriptedPolicy(sometimes), ["beam"])
    failed, count = stages.failures["beam@4"]
    assert 0 < failed < count
    again = Stages(stages.problems, RunFolder(stages.folder.path), 4)
    await search(again, ScriptedPolicy(step), ["beam"])
    assert not again.failures


async def test_searches_need_candidates_and_are_of_one_set(stages: Stages) -> None:
    with pytest.raises(RecordError, match="no candidates"):
        await search(stages, ScriptedPolicy(step))
    await run_all(stages)
    with pytest.raises(ConfigError, match="is the pool itself"):
        await search(stages, ScriptedPolicy(step), ["best-of-n"])
    with pytest.raises(ConfigError, match="no strategy chess"):
        await search(stages, ScriptedPolicy(step), ["chess"])
    more = Stages(stages.problems, RunFolder(stages.folder.path), 16)
    with pytest.raises(RecordError, match="row 1 has 4 of 8 candidates"):
        await search(more, ScriptedPolicy(step), ["beam"])
    fewer = Stages(stages.problems, RunFolder(stages.folder.path), 2)
    with pytest.raises(ConfigError, match="needs --n 4 at least"):
        await search(fewer, ScriptedPolicy(step), ["beam"])
