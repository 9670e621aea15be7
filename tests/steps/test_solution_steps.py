"""Steps: splitting, VisualPRM's merge, normalisation, bounds."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from vprm_search.errors import ConfigError, InputError
from vprm_search.steps import (
    DEFAULT_LIMITS,
    NO_LIMITS,
    StepLimits,
    join_steps,
    merge_steps,
    normalise_text,
    split_at_blank_lines,
    split_solution,
    split_steps,
)

any_text = st.text(alphabet=st.characters(exclude_categories=[]), max_size=60)
surrogates = st.text(alphabet=st.sampled_from("a\n\r\0\ud83d\ude00\udc00\ud800é"), max_size=30)
step_lists = st.lists(st.text("ab \n", max_size=6), max_size=40)


@given(any_text | surrogates)
def test_normalised_text_survives_every_store_and_a_second_pass(text: str) -> None:
    normal = normalise_text(text)
    assert normalise_text(normal) == normal
    assert normal.encode("utf-8").decode("utf-8") == normal
    assert json.loads(json.dumps(normal)) == normal
    assert json.loads(json.dumps(normal, ensure_ascii=False)) == normal
    assert "\0" not in normal
    assert "\r" not in normal


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\0\r")))
def test_ordinary_text_is_left_exactly_alone(text: str) -> None:
    assert normalise_text(text) == text


@given(surrogates)
def test_normalising_agrees_with_json_on_surrogates(text: str) -> None:
    """JSON itself joins pairs; what it leaves alone must have become U+FFFD."""
    joined = json.loads(json.dumps(text)).replace("\r\n", "\n").replace("\r", "\n")
    expected = "".join("\ufffd" if c == "\0" or "\ud800" <= c <= "\udfff" else c for c in joined)
    assert normalise_text(text) == expected


def test_composition_is_not_changed() -> None:
    decomposed = "e\N{COMBINING ACUTE ACCENT}"
    assert normalise_text(decomposed) == decomposed


@given(step_lists, st.integers(1, 20))
def test_merging_matches_the_rule_of_the_paper_code(steps: list[str], max_steps: int) -> None:
    """Oracle: cut the index range in groups of ceil(n / max_steps), one index at a time."""
    groups: list[list[str]] = []
    for index, step in enumerate(steps):
        if index % max(1, math.ceil(len(steps) / max_steps)) == 0:
            groups.append([])
        groups[-1].append(step)
    merged = merge_steps(steps, max_steps)
    assert merged == ["\n\n".join(group) for group in groups]
    assert len(merged) <= max_steps
    assert join_steps(merged) == join_steps(steps)


@pytest.mark.parametrize(
    ("steps", "groups"), [(0, 0), (1, 1), (12, 12), (13, 7), (24, 12), (25, 9)]
)
def test_merging_to_twelve_gives_the_published_counts(steps: int, groups: int) -> None:
    assert len(merge_steps([f"s{i}" for i in range(steps)], 12)) == groups


@given(any_text | surrogates | st.text("ab \n\r", max_size=40))
def test_clean_steps_are_stripped_non_empty_and_stable(text: str) -> None:
    steps = split_steps(text)
    assert all(step and step == step.strip() for step in steps)
    assert split_steps(join_steps(steps)) == steps


@given(st.text("ab \n", max_size=40))
def test_parity_mode_keeps_every_character(text: str) -> None:
    steps = split_steps(text, keep_empty=True)
    assert join_steps(steps) == text
    assert steps == text.split("\n\n")


@given(st.text("ab \n", max_size=40), st.integers(1, 5), st.booleans())
def test_max_steps_is_an_upper_bound(text: str, max_steps: int, keep_empty: bool) -> None:
    steps = split_steps(text, max_steps=max_steps, keep_empty=keep_empty)
    assert len(steps) <= max_steps
    assert join_steps(steps) == join_steps(split_steps(text, keep_empty=keep_empty))


def test_a_trailing_separator_is_a_step_only_in_parity_mode() -> None:
    assert split_steps("a\n\nb\n\n") == ["a", "b"]
    assert split_steps("a\n\nb\n\n", keep_empty=True) == ["a", "b", ""]
    assert split_steps("") == []
    assert split_steps("", keep_empty=True) == [""]


def test_windows_line_ends_separate_steps() -> None:
    assert split_steps("a\r\n\r\nb\rc") == ["a", "b\nc"]


def test_the_splitter_can_be_replaced() -> None:
    assert split_steps("a. b. c", splitter=lambda text: text.split(".")) == ["a", "b", "c"]
    assert split_at_blank_lines("a\n\nb") == ["a", "b"]


@pytest.mark.parametrize("max_steps", [0, -1])
def test_max_steps_below_one_is_refused(max_steps: int) -> None:
    with pytest.raises(ConfigError, match=f"max_steps is {max_steps}"):
        merge_steps(["a"], max_steps)


@pytest.mark.parametrize(
    ("text", "limits", "message"),
    [
        ("abcd", StepLimits(max_text_bytes=3), "the solution has at least 4 bytes.* limit is 3"),
        ("éé", StepLimits(max_text_bytes=3), "at least 4 bytes.* limit is 3"),
        ("a\n\nbcd", StepLimits(max_step_chars=2), "step 2 has 3 characters.* limit is 2"),
        ("x" * 200_001, DEFAULT_LIMITS, "200001 bytes.* limit is 200000"),
        ("x" * 8_001, DEFAULT_LIMITS, "step 1 has 8001 characters.* limit is 8000"),
    ],
)
def test_bounds_say_what_the_limit_and_the_value(
    text: str, limits: StepLimits, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        split_steps(text, limits=limits)
    assert split_steps(text, limits=NO_LIMITS)


@given(st.lists(st.text("ab ", min_size=1, max_size=9), max_size=40), st.integers(1, 12))
def test_more_steps_than_the_limit_are_merged(paragraphs: list[str], most: int) -> None:
    text = "\n\n".join(paragraphs)
    free = split_steps(text)
    steps = split_steps(text, limits=StepLimits(max_steps=most))
    assert steps == merge_steps(free, most)
    assert split_solution(text, max_steps=None, limits=StepLimits(max_steps=most)) == merge_steps(
        text.split("\n\n"), most
    )


@given(st.lists(st.text("ab。\n", min_size=1, max_size=9), min_size=1, max_size=40))
def test_a_long_step_is_cut_where_a_line_or_a_word_ends(words: list[str]) -> None:
    limits = StepLimits(max_step_chars=12)
    text = " ".join(words)
    steps = split_steps(text, limits=limits)
    assert all(len(step) <= 12 for step in steps)
    assert "".join("".join(steps).split()) == "".join(text.split())
    if len(text) <= 12:
        assert steps == split_steps(text)


def test_a_long_answer_is_not_lost() -> None:
    paragraphs = [f"Wait, tile {n}. " + "It is red. " * 200 for n in range(70)]
    for text in ("\n\n".join(paragraphs), " ".join(paragraphs), "\n".join(paragraphs)):
        assert 100_000 < len(text) < 200_000
        assert 1 <= len(split_solution(text)) <= 12
        assert "".join("".join(split_solution(text)).split()) == "".join(text.split())


def test_bounds_are_inclusive() -> None:
    limits = StepLimits(max_text_bytes=4, max_steps=2, max_step_chars=1)
    assert split_steps("a\n\nb", limits=limits) == ["a", "b"]
    limits.check_text("\ud83dx")  # a lone surrogate is counted (3 bytes), not a crash


def test_steps_are_counted_after_merging() -> None:
    text = "\n\n".join("x" * 300)
    assert len(split_steps(text, max_steps=12)) == 12


@pytest.mark.parametrize("field", ["max_step_chars", "max_steps", "max_text_bytes"])
def test_limits_are_positive_and_known(field: str) -> None:
    with pytest.raises(ValidationError):
        StepLimits(**{field: 0})
    with pytest.raises(ValidationError):
        StepLimits(max_everything=1)  # type: ignore[call-arg]
