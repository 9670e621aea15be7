"""Rule-made rows: token targets that are local, and batches that depend on the step alone."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from examples.tiny_models.corruption import consistent_steps, corrupt, misread_question
from examples.tiny_models.reward_data import LabelledText, RewardBatches
from examples.tiny_models.reward_rows import IGNORED, RowWriter
from tests.tiny.small_models import small_tokenizer
from vprm_search.tiny.world import FAMILIES, exact_labels, generate

WRITER = RowWriter(small_tokenizer())


@given(family=st.sampled_from(FAMILIES), index=st.integers(0, 10_000), seed=st.integers(0, 999))
def test_targets_mark_the_first_deviation_of_each_step(family: str, index: int, seed: int) -> None:
    problem = generate(family, "train", index)
    steps, labels = corrupt(problem, random.Random(seed))
    row = WRITER.write_local(problem, steps, [float(x) for x in labels])
    expected, mismatch = row.targets["expected"], row.targets["mismatch"]
    gold = consistent_steps(problem, steps)
    deviating = [
        (step, right) for step, right in zip(steps, gold, strict=True) if right not in (None, step)
    ]
    assert list(mismatch).count(1) == len(deviating)
    for place, flag in enumerate(mismatch):
        if flag == 0:
            assert expected[place] in (row.ids[place], IGNORED)
        if flag == 1 and expected[place] != IGNORED:
            assert expected[place] != row.ids[place]
    known = [place for place, token in enumerate(expected) if token != IGNORED]
    differing = [place for place in known if expected[place] != row.ids[place]]
    assert all(mismatch[place] == 1 for place in differing)


def test_a_perfect_solution_has_no_mismatch_and_predicts_itself() -> None:
    problem = generate("bars", "train", 3)
    row = WRITER.write_local(problem, problem.steps, [1.0] * len(problem.steps))
    assert 1 not in row.targets["mismatch"]
    assert 0 in row.targets["mismatch"]
    pairs = zip(row.targets["expected"], row.ids, strict=True)
    assert all(target in (IGNORED, token) for target, token in pairs)


def test_batches_depend_on_seed_and_step_alone() -> None:
    one, two = (RewardBatches(WRITER, seed=4, verdicts=30) for _ in range(2))
    for step in (5, 0, 5, 2):
        assert one(step) == two(step)
    assert one(1) != one(2)
    assert one(1) != RewardBatches(WRITER, seed=5, verdicts=30)(1)


def test_batches_have_one_length_and_about_equal_cost() -> None:
    batches = RewardBatches(WRITER, seed=1, verdicts=60, short_until=6)
    for step in range(12):
        rows = batches(step)
        # Solutions that end early are shorter; the rest have the length of the batch.
        length = max(len(row.labels) for row in rows)
        assert abs(len(rows) * length - 60) <= length / 2 + 1
        assert sum(len(row.labels) == length for row in rows) > len(rows) / 2
        assert step >= 6 or length == 5


@given(family=st.sampled_from(FAMILIES), index=st.integers(0, 10_000), seed=st.integers(0, 999))
def test_a_misread_question_is_another_writable_question_on_the_same_picture(
    family: str, index: int, seed: int
) -> None:
    problem = generate(family, "train", index)
    changed = misread_question(problem, random.Random(seed))
    assert changed.question != problem.question
    assert (changed.names, changed.values) == (problem.names, problem.values)
    assert changed.image_seed == problem.image_seed
    results = [int(step.rpartition("= ")[2].split(".")[0]) for step in changed.steps]
    assert all(0 <= result <= 99 for result in results)
    labels = exact_labels(problem, changed.steps)
    same = [a == b for a, b in zip(changed.steps, problem.steps, strict=False)]
    first = same.index(False) if False in same else len(same)
    assert labels[: min(first, len(labels) - 1)] == [True] * min(first, len(labels) - 1)
    assert not any(labels[first:])


def test_outcome_batches_label_the_end_by_the_answer() -> None:
    writer = RowWriter(small_tokenizer(), "final_step")
    for step in range(4):
        for row in RewardBatches(writer, seed=1, verdicts=30)(step):
            assert len(row.labels) == 1


def test_policy_texts_are_mixed_in() -> None:
    problem = generate("tiles", "train", 8)
    steps = problem.steps
    text = LabelledText(problem, steps, tuple(map(float, exact_labels(problem, steps))))
    batches = RewardBatches(WRITER, 1, verdicts=len(steps), texts=[text], rule_share=0.5)
    own = WRITER.write(problem, steps, text.labels)
    drawn = [batches(step)[0] for step in range(40)]
    share = sum(row.ids == own.ids for row in drawn) / 40
    assert 0.2 < share < 0.8
    assert all(row == own for row in drawn if row.ids == own.ids)
