"""Runs that are killed with SIGKILL end as an undisturbed one: nothing is lost or done twice."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from examples.tiny_models.problem_files import draw, write_problems
from tests.evaluate.conftest import MakeSet, run_all, solve
from vprm_search.datasets.problem_set import ProblemSet
from vprm_search.evaluate.folder import RunFolder
from vprm_search.evaluate.pool import PooledProblem
from vprm_search.evaluate.pooling import RecordedRun
from vprm_search.evaluate.stages import Stages
from vprm_search.testing import ScriptedPolicy
from vprm_search.types import ProposeRequest

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
KILLS = 10
CLOCKS = ("seconds", "counts")
"""What a line says of time and of work done: a process remembers pictures it has encoded."""
FILES = ("candidates.jsonl", "scores-prm.jsonl", "scores-orm.jsonl", "grades-sameness.jsonl")


def scores(path: Path) -> dict[tuple[int, int, int], float]:
    """Return all scores of a file by row, index and step."""
    lines = map(json.loads, path.read_text().splitlines())
    return {(line["row"], line["index"], step): score
            for line in lines for step, score in enumerate(line["scores"])}  # fmt: skip


def contents(folder: Path, *without: str) -> dict[str, list[str]]:
    """Return all lines of a run without what clocks said, in the order of the problems."""
    return {
        name: sorted(
            json.dumps({k: v for k, v in json.loads(line).items() if k not in (*CLOCKS, *without)})
            for line in (folder / name).read_text().splitlines(keepends=True)
            if line.endswith("\n")  # else it is what a crash left of one
        )
        for name in FILES
        if (folder / name).exists()
    }


def kept(folder: Path) -> int:
    return sum((folder / name).read_bytes().count(b"\n") for name in FILES
               if (folder / name).exists())  # fmt: skip


async def slow(request: ProposeRequest, seed: int) -> str:
    await asyncio.sleep(0.002 + seed % 5 / 1000)
    return solve(request, seed)


def work(problems: ProblemSet, folder: Path) -> None:
    stages = Stages(problems, RunFolder(folder), 24, 3)
    with stages.folder.locked():
        asyncio.run(run_all(stages, ScriptedPolicy(slow, batches=False)))


def pools(problems: ProblemSet, folder: Path) -> list[Any]:
    def plain(pool: PooledProblem) -> Any:
        return [(c.index, c.text, c.right, c.vote_class, dict(c.scores), c.scored_tokens)
                for c in pool.candidates]  # fmt: skip

    return [plain(pool) for pool in RecordedRun(folder, problems).pools(24)]


def forked(problems: ProblemSet, folder: Path) -> int:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work(problems, folder)
            code = 0
        finally:
            os._exit(code)
    return child


def test_a_run_killed_ten_times_equals_an_undisturbed_one(
    make_set: MakeSet, tmp_path: Path
) -> None:
    problems, folder, calm = make_set(12), tmp_path / "killed", tmp_path / "calm"
    chance, kills = random.Random(11), 0
    work(problems, calm)
    whole = kept(calm)
    while kills < KILLS:
        child = forked(problems, folder)
        until = min(whole * (kills + 1) // (KILLS + 1) + chance.randint(0, 20), whole - 1)
        while kept(folder) < until:
            assert os.waitpid(child, os.WNOHANG) == (0, 0)
            time.sleep(0.001)
        time.sleep(chance.random() * 0.01)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        kills += 1
        cut = folder / FILES[kills % 2]
        with cut.open("ab") as file:
            if kills % 3:  # as a crash of the machine may leave it: within a line, or a call
                file.write(b'{"run": "cut in the mid')
            elif lines := cut.read_bytes().splitlines(keepends=True):
                file.truncate(sum(map(len, lines[: -chance.randint(1, 7)])))
    work(problems, folder)
    assert contents(folder) == contents(calm)
    assert pools(problems, folder) == pools(problems, calm)


@pytest.mark.slow
def test_the_command_killed_ten_times_on_the_tiny_models(tmp_path: Path) -> None:
    file = tmp_path / "tiny.tsv"
    write_problems(file, draw(12))
    program = "import sys; from vprm_search.cli import main; main(sys.argv[1:])"

    def command(out: Path) -> subprocess.Popen[bytes]:
        given = ["evaluate", str(file), "--out", str(out), "--n", "32", "--concurrency", "2",
                 "--orm", "tiny"]  # fmt: skip
        return subprocess.Popen([sys.executable, "-c", program, *given])

    calm, killed = tmp_path / "calm", tmp_path / "killed"
    assert command(calm).wait() == 0
    whole, chance = kept(calm), random.Random(5)
    for kills in range(KILLS):
        process = command(killed)
        until = whole * (kills + 1) // (KILLS + 1)
        while kept(killed) < until:
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(chance.random() * 0.2)
        process.kill()
        process.wait()
    assert command(killed).wait() == 0
    ours, theirs = contents(killed, "scores"), contents(calm, "scores")
    assert ours == theirs
    for name in FILES[1:3]:  # a model in this process rounds otherwise in another company
        assert scores(killed / name) == pytest.approx(scores(calm / name), abs=1e-6)
    for name in ("results.json", "results.md"):
        assert (killed / name).exists() == (calm / name).exists()
