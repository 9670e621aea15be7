"""Budgets: which limit ends a search; usage comes from the records alone."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.core.trees import record_lists, tree_from
from vprm_search.budget import Budget, usage_of
from vprm_search.types import NodeRecord, Usage

LIMITED = ["candidates", "generated_tokens", "scored_tokens", "rounds", "seconds"]
amounts = st.fixed_dictionaries({name: st.integers(0, 5) for name in LIMITED})
limits = st.fixed_dictionaries({name: st.none() | st.integers(1, 5) for name in LIMITED})


@given(limits, amounts)
def test_a_budget_ends_the_search_at_the_first_limit_met(
    limit: dict[str, int | None], spent: dict[str, int]
) -> None:
    met = [name for name in LIMITED if (bound := limit[name]) is not None and spent[name] >= bound]
    message = Budget(**limit).exhausted(Usage(**spent))
    if not met:
        assert message is None
    else:
        assert message is not None
        name, value, of, shown = message.split()
        assert (name, of) == (met[0], "of")
        assert (float(value), float(shown)) == (spent[met[0]], limit[met[0]])


@given(st.none() | st.integers(1, 9), st.integers(0, 20))
def test_candidates_left_is_never_negative(limit: int | None, spent: int) -> None:
    left = Budget(candidates=limit).candidates_left(Usage(candidates=spent))
    if limit is None:
        assert left is None
    else:
        assert left == (limit - spent if spent < limit else 0)


@pytest.mark.parametrize("name", LIMITED)
def test_limits_are_positive(name: str) -> None:
    for value in (0, -1):
        with pytest.raises(ValidationError):
            Budget(**{name: value})
    with pytest.raises(ValidationError):
        Budget(tokens=5)  # type: ignore[call-arg]


@given(record_lists, st.randoms(use_true_random=False))
@settings(max_examples=30)
def test_usage_is_the_sum_over_the_records_however_often_they_arrive(
    records: list[NodeRecord], rng: Random
) -> None:
    tree = tree_from(records)
    again = [*records, *records[::2]]
    rng.shuffle(again)
    replayed = tree_from(again)
    usage = usage_of(tree, seconds=1.5)
    assert usage == usage_of(replayed, seconds=1.5)
    assert usage.generated_tokens == sum(record.generated_tokens for record in tree)
    assert usage.prompt_tokens == sum(record.prompt_tokens for record in tree)
    assert usage.scored_tokens == sum(record.scored_tokens for record in tree)
    assert usage.requests == sum(record.requests for record in tree)
    assert usage.rounds == max(record.round for record in tree)
    assert usage.candidates == sum(bool(r.seed) for r in tree if r.parent is not None)
    assert usage.scored_steps == sum(bool(r.scored_tokens) for r in tree if r.parent is not None)
    assert usage.seconds == 1.5
