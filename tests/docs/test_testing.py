"""The test files of docs/testing.md are run as a user would run them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import vprm_search.testing as doubles
from vprm_search.testing.proxy import FaultKind

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "testing.md").read_text(encoding="utf-8")


def test_the_files_pass(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    for number, block in enumerate(blocks):
        (tmp_path / f"test_{number}.py").write_text(block, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", "."],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    passed = re.search(r"(\d+) passed", done.stdout)
    assert done.returncode == 0, done.stdout
    assert passed is not None
    assert int(passed[1]) == TEXT.count("\ndef test_") == 6


def test_every_kind_of_fault_and_every_double_is_listed() -> None:
    table = re.findall(r"^\| `(\w+)` \|", TEXT, flags=re.MULTILINE)
    assert {name for name in table if name[0].islower()} == set(get_args(FaultKind))
    assert {name for name in table if name[0].isupper()} <= set(doubles.__all__)
