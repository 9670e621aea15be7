"""The GPU script runs on a CPU at a small size, with torch and transformers alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SMALL = ["--size", "tiny", "--device", "cpu", "--repeats", "1"]
COUNTS = ["--candidates", "2", "--steps", "2", "--width", "2", "--expand", "2", "--depth", "3"]
# what a machine with torch and transformers need not have
BARRED = ("pydantic", "langgraph", "langchain_core")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, object]]:
    out = tmp_path_factory.mktemp("gpu") / "table.json"
    script = (
        "import importlib.abc, runpy, sys\n"
        "class Bar(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        f"        if name.split('.')[0] in {BARRED}:\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Bar())\n"
        f"sys.argv = ['gpu', '--out', {str(out)!r}, *{SMALL + COUNTS}]\n"
        "runpy.run_module('tests.benchmarks.gpu', run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text())


def test_every_part_was_measured(table: dict[str, dict[str, object]]) -> None:
    assert table["skipped"] == []
    for part in ("load", "peak", "one_round", "search"):
        assert "error" not in table[part], table[part]
    assert table["about"]["image_tokens"] == 3 * 4
    for row in ("ours_blocks", "per_candidate", "per_step"):
        assert table["one_round"][row]["seconds"] > 0  # type: ignore[index]


def test_all_methods_give_the_same_scores(table: dict[str, dict[str, object]]) -> None:
    assert table["one_round"]["max_difference"] < 1e-5  # type: ignore[operator]
    assert table["search"]["max_difference"] < 1e-5  # type: ignore[operator]


def test_the_kept_search_computes_every_token_once(table: dict[str, dict[str, object]]) -> None:
    search = table["search"]
    kept, anew = search["ours_kept_blocks"], search["ours_per_round_blocks"]
    assert kept["tokens_over_ideal"] == 1.0  # type: ignore[index]
    assert anew["tokens_over_ideal"] > 1.3  # type: ignore[index]
    assert len(kept["round_seconds"]) == 3  # type: ignore[index]


def test_time_that_is_up_ends_the_script_with_what_is_known(tmp_path: Path) -> None:
    from tests.benchmarks import gpu

    out = tmp_path / "table.json"
    gpu.main(["--out", str(out), *SMALL, *COUNTS, "--limit-s", "0"])
    table = json.loads(out.read_text())
    assert table["skipped"] == ["load", "peak", "one_round", "search"]
