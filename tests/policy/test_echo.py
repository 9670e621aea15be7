"""A reply that repeats what it should continue."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vprm_search.policy.prompts import stop_strings, strip_echo

STEP = st.text("ab :1", min_size=1, max_size=8).filter(lambda text: text.strip() == text)
STEPS = st.lists(STEP, min_size=1, max_size=4)


@given(STEPS, STEP, st.integers(0, 3), st.sampled_from(["\n\n", "|", "\n"]))
def test_a_repeated_path_is_removed(steps: list[str], new: str, first: int, separator: str) -> None:
    echoed = separator.join(steps[min(first, len(steps) - 1) :])
    left = strip_echo(f"{echoed}{separator}{new}", steps, separator)
    # What is left is the new step, or less if the new step repeats the path once more.
    assert new.endswith(left.strip(separator + "\n"))


@given(STEPS, STEP)
def test_a_new_step_stays(steps: list[str], new: str) -> None:
    separator = "\n\n"
    starts = {separator.join(steps[first:]) for first in range(len(steps))}
    if new not in starts:
        assert strip_echo(new, steps, separator) == new


def test_a_step_that_starts_like_an_earlier_one_stays() -> None:
    assert strip_echo("Step 1: red = 3.", ["Step 1"], "\n\n") == "Step 1: red = 3."
    assert strip_echo("a\n\nb\n\nc", ["a", "b"], "\n\n").strip() == "c"
    assert strip_echo("b\n\nc", ["a", "b"], "\n\n").strip() == "c"
    assert strip_echo("a\n\nb", ["a", "b"], "\n\n") == ""
    assert strip_echo("text", [], "\n\n") == "text"


def test_stop_strings_a_model_does_not_take_are_not_sent() -> None:
    assert stop_strings("\n\n", "any") == ("\n\n",)
    assert stop_strings("\n\n", "non_blank") == ()
    assert stop_strings("\n---\n", "non_blank") == ("\n---\n",)
    assert stop_strings("\n---\n", "none") == ()
