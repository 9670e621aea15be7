"""Budgets: which limit ends a search; usage comes from the records alone."""

from __future__ import annotations

import json
from fractions import Fraction
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.core.trees import record_lists, tree_from
from vprm_search.budget import Budget, Prices, usage_of
from vprm_search.errors import ConfigError
from vprm_search.types import NodeRecord, Usage

LIMITED = ["candidates", "generated_tokens", "scored_tokens", "requests", "rounds", "seconds"]
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
    assert usage.tokens_sent == sum(record.tokens_sent for record in tree)
    assert usage.tokens_computed == sum(record.tokens_computed for record in tree)
    assert usage.images_encoded == sum(record.images_encoded for record in tree)
    assert usage.forward_passes == sum(record.forward_passes for record in tree)
    assert usage.rounds == max(record.round for record in tree)
    assert usage.candidates == sum(bool(r.seed) for r in tree if r.parent is not None)
    assert usage.scored_steps == sum(bool(r.scored_tokens) for r in tree if r.parent is not None)
    assert usage.seconds == 1.5


@given(limits, amounts)
def test_no_more_candidates_than_candidates_and_requests_are_left(
    limit: dict[str, int | None], spent: dict[str, int]
) -> None:
    left = Budget(**limit).candidates_left(Usage(**spent))
    bounds = [
        max(0, bound - spent[name])
        for name in ("candidates", "requests")
        if (bound := limit[name]) is not None
    ]
    assert left == (min(bounds) if bounds else None)


@given(st.none() | st.integers(1, 5), st.integers(0, 9))
def test_seconds_left_are_never_negative(limit: int | None, spent: int) -> None:
    left = Budget(seconds=limit).seconds_left(spent)
    assert left == (None if limit is None else max(0, limit - spent))


# --- money -------------------------------------------------------------------------------------

KINDS = ["scored_tokens", "tokens_sent", "tokens_computed"]
counts = st.fixed_dictionaries(
    {
        name: st.integers(0, 10**9)
        for name in ["prompt_tokens", "generated_tokens", "requests", "images_encoded", *KINDS]
    }
)
quarters = st.integers(0, 4000).map(lambda n: n / 4)


@given(counts, st.lists(quarters, min_size=5, max_size=5), st.sampled_from(KINDS))
def test_a_cost_is_the_sum_of_counts_times_prices(
    spent: dict[str, int], price: list[float], kind: str
) -> None:
    names = ["per_million_prompt_tokens", "per_million_generated_tokens"]
    names += ["per_million_scored_tokens", "per_image", "per_request"]
    prices = Prices(**dict(zip(names, price, strict=True)), scored_as=kind)  # type: ignore[arg-type]
    tokens = [spent["prompt_tokens"], spent["generated_tokens"], spent[kind]]
    exact = sum((Fraction(p) * n / 10**6 for p, n in zip(price, tokens, strict=False)), Fraction(0))
    exact += Fraction(price[3]) * spent["images_encoded"] + Fraction(price[4]) * spent["requests"]
    assert Usage(**spent).cost(prices) == pytest.approx(float(exact), rel=1e-12)


def test_no_prices_no_cost() -> None:
    assert Usage(prompt_tokens=10**9, requests=5).cost(Prices()) == 0.0
    assert Prices().currency == "USD"


def test_a_price_list_is_read_back() -> None:
    prices = Prices(per_million_generated_tokens=0.6, per_image=0.001, currency="EUR")
    assert Prices.loads(prices.model_dump_json()) == prices


BAD_PRICES = ["", "[]", "{", '{"per_image": -1}', '{"per_token": 1}', '{"per_image": NaN}']
BAD_PRICES += [json.dumps({"currency": "€ "}), json.dumps({"scored_as": "tokens"}), "[" * 100_000]


@pytest.mark.parametrize("text", BAD_PRICES, ids=range(len(BAD_PRICES)))
def test_a_bad_price_list_is_told_by_name(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^prices\.json"):
        Prices.loads(text, "prices.json")


def test_remembered_tokens_have_a_price_of_their_own() -> None:
    spent = Usage(prompt_tokens=3_000_000, cached_tokens=2_000_000)
    assert spent.cost(Prices(per_million_prompt_tokens=5)) == 15
    prices = Prices(per_million_prompt_tokens=5, per_million_cached_tokens=0.5)
    assert spent.cost(prices) == 6
