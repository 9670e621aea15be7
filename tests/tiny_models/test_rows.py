"""Training rows are the scorer's prompts; labels sit where the scorer reads."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from examples.tiny_models.reward_rows import IGNORED, TrainingRow, build_row, collate
from tests.tiny.small_models import small_tokenizer
from vprm_search.errors import InputError
from vprm_search.scoring.prompt.layout import PrmLayout, build_prompt

LAYOUT = PrmLayout(system_prompt=None)
STEPS = st.lists(st.text(max_size=12), min_size=1, max_size=5)


@given(question=st.text(max_size=20), steps=STEPS, data=st.data())
def test_rows_are_the_scorers_prompts(question: str, steps: list[str], data: st.DataObject) -> None:
    labels = data.draw(
        st.lists(st.none() | st.floats(0, 1), min_size=len(steps), max_size=len(steps))
    )
    prompt = build_prompt(small_tokenizer(), LAYOUT, question, steps, (16,))
    row = build_row(small_tokenizer(), LAYOUT, question, steps, labels, (16,))
    assert row.ids == prompt.ids
    pairs = zip(prompt.read_positions, labels, strict=True)
    assert list(zip(row.read_positions, row.labels, strict=True)) == [
        (read, label) for read, label in pairs if label is not None
    ]
    plus = small_tokenizer().convert_tokens_to_ids("+")
    assert all(row.ids[read + 1] == plus for read in row.read_positions)


def test_outcome_rows_differ_from_process_rows_in_supervision_only() -> None:
    args = (small_tokenizer(), LAYOUT, "q", ["a", "b", "c"], [1.0, 1.0, 0.0])
    process, outcome = build_row(*args), build_row(*args, supervision="final_step")
    assert outcome.ids == process.ids
    assert outcome.read_positions == process.read_positions[-1:]
    assert outcome.labels == (0.0,)


def test_collate_keeps_every_value_in_its_place() -> None:
    rows = [
        TrainingRow((5, 6, 7), (1, 2), (1.0, 0.0), torch.ones(1, 3, 2, 2), {"x": [9, IGNORED, 8]}),
        TrainingRow((5,), (0,), (0.25,), torch.zeros(2, 3, 2, 2)),
    ]
    batch = collate(rows, pad_id=4)
    assert batch.ids.tolist() == [[5, 6, 7], [5, 4, 4]]
    assert batch.reads.tolist() == [[0, 1], [0, 2], [1, 0]]
    assert batch.labels.tolist() == [1.0, 0.0, 0.25]
    assert batch.pixels is not None
    assert batch.pixels.shape == (3, 3, 2, 2)
    assert batch.targets["x"].tolist() == [[9, IGNORED, 8], [IGNORED] * 3]


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(InputError, match="2 steps have 1 labels"):
        build_row(small_tokenizer(), LAYOUT, "q", ["a", "b"], [1.0])
    with pytest.raises(InputError, match="at least one row"):
        collate([], 0)
