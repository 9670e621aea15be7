"""Prompts by name and from files, and the presets."""

from __future__ import annotations

from pathlib import Path

import pytest

from vprm_search.errors import ConfigError
from vprm_search.evaluate.presets import PRESETS
from vprm_search.evaluate.prompts import PROMPTS, prompt_of
from vprm_search.types import Problem

ASKED = Problem("What is shown in <image>?", ("sha256-a",), choices=("a cat", "a dog"))


@pytest.mark.parametrize("name", PROMPTS)
def test_every_prompt_holds_the_question_and_keeps_the_problem(name: str) -> None:
    for problem in (ASKED, Problem("What is 7 + 3?")):
        asked = prompt_of(name).put(problem)
        words = problem.question.replace(" <image>", "").split()
        assert " ".join(words[:3]) in asked.question
        assert (asked.images, asked.choices) == (problem.images, problem.choices)
        assert name == "plain" or "<image>" not in asked.question  # shown in front


def test_what_is_asked_for() -> None:
    assert prompt_of("plain").put(ASKED) == ASKED
    assert "'Final answer: ...'" in prompt_of("en").put(ASKED).question
    assert "$FINAL_ANSWER" in prompt_of("en_v2").put(ASKED).question
    assert "$LETTER" in prompt_of("cot").put(ASKED).question
    assert "$FINAL_ANSWER" in prompt_of("cot").put(Problem("What is 7 + 3?")).question
    several = Problem("Compare <image> and <image>.", ("sha256-a", "sha256-b"))
    assert prompt_of("cot").put(several).question.count("<image>") == 2


def test_a_file_is_a_prompt(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("Q: {question} {braces} stay\nA:")
    assert prompt_of(str(file)).put(Problem("why?")).question == "Q: why? {braces} stay\nA:"
    file.write_text("no place")
    with pytest.raises(ConfigError, match=r"holds \{question\} once"):
        prompt_of(str(file))
    with pytest.raises(ConfigError, match="neither a file that can be read nor one of plain"):
        prompt_of(str(tmp_path / "nowhere.txt"))


def test_presets_are_what_was_published() -> None:
    paper, code = PRESETS["paper"], PRESETS["vlmevalkit"]
    assert (paper.n, paper.temperature, paper.greedy_first) == (8, 0.7, False)
    assert (code.n, code.temperature, code.top_p, code.greedy_first) == (8, 0.6, 0.95, True)
    for name, most in (("mmmu", 12), ("mathvista", 6), ("", 6)):
        rule = paper.tiling(name)  # type: ignore[arg-type]
        assert rule is not None
        # 64 tiles at most of all pictures, but one of each
        for pictures in range(1, 100):
            assert rule.each(pictures) == max(1, min(most, 64 // pictures))
        assert rule.doubled == (name == "mmmu")
    assert PRESETS["default"].tiling("mmmu") is None
