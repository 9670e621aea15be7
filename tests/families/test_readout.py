"""From hidden states to P('+'): against plain softmax and sigmoid, and nothing from NaN."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vprm_search.scoring.engine.readout import (
    FullVocabularyReadout,
    HeadReadout,
    Readout,
    TokenPairReadout,
)

HIDDEN = 6
WORDS = 40_000  # more than one piece of the vocabulary


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


HEAD = drawn(0, WORDS, HIDDEN)
ONE = [(drawn(1, 1, HIDDEN), drawn(2, 1))]
TWO = [(drawn(3, HIDDEN, HIDDEN), drawn(4, HIDDEN)), (drawn(5, 2, HIDDEN), drawn(6, 2))]
READOUTS: dict[str, tuple[Readout, Callable[[Tensor], Tensor]]] = {
    "pair": (
        TokenPairReadout(HEAD, 7, 39_000),
        lambda h: (h @ HEAD.T)[:, [7, 39_000]].softmax(-1)[:, 0],
    ),
    "vocabulary": (
        FullVocabularyReadout(HEAD, 39_000),
        lambda h: (h @ HEAD.T).softmax(-1)[:, 39_000],
    ),
    "value": (HeadReadout(ONE), lambda h: 1 / (1 + (-(h @ ONE[0][0].T + ONE[0][1])[:, 0]).exp())),
    "classes": (
        HeadReadout(TWO),
        lambda h: ((h @ TWO[0][0].T + TWO[0][1]).relu() @ TWO[1][0].T + TWO[1][1]).softmax(-1)[
            :, 1
        ],
    ),
    "no bias": (HeadReadout([(ONE[0][0], None)]), lambda h: (h @ ONE[0][0].T)[:, 0].sigmoid()),
}


@pytest.mark.parametrize("name", READOUTS)
@given(seed=st.integers(0, 10_000), rows=st.integers(1, 5), size=st.sampled_from((0.1, 1.0, 30.0)))
def test_equals_the_plain_formula(name: str, seed: int, rows: int, size: float) -> None:
    readout, plain = READOUTS[name]
    hidden = drawn(seed, rows, HIDDEN) * size
    found = readout(hidden)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, plain(hidden), atol=1e-5, rtol=1e-4)
    assert ((found >= 0) & (found <= 1)).all()


@pytest.mark.parametrize("name", READOUTS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_gives_nan_in_its_row_alone(name: str, bad: float) -> None:
    hidden = drawn(9, 3, HIDDEN)
    hidden[1, 2] = bad
    found = READOUTS[name][0](hidden)
    assert found.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("name", READOUTS)
def test_half_precision_states_are_read_in_float32(name: str) -> None:
    hidden = drawn(10, 4, HIDDEN).bfloat16()
    readout, plain = READOUTS[name]
    torch.testing.assert_close(readout(hidden), plain(hidden.float()), atol=1e-5, rtol=1e-4)


def test_certain_scores_do_not_tie_in_half_precision() -> None:
    """Two states whose bfloat16 logits would both round to P = 1."""
    head = torch.zeros(2, HIDDEN, dtype=torch.bfloat16)
    head[0, 0] = 1
    hidden = torch.zeros(2, HIDDEN)
    hidden[:, 0] = torch.tensor([9.0, 9.5])
    first, second = TokenPairReadout(head, 0, 1)(hidden).tolist()
    assert first < second < 1
