"""Ids and seeds: content decides, nothing else does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vprm_search.ids import child_id, child_seed, digest, root_id
from vprm_search.types import Problem

parts = st.lists(
    st.text("ab1", max_size=3) | st.binary(max_size=3) | st.integers(-20, 20), max_size=4
)
problems = st.builds(
    Problem,
    question=st.text(max_size=4),
    images=st.lists(st.text("ab", max_size=2), max_size=3).map(tuple),
    system=st.text("ab", max_size=2),
)


@given(parts, parts)
def test_the_digest_is_injective_on_the_parts(a: list[object], b: list[object]) -> None:
    """Equal digests mean equal parts: no text moves between parts, "1" is not 1 nor b"1"."""
    same = [(type(x), x) for x in a] == [(type(x), x) for x in b]
    assert (digest(*a) == digest(*b)) == same  # type: ignore[arg-type]


@given(problems, problems, st.integers(0, 3), st.integers(0, 3))
def test_a_root_is_named_by_problem_and_seed(a: Problem, b: Problem, m: int, n: int) -> None:
    assert (root_id(a, m) == root_id(b, n)) == ((a, m) == (b, n))


children = st.tuples(st.sampled_from(["r", "s"]), st.integers(0, 12), st.text("ab1", max_size=3))


@given(children, children)
def test_a_child_is_named_by_parent_index_and_text(
    a: tuple[str, int, str], b: tuple[str, int, str]
) -> None:
    assert (child_id(*a) == child_id(*b)) == (a == b)


def test_seeds_fit_into_63_bits_and_spread() -> None:
    seeds = [child_seed(f"p{i % 7}", i) for i in range(4_000)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    for bit in range(63):
        ones = sum(seed >> bit & 1 for seed in seeds)
        assert 1_800 < ones < 2_200  # 6 sigma around one half


def test_names_are_stable_over_releases() -> None:
    """A stored search must be found again by a later version: these values may never change."""
    root = root_id(Problem("What is 1 + 1?", ("sha256-0",), "Be brief."), 7)
    assert root == "462764a908be0b23e816bc15"
    assert child_id(root, 3, "1 + 1 = 2") == "9d0fd9c874b3334a7b91e006"
    assert child_seed(root, 3) == 7563645259062496768


@pytest.mark.parametrize("index", [0, 1, 10**6])
def test_an_id_is_24_hexadecimal_digits(index: int) -> None:
    node = child_id("parent", index, "text")
    assert len(node) == 24
    int(node, 16)
