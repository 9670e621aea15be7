"""Published records, where they are at hand: fixtures of these tests and of nothing else."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from vprm_search.datasets.graders import GRADERS, SAMENESS, grader_of
from vprm_search.datasets.problem_set import Item, ProblemSet, read_problem_set


@pytest.fixture
def samples(shared_data: Path) -> Path:
    """Records of six sets; their sources and licences stand beside them."""
    return shared_data / "samples"


READ = {
    "dynamath_seed.jsonl": ("dynamath", 34, {"float": 12, "text": 10, "choice": 10, "integer": 2}),
    "mathverse_testmini_text_only.jsonl": ("mathverse", 24, {"choice": 12, "text": 10, "float": 2}),
    "mathvision_testmini.jsonl": ("mathvision", 40, {"integer": 20, "choice": 19, "text": 1}),
    "mathvision_vlmevalkit_form.tsv": ("mathvision", 10, {"choice": 5, "integer": 5}),
    "mathvista_testmini.jsonl": (
        "mathvista",
        40,
        {"integer": 14, "choice": 14, "float": 10, "list": 2},
    ),
    "mmmu_val_evpv_form.jsonl": ("mmmu", 40, {"choice": 27, "float": 4, "integer": 4, "text": 5}),
}


def read(path: Path) -> ProblemSet:
    return read_problem_set(path, check_images=False)


@pytest.mark.parametrize("name", READ)
def test_what_is_understood(name: str, samples: Path) -> None:
    found = read(samples / name)
    set_name, count, types = READ[name]
    assert (found.name, len(found)) == (set_name, count)
    assert Counter(item.answer_type for item in found) == types
    for item in found:
        assert bool(item.letters) == (item.answer_type == "choice")
        if item.letters and item.choices:
            assert item.letters in "ABCDEFGHIJ"[: len(item.choices)]
            written = [choice for choice in item.choices if "<image" not in choice]
            assert all(choice in item.question for choice in written)


def test_the_same_problems_in_two_forms_of_mathvision(samples: Path) -> None:
    official = {item.id: item for item in read(samples / "mathvision_testmini.jsonl")}
    found = read(samples / "mathvision_vlmevalkit_form.tsv")
    both = [item for item in found if item.id in official]
    assert len(both) >= 5
    for item in both:
        other = official[item.id]
        assert item.choices == other.choices
        assert (item.answer, item.letters) == (other.answer, other.letters)
    assert all(len(found.load(item).images) == 1 for item in found)


def test_mmmu_agrees_with_the_official_answers(samples: Path) -> None:
    official = json.loads((samples / "mmmu_val_official_answers.json").read_text())
    for item in read(samples / "mmmu_val_evpv_form.jsonl"):
        told = official.get(item.id.partition("#")[0])
        if told is None:
            continue
        assert bool(item.letters) == (told["question_type"] == "multiple-choice"), item.id
        truth = told["ground_truth"]
        assert [item.answer, *item.also] == (truth if isinstance(truth, list) else [truth])


def test_categories_that_differ_in_blanks_are_one(samples: Path) -> None:
    raw = [json.loads(line)["subject"] for line in (samples / "dynamath_seed.jsonl").open()]
    assert any("  " in name for name in raw)
    found = [item.category for item in read(samples / "dynamath_seed.jsonl")]
    assert found == [" ".join(name.split()) for name in raw]


def shown(item: Item) -> str:
    """The published answer as a model would give it."""
    return f"Step 1: A look at the picture.\n\nAnswer: \\boxed{{{item.letters or item.answer}}}"


@pytest.mark.parametrize("name", READ)
def test_published_answers_are_right_and_those_of_others_mostly_wrong(
    name: str, samples: Path
) -> None:
    items = list(read(samples / name))
    for grader in (grader_of(READ[name][0]), SAMENESS):
        wrong = [i.id for i in items if not grader.grade(i, shown(i)).right]
        assert not wrong, (grader.name, wrong)
    grader = grader_of(READ[name][0])
    for place, item in enumerate(items):
        other = items[(place + 1) % len(items)]
        same = (other.letters or other.answer) == (item.letters or item.answer)
        if not same and item.answer_type in ("choice", "integer", "float", "list"):
            assert not grader.grade(item, shown(other)).right, (item.id, other.id)


def test_lists_of_mathvista_can_be_right(samples: Path) -> None:
    lists = [
        item for item in read(samples / "mathvista_testmini.jsonl") if item.answer_type == "list"
    ]
    assert len(lists) == 2
    for item in lists:
        spaced = item.answer.replace(", ", " , ")
        assert GRADERS["mathvista"].grade(item, f"The answer is {spaced}").right
