"""A search over trajectories that is killed goes on, and no tool runs twice that must not."""

from __future__ import annotations

import ast
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import ToolMessage

from tests.agents.kill_driver import saver_at
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


def lines(folder: Path) -> list[str]:
    path = folder / "tools.log"
    return path.read_text().splitlines() if path.exists() else []


def recorded_calls(folder: Path, address: str) -> set[str]:
    """Return the calls whose results the saver has, read as anybody may read it."""
    found: set[str] = set()

    def look(value: Any) -> None:
        if isinstance(value, ToolMessage):
            args = ast.literal_eval(value.tool_call_id.partition("-")[2])
            found.add(f"add {args['left']} {args['right']}")
        for inside in value if isinstance(value, list | tuple) else ():
            look(inside)

    with saver_at(folder, address) as saver:
        for kept in saver.list(None):
            look(kept.checkpoint["channel_values"].get("messages"))
            look([value for _, channel, value in kept.pending_writes if channel == "messages"])
    return found


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
    calm = tmp_path / "calm"
    calm.mkdir()
    expected = run(calm, "slow", "")
    calls = lines(calm)
    assert len(set(calls)) == len(calls)
    chance, kills = random.Random(7), 0
    recorded: set[str] = set()
    folder = tmp_path / "killed"
    folder.mkdir()
    while True:
        begun = [f"start {call}" for call in recorded]
        before = len(lines(folder))
        process = start(folder, "slow", address)
        wanted = before + chance.randint(1, 3)
        while process.poll() is None and len(lines(folder)) < wanted:
            time.sleep(0.005)
        time.sleep(chance.random() * 0.1)
        if process.poll() is not None:
            out, err = process.communicate()
            assert process.returncode == 0, err
            # which way led there is the model's affair: it counts its calls in each process anew
            assert ast.literal_eval(out.splitlines()[-1])[:2] == expected[:2]
            assert not set(begun) & set(lines(folder)[before:])
            break
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        kills += 1
        assert not set(begun) & set(lines(folder)[before:])  # a recorded result is not made again
        recorded |= recorded_calls(folder, address)
    assert kills >= 3
    assert len(recorded) >= 3
    told = lines(folder)
    again = len([line for line in told if line.startswith("start")]) - len(calls) // 2
    assert again <= 2 * kills  # only what was under way: two branches act side by side
    for line in {line for line in told if line.startswith("end")}:
        assert told.count(line) <= 1 + kills
