"""kill -9 in the middle of a search, then a new process: the same tree, byte for byte."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from vprm_search.errors import CheckpointError
from vprm_search.tiny.weights import weights_path

ROOT = Path(__file__).parents[2]


def driven(folder: Path, kills: int, seed: int, models: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.graph.kill_driver"]
    command += [str(folder), str(kills), str(seed), models]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-2000:]
    for line in done.stderr.lower().splitlines():
        assert "unregistered" not in line
        assert "blocked" not in line
    return json.loads(done.stdout)


@pytest.mark.parametrize(("kills", "seed"), [(14, 1), pytest.param(200, 2, marks=pytest.mark.slow)])
def test_a_killed_search_goes_on_to_the_same_tree(tmp_path: Path, kills: int, seed: int) -> None:
    found = driven(tmp_path, kills, seed, "hash")
    assert sum(found["kills"]) >= kills
    assert len(found["calm_tree"]) > 5000
    assert set(found["trees"]) == {found["calm_tree"]}
    assert set(found["results"]) == {found["calm_result"]}
    # at most one superstep is repeated for a kill: one round of proposals, or one batch of scores
    per_round = 3
    for calls, killed in zip(found["calls"], found["kills"], strict=True):
        assert calls <= found["calm_calls"] + killed * per_round


@pytest.mark.slow
def test_a_killed_search_of_trained_models_goes_on_to_the_same_tree(tmp_path: Path) -> None:
    try:
        weights_path("policy"), weights_path("prm")
    except CheckpointError as error:
        pytest.skip(str(error))
    found = driven(tmp_path, 10, 3, "tiny")
    assert sum(found["kills"]) >= 10
    assert set(found["trees"]) == {found["calm_tree"]}
    assert set(found["results"]) == {found["calm_result"]}
