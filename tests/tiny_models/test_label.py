"""Monte Carlo labels in the tiny world, from a random policy: mechanics and statistics."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from examples.tiny_models.label import (
    TemperatureMix,
    label,
    label_statistics,
    label_tasks,
)
from examples.tiny_models.model import build_model, save_checkpoint
from examples.tiny_models.reward_data import labelled_texts
from tests.tiny.small_models import SHAPE, small_sampler, small_tokenizer
from vprm_search.labelling.monte_carlo import LabelConfig
from vprm_search.labelling.records import (
    LabelledSolution,
    ProblemRecord,
    StepLabel,
    read_records,
    training_record,
)
from vprm_search.tiny.policy import TinyPolicy
from vprm_search.tiny.scored import label_task, problem_of
from vprm_search.tiny.world import generate
from vprm_search.types import ProposeRequest


async def test_a_mix_draws_child_i_at_temperature_i() -> None:
    policy = TinyPolicy(small_sampler(), max_solution_tokens=12)
    task = label_task(generate("bars", "train", 2))
    request = ProposeRequest(task.problem, (), tuple(range(5)), "end", task.images)
    (mixed,) = await TemperatureMix(policy, (0.2, 2.0)).propose([request])
    (cold,) = await policy.at_temperature(0.2).propose([request])
    (hot,) = await policy.at_temperature(2.0).propose([request])
    expected = [cold[0], hot[1], cold[2], hot[3], cold[4]]
    assert [p.text for p in mixed] == [p.text for p in expected]
    assert cold[0].text != hot[0].text


def test_tasks_take_the_families_in_turn_and_name_their_problem() -> None:
    tasks = list(label_tasks("validation", 7, first=10))
    assert [t.id for t in tasks[:4]] == [
        "tiles/validation/10",
        "tiles-long/validation/10",
        "bars/validation/10",
        "tiles/validation/11",
    ]
    assert all(problem_of(t.id).answer == t.answer for t in tasks)
    assert all(t.problem.images == (t.images[0].digest,) for t in tasks)


@pytest.mark.slow
def test_labels_are_written_and_resumed(tmp_path: Path) -> None:
    policy_dir = tmp_path / "policy"
    model = build_model(small_tokenizer(), SHAPE, seed=0)
    save_checkpoint(model, small_tokenizer(), policy_dir, torch.float32)
    config = LabelConfig(solutions=2, continuations=2)
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    statistics = label(whole, policy_dir, problems=4, config=config)
    assert statistics["solutions"] >= 1
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    cut.with_suffix(".settings.json").write_bytes(whole.with_suffix(".settings.json").read_bytes())
    label(cut, policy_dir, problems=4, config=config)
    assert [r.id for r in read_records(cut)] == [r.id for r in read_records(whole)]


def record() -> ProblemRecord:
    problem = generate("tiles", "train", 1)
    wrong = (*problem.steps[:-1], "Step 9: nonsense. Answer: 100")
    good = LabelledSolution(
        problem.solution,
        tuple(StepLabel(step, 0.5, 8, 16) for step in problem.steps),
        "stop",
        True,
    )
    bad = LabelledSolution(
        "\n\n".join(wrong),
        (StepLabel(wrong[0], None), *(StepLabel(step, 0.0, 0, 16) for step in wrong[1:])),
        "stop",
        False,
    )
    return ProblemRecord(problem.id, problem.question, (), problem.answer, 16, (good, bad))


def test_statistics_compare_with_the_exact_truth() -> None:
    length = len(generate("tiles", "train", 1).steps)
    found = label_statistics(iter([record()]))
    # All steps of the good solution and all but the last of the bad one are right.
    assert found["steps"] == 2 * length
    assert found["plus_share"] == pytest.approx(0.5)
    assert found["plus_if_right"] == pytest.approx(length / (2 * length - 1))
    assert found["plus_if_wrong"] == 0.0
    assert found["agreement"] == pytest.approx((length + 1) / (2 * length))


def test_training_texts_by_kind_of_label() -> None:
    length = len(generate("tiles", "train", 1).steps)
    labels = {
        kind: [text.labels for text in labelled_texts([record()], kind)]  # type: ignore[arg-type]
        for kind in ("monte_carlo", "exact", "outcome")
    }
    assert labels["monte_carlo"] == [(1.0,) * length, (None, *(0.0,) * (length - 1))]
    assert labels["exact"] == [(1.0,) * length, (*(1.0,) * (length - 1), 0.0)]
    assert labels["outcome"] == [(1.0,) * length, (0.0,) * length]


def test_conversation_records_have_the_published_shape() -> None:
    made = record()
    conversation = training_record(made, made.solutions[0])
    turns = conversation["conversations"]
    first = made.solutions[0].steps[0].step
    assert turns[0] == {
        "from": "human",
        "value": f"### Question:\n{made.question}\n\n### Solution Process:\n{first}",
    }
    assert [turn["from"] for turn in turns] == ["human", "gpt"] * len(made.solutions[0].steps)
    assert {turn["value"] for turn in turns[1::2]} == {"+"}
    assert training_record(made, made.solutions[0], 0.5)["conversations"][1]["value"] == "-"
    assert training_record(made, made.solutions[1])["conversations"] == []
