"""kill -9 in the middle of a search, then a new process: the same tree, byte for byte."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def driven(folder: Path, kills: int, seed: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.graph.kill_driver", str(folder), str(kills), str(seed)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    for line in done.stderr.lower().splitlines():
        assert "unregistered" not in line
        assert "blocked" not in line
    return json.loads(done.stdout)


@pytest.mark.parametrize(("kills", "seed"), [(14, 1), pytest.param(200, 2, marks=pytest.mark.slow)])
def test_a_killed_search_goes_on_to_the_same_tree(tmp_path: Path, kills: int, seed: int) -> None:
    found = driven(tmp_path, kills, seed)
    assert sum(found["kills"]) >= kills
    assert len(found["calm_tree"]) > 5000
    assert set(found["trees"]) == {found["calm_tree"]}
    assert set(found["results"]) == {found["calm_result"]}
    # at most one superstep is repeated for a kill: one round of proposals, or one batch of scores
    per_round = 3
    for calls, killed in zip(found["calls"], found["kills"], strict=True):
        assert calls <= found["calm_calls"] + killed * per_round
