"""A search over trajectories that is killed goes on, and no tool runs twice that must not."""

from __future__ import annotations

import ast
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.agents.kill_driver import lines
from tests.graph.test_kill_resume import postgres  # noqa: F401 (a fixture)

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=["sqlite", "postgres"])
def address(request: pytest.FixtureRequest) -> str:
    """Where the checkpoints are: "" is a SQLite file in the folder."""
    return str(request.getfixturevalue("postgres")) if request.param == "postgres" else ""


def start(folder: Path, mode: str, address: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.agents.kill_driver", str(folder), mode]
    command += [address] * bool(address)
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def run(folder: Path, mode: str, address: str) -> Any:
    """Run the search in a process of its own; return what it printed, None if it was killed."""
    process = start(folder, mode, address)
    out, err = process.communicate(timeout=100)
    if process.returncode == -signal.SIGKILL:
        return None
    assert process.returncode == 0, err
    return ast.literal_eval(out.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("answer", "text", "sends"),
    [("run", "Answer: ['3', 'sent hello']", 2), ("skip", "Not run: a person refused it.", 1)],
)
def test_a_call_under_way_at_a_kill_is_asked_about(
    tmp_path: Path, answer: str, text: str, sends: int, address: str
) -> None:
    assert run(tmp_path, "once", address) is None
    assert run(tmp_path, "once", address)[0] == "call_in_doubt"
    assert run(tmp_path, "once", address)[0] == "call_in_doubt"  # asked again, not run
    asked, said, _ = run(tmp_path, answer, address)
    assert not asked
    assert text in said
    assert "'3'" in said
    assert lines(tmp_path).count("start add 1 2") == 1  # its result was recorded
    assert lines(tmp_path).count("start send hello") == sends


@pytest.mark.slow
def test_a_safe_call_under_way_at_a_kill_is_run_again(tmp_path: Path, address: str) -> None:
    assert run(tmp_path, "safe", address) is None
    asked, said, results = run(tmp_path, "safe", address)
    assert (asked, said) == ([], "Answer: ['3', 'sent hello']")
    assert results == ["add 3", "send sent hello"]
    assert lines(tmp_path).count("start add 1 2") == 1
    assert lines(tmp_path).count("start send hello") == 2


@pytest.mark.slow
def test_killed_again_and_again_it_ends_alike(tmp_path: Path, address: str) -> None:
    command = [sys.executable, "-m", "tests.agents.kill_driver", str(tmp_path), "kills", "30", "7"]
    command += [address] * bool(address)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    calm, *searches = json.loads(done.stdout.splitlines()[-1])
    assert len(set(calm["lines"])) == len(calm["lines"]) == 20
    assert sum(search["kills"] for search in searches) >= 30
    for search in searches:
        assert search["tree"] == calm["tree"]
        assert search["scored_again"] == 0
        assert search["remade"] == []  # a recorded result is not made again
        begun = [line for line in search["lines"] if line.startswith("start")]
        assert set(begun) == {line for line in calm["lines"] if line.startswith("start")}
        again = len(begun) - len(calm["lines"]) // 2
        assert again <= 2 * search["kills"]  # only what was under way: two branches act at once
    assert sum(search["recorded"] for search in searches) > 20
