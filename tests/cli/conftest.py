"""A problem on disk, and the program run in this process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from vprm_search.cli import main
from vprm_search.tiny.world import TinyProblem, generate, render


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    code: int
    out: str
    err: str


Run = Callable[..., Ran]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the program with arguments; return its exit code and what it printed."""

    def run_it(*arguments: str) -> Ran:
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main(arguments)
        printed = capsys.readouterr()
        code = exit_.value.code
        return Ran(0 if code is None else int(code), printed.out, printed.err)

    return run_it


@dataclass(frozen=True)
class Asked:
    """A problem, its picture on disk, and the arguments that name them."""

    problem: TinyProblem
    picture: Path

    @property
    def arguments(self) -> tuple[str, ...]:
        return ("--image", str(self.picture), "--question", self.problem.question)


@pytest.fixture
def asked(tmp_path: Path) -> Asked:
    """A problem of the tiny world."""
    problem = generate("tiles", "test", 21)
    picture = tmp_path / "problem.png"
    render(problem).save(picture)
    return Asked(problem, picture)
