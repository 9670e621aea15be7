"""The learning rate's course."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.tiny_models.reward_trainer import Schedule


@given(steps=st.integers(1, 2000), decay=st.sampled_from(["cosine", "linear"]))
def test_rises_then_falls_within_bounds(steps: int, decay: str) -> None:
    schedule = Schedule(steps=steps, decay=decay, decay_share=0.5)
    factors = [schedule.factor(step) for step in range(steps)]
    peak = factors.index(max(factors))
    assert all(0 <= f <= 1 for f in factors)
    assert factors[: peak + 1] == sorted(factors[: peak + 1])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)


def test_paper_schedule() -> None:
    schedule = Schedule(steps=1000)
    assert schedule.factor(0) == pytest.approx(1 / 50)
    assert schedule.factor(24) == pytest.approx(0.5, abs=2e-3)
    assert schedule.factor(500) == pytest.approx(0.5, abs=1e-9)
    assert schedule.factor(999) == pytest.approx(0.5 - 0.5 * math.cos(math.pi / 1000))
