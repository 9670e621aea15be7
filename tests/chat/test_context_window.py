"""What refusals say about lengths, and what is asked for after them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vprm_search.chat.context_window import ContextWindow, Overrun, read_overrun

# As these servers and services write it: the window, the prompt's tokens, the longest answer.
REFUSALS: list[tuple[str, str, tuple[int | None, int | None, int | None]]] = [
    (
        "OpenAI",
        "This model's maximum context length is 4096 tokens. However, you requested 4217 tokens "
        "(121 in the messages, 4096 in the completion). Please reduce the length of the messages "
        "or completion.",
        (4096, 121, None),
    ),
    (
        "OpenAI, completions",
        "This model's maximum context length is 4097 tokens, however you requested 4116 tokens "
        "(3860 in your prompt; 256 for the completion). Please reduce your prompt; or completion "
        "length.",
        (4097, 3860, None),
    ),
    (
        "OpenAI, prompt alone",
        "This model's maximum context length is 8192 tokens. However, your messages resulted in "
        "8202 tokens. Please reduce the length of the messages.",
        (8192, 8202, None),
    ),
    (
        "OpenAI, answer alone",
        "max_tokens is too large: 32000. This model supports at most 16384 completion tokens, "
        "whereas you provided 32000.",
        (None, None, 16384),
    ),
    (
        "vLLM 0.9",
        "'max_tokens' or 'max_completion_tokens' is too large: 4096. This model's maximum context "
        "length is 2048 tokens and your request has 30 input tokens (4096 > 2048 - 30). None",
        (2048, 30, None),
    ),
    (
        "vLLM 0.32",
        "max_completion_tokens=4096 cannot be greater than max_model_len=max_total_tokens=2048. "
        "Please request fewer output tokens.",
        (2048, None, None),
    ),
    (
        "vLLM, prompt alone",
        "This model's maximum context length is 2048 tokens. However, your prompt contains at "
        "least 2049 input tokens, which exceeds this limit even without any output tokens. Please "
        "reduce the length of the input prompt.",
        (2048, 2049, None),
    ),
    (
        "vLLM, prompt with images",
        "The decoder prompt (length 3000) is longer than the maximum model length of 2048. Make "
        "sure that `max_model_len` is no smaller than the number of text tokens plus multimodal "
        "tokens.",
        (2048, 3000, None),
    ),
    (
        "SGLang",
        "Requested token count exceeds the model's maximum context length of 2048 tokens. You "
        "requested a total of 4126 tokens: 30 tokens from the input messages and 4096 tokens for "
        "the completion. Please reduce the number of tokens in the input messages or the "
        "completion to fit within the limit.",
        (2048, 30, None),
    ),
    (
        "SGLang, prompt alone",
        "The input (10009 tokens) is longer than the model's context length (128 tokens).",
        (128, 10009, None),
    ),
    (
        "llama.cpp",
        "{'error': {'code': 400, 'message': 'the request exceeds the available context size. try "
        "increasing the context size or enable context shift', 'type': "
        "'exceed_context_size_error', 'n_prompt_tokens': 14429, 'n_ctx': 8192}}",
        (8192, 14429, None),
    ),
    (
        "llama.cpp, later",
        "request (14429 tokens) exceeds the available context size (8192 tokens), try increasing",
        (8192, 14429, None),
    ),
    (
        "llama-cpp-python",
        "Requested tokens (2285) exceed context window of 2048",
        (2048, None, None),
    ),
    ("Ollama", "the input length exceeds the context length", (None, None, None)),
    (
        "TGI",
        "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 2048. Given: 34 "
        "`inputs` tokens and 4096 `max_new_tokens`",
        (2048, 34, None),
    ),
    (
        "TGI, answer alone",
        "Input validation error: `max_new_tokens` must be <= 192. Given: 4096",
        (None, None, 192),
    ),
    (
        "LiteLLM",
        "litellm.BadRequestError: ContextWindowExceededError: OpenAIException - This model's "
        "maximum context length is 2048 tokens. However, you requested 4126 tokens (30 in the "
        "messages, 4096 in the completion).. Received Model Group=m\nFallbacks=None",
        (2048, 30, None),
    ),
    (
        "Anthropic",
        "input length and `max_tokens` exceed context limit: 188240 + 21333 > 200000, decrease "
        "input length or `max_tokens` and try again",
        (200000, 188240, None),
    ),
    (
        "Anthropic, answer alone",
        "max_tokens: 100000 > 8192, which is the maximum allowed number of output tokens for it",
        (None, None, 8192),
    ),
    (
        "DeepSeek",
        "Invalid max_tokens value, the valid range of max_tokens is [1, 8192]",
        (None, None, 8192),
    ),
    ("Qwen", "Range of max_tokens should be [1, 2000]", (None, None, 2000)),
    (
        "Groq",
        "`max_tokens` must be less than or equal to `8192`, the maximum value for `max_tokens` is "
        "less than the `context_window` for this model",
        (None, None, 8192),
    ),
    (
        "Mistral",
        "Prompt contains 40 tokens and 0 draft tokens, too large for model with 32768 maximum "
        "context length",
        (32768, 40, None),
    ),
    (
        "Gemini",
        "Unable to submit request because it has a maxOutputTokens value of 100000 but the "
        "supported range is from 1 (inclusive) to 8193 (exclusive).",
        (None, None, 8193),
    ),
]
OTHER = [
    "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
    "'max_completion_tokens' instead.",
    "At most 1 image(s) may be provided in one prompt.",
    "Incorrect API key provided: sk-1234567890",
    "Only one completion choice is allowed",
    "The model `x` does not exist.",
    "Cannot set `add_generation_prompt` and `continue_final_message` to True",
    "This model does not support assistant message prefill.",
    "",
]


@pytest.mark.parametrize(("text", "said"), [r[1:] for r in REFUSALS], ids=[r[0] for r in REFUSALS])
def test_what_a_refusal_says_is_read(
    text: str, said: tuple[int | None, int | None, int | None]
) -> None:
    assert read_overrun(text) == Overrun(*said)
    # as the OpenAI client shows it
    shown = f"Error code: 400 - {{'object': 'error', 'message': {text!r}, 'code': 400}}"
    assert read_overrun(shown) == Overrun(*said)


def test_thousands_may_be_set_apart() -> None:
    text = "maximum context length is 8,192 tokens, you requested 9,000 (1,000 in the messages)"
    assert read_overrun(text) == Overrun(8192, 1000)


@pytest.mark.parametrize("text", OTHER)
def test_other_refusals_are_left_alone(text: str) -> None:
    assert read_overrun(text) is None


@given(
    window=st.integers(64, 10_000),
    prompt=st.integers(1, 10_000),
    chars=st.integers(0, 40_000),
    wanted=st.integers(16, 20_000),
    words=st.sampled_from(["all", "window", "nothing"]),
)
def test_a_server_that_refuses_is_asked_for_less_until_it_answers(
    window: int, prompt: int, chars: int, wanted: int, words: str
) -> None:
    """Or until no answer would fit; and never for ever."""
    ours = ContextWindow()
    asked = ours.room(wanted, chars, 0)
    assert asked == wanted
    refused = 0
    while prompt + asked >= window:
        told = {
            "all": Overrun(window, prompt),
            "window": Overrun(window),
            "nothing": Overrun(),
        }[words]
        refused += 1
        fewer = ours.learn(told, asked, wanted, chars, 0)
        if fewer is None:
            assert prompt + min(asked // 2, 16) >= window or prompt + 17 >= window
            return
        assert 16 <= fewer < asked
        asked = fewer
    ours.note(asked, wanted, chars, 0)
    if words == "all":
        assert refused <= 1
        assert asked == min(wanted, window - prompt - 1)
    assert refused <= 16
    assert ours.room(wanted, chars, 0) <= max(asked, 16)


NUMBERS = st.none() | st.integers(0, 200_000)


@given(st.data(), st.integers(16, 200_000), st.integers(0, 10**6))
def test_whatever_a_server_says_it_is_asked_for_less_each_time(
    data: st.DataObject, wanted: int, chars: int
) -> None:
    ours = ContextWindow()
    asked = wanted
    for _ in range(20):
        told = Overrun(*(data.draw(NUMBERS) for _ in range(3)))
        fewer = ours.learn(told, asked, wanted, chars, 0)
        if fewer is None:
            return
        assert 16 <= fewer < asked
        asked = fewer


@pytest.mark.parametrize("told", [Overrun(10**6), Overrun(answer=10**6), Overrun()])
def test_a_server_that_repeats_a_number_that_helps_nobody_is_given_up_soon(told: Overrun) -> None:
    ours = ContextWindow()
    asked: int | None = 4096
    refused = 0
    while asked is not None:
        asked, refused = ours.learn(told, asked, 4096, 100, 0), refused + 1
    assert refused <= 10


def test_a_prompt_that_never_fits_does_not_shorten_later_answers() -> None:
    ours = ContextWindow()
    asked: int | None = 4096
    while asked is not None:
        asked = ours.learn(Overrun(), asked, 4096, 100_000, 0)
    assert ours.room(4096, 100, 0) == 4096


def test_later_prompts_are_estimated_from_what_was_refused() -> None:
    ours = ContextWindow()
    assert ours.learn(Overrun(2000, 700), 4096, 4096, chars=300, images=1) == 1299
    assert ours.room(4096, 300, 1) == 1299
    assert ours.room(4096, 600, 1) == 1199  # three characters a token
    assert ours.room(512, 600, 1) == 512
    assert ours.room(4096, 300, 2) == 1299  # until it is known better
    assert ours.room(4096, 300_000, 1) == 16
