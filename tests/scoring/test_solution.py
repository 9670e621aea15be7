"""Whole solutions are cut, merged and scored as the reference does it, by library and program."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cli.conftest import Run, run
from tests.scoring.oracle import Oracle
from tests.scoring.random_internvl import write_checkpoint
from vprm_search.scoring import TransformersScorer, score_solution, solution_request
from vprm_search.steps import split_solution

__all__ = ["run"]
SOLUTION = " the base is 3\n\n\n\nthe area is 11.\n \n\nso x = 2\n\n"
"""Six parts: one with blanks around it, two empty ones, one of them at the end."""


def reference_steps(response: str, max_steps: int) -> list[str]:
    """The reference's rule: cut at blank lines, equal groups of ceil(parts / max_steps)."""
    parts = response.split("\n\n")
    group = math.ceil(len(parts) / max_steps)
    return ["\n\n".join(parts[at : at + group]) for at in range(0, len(parts), group)]


pieces = st.lists(st.sampled_from(["a", "", " b ", "\n", "\n\n", "\t"]), max_size=60)


@given(text=pieces.map("".join), max_steps=st.integers(1, 14))
def test_solutions_are_cut_and_merged_as_the_reference_does(text: str, max_steps: int) -> None:
    expected = reference_steps(text, max_steps)
    assert split_solution(text, max_steps=max_steps) == expected
    request = solution_request(f" {text}?", text, max_steps=max_steps)
    assert list(request.steps) == expected
    assert request.problem.question == f" {text}?"
    assert list(solution_request("q", text).steps) == reference_steps(text, 12)
    assert list(solution_request("q", text, max_steps=None).steps) == text.split("\n\n")
    assert solution_request("q", [text, ""]).steps == (text, "")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model"), seed=3)


async def test_empty_and_unstripped_steps_have_the_references_scores(checkpoint: Path) -> None:
    scorer = TransformersScorer.from_pretrained(checkpoint, device="cpu")
    oracle = Oracle(checkpoint, side=56, max_tiles=4)
    result = await score_solution(scorer, question=" What is x?\n", solution=SOLUTION)
    steps = reference_steps(SOLUTION, 12)
    assert steps.count("") == 2
    expected = oracle.score(" What is x?\n", steps, [])
    assert [score.value for score in result.scores] == pytest.approx(expected, abs=1e-5)
    cleaned = await score_solution(scorer, question="q", solution=[s.strip() for s in steps if s])
    assert len(cleaned.scores) < len(result.scores)


@pytest.mark.parametrize("parts", [6, 30])
def test_the_program_scores_as_the_library_does(
    checkpoint: Path, run: Run, tmp_path: Path, parts: int
) -> None:
    text = SOLUTION if parts == 6 else "\n\n".join(f"step {n}" for n in range(parts))
    (tmp_path / "solution.txt").write_text(text)
    scorer = TransformersScorer.from_pretrained(checkpoint, device="cpu")
    [result] = scorer.score_sync([solution_request("What is x?", text)])
    asked = ("--question", "What is x?", "--solution", str(tmp_path / "solution.txt"))
    ran = run("score", *asked, "--scorer", str(checkpoint), "--json")  # no picture
    assert ran.code == 0, ran.err
    rows = json.loads(ran.out)["steps"]
    assert [row["step"] for row in rows] == reference_steps(text, 12)
    assert [row["score"] for row in rows] == pytest.approx([s.value for s in result.scores])


def test_what_other_systems_put_around_lines_is_no_part_of_a_solution(
    checkpoint: Path, run: Run, tmp_path: Path
) -> None:
    """A file of Windows: a mark before the text, two characters at the end of a line."""
    (tmp_path / "solution.txt").write_bytes(b"\xef\xbb\xbfthe base is 3\r\n\r\nso x = 2\r\n\r\n")
    asked = ("--question", "What is x?", "--solution", str(tmp_path / "solution.txt"))
    ran = run("score", *asked, "--scorer", str(checkpoint), "--json")
    assert ran.code == 0, ran.err
    assert [row["step"] for row in json.loads(ran.out)["steps"]] == [
        "the base is 3",
        "so x = 2",
        "",
    ]
