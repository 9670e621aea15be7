"""Properties of the tiny world: exact ground truth, disjoint splits, pure functions."""

from __future__ import annotations

import random
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from examples.tiny_models.corruption import consistent_steps, corrupt
from vprm_search.tiny.sampler import IMAGE_MEAN, IMAGE_STD, pixel_values
from vprm_search.tiny.world import (
    COLOURS,
    FAMILIES,
    SPLITS,
    STEP_SEPARATOR,
    TinyProblem,
    exact_labels,
    generate,
    parse_answer,
    render,
    split_of,
    value_cells,
)

problems = st.builds(
    generate, st.sampled_from(FAMILIES), st.sampled_from(SPLITS), st.integers(0, 10**9)
)


def evaluate_independently(question: str, value_of: dict[str, int]) -> int:
    """Evaluate a question with Python's own parser, which knows nothing of the world's code."""
    expression = question.removeprefix("What is ").removesuffix("?").replace(" x ", " * ")
    for name, value in value_of.items():
        expression = re.sub(rf"\b{name}\b", str(value), expression)
    return int(eval(expression, {"__builtins__": {}}))


@given(problems)
def test_the_answer_is_what_an_independent_evaluator_gets(problem: TinyProblem) -> None:
    value_of = dict(zip(problem.names, problem.values, strict=True))
    assert int(problem.answer) == evaluate_independently(problem.question, value_of)
    assert parse_answer(problem.solution) == problem.answer


@given(problems)
def test_every_gold_calculation_is_true_and_every_reading_is_on_the_picture(
    problem: TinyProblem,
) -> None:
    value_of = dict(zip(problem.names, problem.values, strict=True))
    for number, step in enumerate(problem.steps, start=1):
        body = step.removeprefix(f"Step {number}: ").split(".")[0]
        left, right = body.split(" = ")
        expected = value_of[left] if left in value_of else eval(left.replace("x", "*"))
        assert 0 <= expected <= 99
        assert expected == int(right)


@given(problems)
def test_gold_steps_are_all_right_in_every_sense(problem: TinyProblem) -> None:
    assert exact_labels(problem, problem.steps) == [True] * len(problem.steps)
    assert consistent_steps(problem, problem.steps) == list(problem.steps)
    assert STEP_SEPARATOR.join(problem.steps) == problem.solution


@given(problems, st.integers(0, 2**32))
def test_labels_of_a_corrupted_solution_are_exact_and_prefix_closed(
    problem: TinyProblem, seed: int
) -> None:
    steps, labels = corrupt(problem, random.Random(seed))
    assert len(steps) == len(problem.steps)
    assert labels == exact_labels(problem, steps)
    assert labels == sorted(labels, reverse=True)
    first_wrong = labels.index(False) if False in labels else len(labels)
    assert tuple(steps[:first_wrong]) == problem.steps[:first_wrong]
    assert consistent_steps(problem, steps)[:first_wrong] == list(problem.steps[:first_wrong])


@given(problems, st.integers(0, 2**32))
def test_the_first_wrong_step_is_also_inconsistent(problem: TinyProblem, seed: int) -> None:
    steps, labels = corrupt(problem, random.Random(seed))
    if False in labels:
        first = labels.index(False)
        assert consistent_steps(problem, steps)[first] != steps[first]


@given(problems, st.data())
def test_stopping_early_is_an_error_of_the_last_step(
    problem: TinyProblem, data: st.DataObject
) -> None:
    kept = data.draw(st.integers(1, len(problem.steps) - 1))
    labels = exact_labels(problem, problem.steps[:kept])
    assert labels == [True] * (kept - 1) + [False]


def test_later_steps_are_wrong_once_one_is_wrong() -> None:
    problem = generate("tiles", "test", 0)
    steps = list(problem.steps)
    steps[1] = "Step 2: nonsense."
    assert exact_labels(problem, steps) == [True] + [False] * (len(steps) - 1)
    assert exact_labels(problem, [*problem.steps, "More."])[-1] is False
    assert exact_labels(problem, []) == []


@given(problems)
def test_a_problem_lies_in_the_split_of_its_content(problem: TinyProblem) -> None:
    assert split_of(problem) == problem.split


@given(st.sampled_from(FAMILIES), st.integers(0, 10**6), st.integers(0, 10**6))
@settings(max_examples=60)
def test_splits_share_no_content(family: str, one: int, other: int) -> None:
    contents = [
        {generate(family, split, start + offset).content for offset in range(5)}
        for split, start in (("train", one), ("validation", other), ("test", one))
    ]
    assert not contents[0] & contents[1]
    assert not contents[0] & contents[2]
    assert not contents[1] & contents[2]


def test_the_split_ignores_what_is_not_content() -> None:
    problem = generate("bars", "test", 3)
    twin = replace(problem, id="other", split="train", index=9, image_seed=1)
    assert twin.content == problem.content
    assert split_of(twin) == "test"


@given(problems)
def test_generation_is_a_pure_function(problem: TinyProblem) -> None:
    assert generate(problem.family, problem.split, problem.index) == problem


@given(problems)
def test_the_text_tells_no_value(problem: TinyProblem) -> None:
    assert not re.search(r"\d", problem.question)
    assert set(problem.operands) <= set(problem.names) <= set(COLOURS)
    assert len(set(problem.names)) == len(problem.names)


@given(problems)
@settings(max_examples=30)
def test_rendering_is_a_pure_function(problem: TinyProblem) -> None:
    first, second = render(problem), render(problem)
    assert first.size == (64, 64)
    assert first.mode == "RGB"
    assert first.tobytes() == second.tobytes()


@given(problems)
def test_values_stand_in_cells_of_their_own(problem: TinyProblem) -> None:
    cells = value_cells(problem)
    assert len(set(cells)) == len(problem.values)
    assert all(0 <= cell < 16 for cell in cells)


@given(st.sampled_from(FAMILIES), st.integers(0, 10**6))
@settings(max_examples=30)
def test_another_value_makes_another_picture(family: str, index: int) -> None:
    problem = generate(family, "train", index)
    values = (problem.values[0] % 9 + 1, *problem.values[1:])
    other = replace(problem, values=values)
    changed = np.asarray(render(problem), dtype=int) != np.asarray(render(other), dtype=int)
    assert changed.any()


@pytest.mark.parametrize(
    ("family", "values", "operations"),
    [("tiles", {4}, {2, 3}), ("tiles-long", {5, 6}, {4, 5}), ("bars", {4}, {2, 3})],
)
def test_families_have_their_sizes(family: str, values: set[int], operations: set[int]) -> None:
    drawn = [generate(family, "validation", index) for index in range(40)]
    assert {len(problem.values) for problem in drawn} == values
    assert {len(problem.operators) for problem in drawn} == operations
    assert {operator for problem in drawn for operator in problem.operators} == {"+", "-", "x"}


@pytest.mark.parametrize(
    ("family", "split", "index", "part"),
    [
        ("cubes", "train", 0, "tiles-long"),
        ("bars", "dev", 0, "validation"),
        ("bars", "test", -1, "-1"),
    ],
)
def test_bad_arguments_are_refused(family: str, split: str, index: int, part: str) -> None:
    with pytest.raises(ValueError, match=part):
        generate(family, split, index)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Step 5: 3 + 4 = 7. Answer: 7", "7"),
        ("Answer: 12 \n", "12"),
        ("Answer: 12 apples", None),
        ("", None),
    ],
)
def test_parse_answer(text: str, answer: str | None) -> None:
    assert parse_answer(text) == answer


def test_pixel_values_are_normalised_per_channel() -> None:
    image = render(generate("tiles", "test", 1))
    pixels = pixel_values([image, image])
    assert pixels.shape == (2, 3, 64, 64)
    for channel in range(3):
        raw = np.asarray(image, dtype=np.float64)[..., channel] / 255
        expected = (raw - IMAGE_MEAN[channel]) / IMAGE_STD[channel]
        assert np.allclose(pixels[1, channel].numpy(), expected, atol=1e-5)
