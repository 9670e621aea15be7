"""Properties of the tiny tokenizer: one token per word, any text round-trips, no forgery."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from examples.tiny_models.tokenizer import (
    CONTROL_TOKENS,
    IMAGE_TOKENS,
    build_tokenizer,
    policy_prompt,
    save_tokenizer,
    token_id,
    world_words,
)
from vprm_search.tiny.sampler import IMAGE_CONTEXT
from vprm_search.tiny.world import COLOURS, FAMILIES, generate

TOKENIZER = build_tokenizer()
CONTROL_IDS = set(TOKENIZER.convert_tokens_to_ids(list(CONTROL_TOKENS)))
plain_text = st.text(st.characters(exclude_categories=["Cs"]))
nasty_text = st.lists(
    st.sampled_from([*CONTROL_TOKENS, "<", "|", ">", "+", "Step 3:", " red =", "\n\n", "é", "漢"])
).map("".join)


def encode(text: str, *, plain: bool = False) -> list[int]:
    ids: list[int] = TOKENIZER(text, add_special_tokens=False, split_special_tokens=plain)[
        "input_ids"
    ]
    return ids


@given(plain_text | nasty_text)
def test_any_text_round_trips(text: str) -> None:
    assert TOKENIZER.decode(encode(text, plain=True)) == text


@given(plain_text | nasty_text)
def test_plain_text_never_gives_a_control_token(text: str) -> None:
    assert not CONTROL_IDS & set(encode(text, plain=True))


@pytest.mark.parametrize("control", CONTROL_TOKENS)
def test_trusted_text_may_hold_control_tokens(control: str) -> None:
    assert encode(control) == [TOKENIZER.convert_tokens_to_ids(control)]


@pytest.mark.parametrize("word", ["+", "-", " x", " 7", "7", ".\n\n", "Step 11:", "assistant\n"])
def test_words_that_must_be_single_tokens(word: str) -> None:
    assert TOKENIZER.decode([token_id(TOKENIZER, word)]) == word


@pytest.mark.parametrize("name", COLOURS)
def test_a_colour_with_its_equals_sign_is_one_token(name: str) -> None:
    assert encode(f"Step 1: {name} = 3.") == [
        token_id(TOKENIZER, word) for word in ("Step 1:", f" {name} =", " 3", ".")
    ]


def test_numbers_are_spelled_digit_by_digit() -> None:
    assert [TOKENIZER.decode([token]) for token in encode(" 42")] == [" 4", "2"]


def test_token_id_refuses_what_is_not_one_token() -> None:
    with pytest.raises(ValueError, match="2 tokens"):
        token_id(TOKENIZER, " 42")


@given(st.sampled_from(FAMILIES), st.integers(0, 10**6))
def test_the_worlds_language_needs_no_byte_fallback(family: str, index: int) -> None:
    problem = generate(family, "train", index)
    words = set(world_words()) | {"\n", "?", ".", ")"}
    for text in (problem.question, problem.solution):
        assert {TOKENIZER.decode([token]) for token in encode(text)} <= words


@given(st.sampled_from(FAMILIES), st.integers(0, 10**6))
def test_operands_stand_at_fixed_places(family: str, index: int) -> None:
    problem = generate(family, "train", index)
    words = [TOKENIZER.decode([token]).strip() for token in encode(problem.question)]
    assert words[3::2][: len(problem.operands)] == list(problem.operands)


def test_the_chat_template_gives_the_policy_prompt() -> None:
    content = [{"type": "image"}, {"type": "text", "text": "What is red + blue?"}]
    text = TOKENIZER.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    block = "<img>" + IMAGE_CONTEXT * IMAGE_TOKENS + "</img>"
    assert text.replace(IMAGE_CONTEXT, block) == policy_prompt("What is red + blue?")


def test_a_saved_tokenizer_gives_the_same_ids(tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    again = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    text = policy_prompt("What is (red x blue) - ünknown?") + generate("bars", "test", 0).solution
    assert again.encode(text) == TOKENIZER.encode(text)
    assert again.eos_token == "<|im_end|>"
    assert again.pad_token_id == TOKENIZER.pad_token_id
