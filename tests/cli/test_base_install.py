"""What runs with the base installation alone, and what says which extra it needs."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from vprm_search.cli.doctor import BASE, EXTRAS

ROOT = Path(__file__).parents[2]
LOCAL = "torch,transformers,safetensors,tokenizers"
_BLOCKED = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in sys.argv[1].split(","):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
from vprm_search.cli import main
main(sys.argv[2:])
"""


def without(packages: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the program in a process that cannot import `packages`."""
    command = [sys.executable, "-c", _BLOCKED, packages, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_the_synthetic_comparison_needs_no_torch(tmp_path: Path) -> None:
    words = "compare --world synthetic --problems 4 --n 4 --strategy rebase --out"
    done = without(LOCAL, *words.split(), str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert "| rebase |" in done.stdout


@pytest.mark.parametrize(
    ("packages", "command", "extra"),
    [
        (LOCAL, "demo", "local"),
        (LOCAL, "solve --image x.png --question y", "local"),
        ("numpy", "compare --world synthetic --problems 4 --n 4 --out {out}", "local"),
        ("numpy", "calibrate fit --paths x.jsonl --out {out}", "calibration"),
    ],
)
def test_a_missing_library_is_named_with_its_extra(
    packages: str, command: str, extra: str, tmp_path: Path
) -> None:
    done = without(packages, *command.format(out=tmp_path / "out").split())
    assert done.returncode == 1, done.stderr
    assert f"pip install 'vprm-search[{extra}]'" in done.stderr


def test_doctor_names_the_extras_that_there_are() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def names(requirements: list[str]) -> set[str]:
        return {line.split("[")[0].split(">")[0].split("<")[0] for line in requirements}

    extras = project["optional-dependencies"]
    assert set(EXTRAS) == set(extras) - {"all"}
    for extra, (packages, _) in EXTRAS.items():
        assert set(packages) <= names(extras[extra])
    assert set(BASE) <= names(project["dependencies"])
