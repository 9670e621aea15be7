"""Why a reply ended, in the words of every provider."""

from __future__ import annotations

from enum import Enum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage

from vprm_search.chat.finish_reasons import REASONS, end_of

# As each API's reference documents them: finished, cut by a limit, failed.
DOCUMENTED = {
    "OpenAI, Azure": ("stop", "length", "content_filter tool_calls function_call"),
    "Anthropic": (
        "end_turn stop_sequence",
        "max_tokens model_context_window_exceeded pause_turn",
        "tool_use refusal",
    ),
    "Google": (
        "STOP",
        "MAX_TOKENS",
        "SAFETY RECITATION LANGUAGE OTHER BLOCKLIST PROHIBITED_CONTENT SPII IMAGE_SAFETY "
        "MALFORMED_FUNCTION_CALL IMAGE_PROHIBITED_CONTENT IMAGE_OTHER NO_IMAGE IMAGE_RECITATION "
        "UNEXPECTED_TOOL_CALL TOO_MANY_TOOL_CALLS MISSING_THOUGHT_SIGNATURE MALFORMED_RESPONSE",
    ),
    "Bedrock Converse": (
        "end_turn stop_sequence",
        "max_tokens model_context_window_exceeded",
        "tool_use guardrail_intervened content_filtered malformed_model_output malformed_tool_use",
    ),
    "Bedrock, other": (
        "FINISHED STOP_CRITERIA_MET endoftext COMPLETE",
        "LENGTH",
        "CONTENT_FILTERED",
    ),
    "Cohere": (
        "COMPLETE STOP_SEQUENCE",
        "MAX_TOKENS ERROR_LIMIT TIMEOUT",
        "TOOL_CALL ERROR ERROR_TOXIC USER_CANCEL",
    ),
    "Mistral": ("stop", "length model_length", "error tool_calls"),
    "DeepSeek": ("stop", "length", "content_filter tool_calls insufficient_system_resource"),
    "Together": ("stop eos", "length", "tool_calls function_call"),
    "OpenRouter": ("stop", "length", "tool_calls content_filter error"),
    "xAI": (
        "REASON_STOP",
        "REASON_MAX_LEN REASON_MAX_CONTEXT REASON_TIME_LIMIT",
        "REASON_TOOL_CALLS",
    ),
    "vLLM": ("stop", "length repetition", "abort error tool_calls"),
    "SGLang": ("stop", "length", "abort content_filter tool_calls"),
    "TGI": ("eos_token stop_sequence", "length", ""),
    "llama.cpp": ("eos word", "limit", ""),
    "Ollama": ("stop", "length", "load unload"),
    "watsonx": ("eos_token stop_sequence", "max_tokens token_limit time_limit", "cancelled error"),
    "Zhipu": ("stop", "length model_context_window_exceeded", "sensitive network_error"),
}
CASES = [
    (provider, word, group)
    for provider, groups in DOCUMENTED.items()
    for group, words in zip(("finished", "length", "failed"), groups, strict=True)
    for word in words.split()
]
FINISHED = ("stopped", "natural", "stop_string")


@pytest.mark.parametrize(("provider", "word", "group"), CASES)
def test_every_documented_reason(provider: str, word: str, group: str) -> None:
    for key in ("finish_reason", "done_reason", "stopReason"):
        end = end_of({key: word})
        assert ("finished" if end.ending in FINISHED else end.ending) == group
        assert word.lower() in end.reason.lower() or group == "finished"


@given(
    word=st.sampled_from(sorted(REASONS)),
    spelt=st.sampled_from([str.lower, str.upper, str.title]),
    prefix=st.sampled_from(["", "FinishReason.", "FINISH_REASON_"]),
    dash=st.booleans(),
)
def test_spelling_does_not_count(word: str, spelt: Any, prefix: str, dash: bool) -> None:
    written = spelt(word)
    if not prefix.endswith("_"):
        written = written.replace("_", "-" if dash else "_")
    assert end_of({"finish_reason": prefix + written}) == REASONS[word]


@given(st.text(max_size=12).filter(lambda text: text.strip().lower() not in REASONS))
def test_what_nobody_knows_is_never_finished(word: str) -> None:
    end = end_of({"finish_reason": f"zz{word}"})
    assert end.ending == "unknown"
    assert end_of({"finish_reason": f"zz{word}", "stop_reason": None}).ending == "unknown"


@pytest.mark.parametrize("info", [{}, {"finish_reason": None}, {"finish_reason": "null"},
    {"finish_reason": ""}, {"finish_reason": "FINISH_REASON_UNSPECIFIED"}, {"status": "queued"},
    {"finish_reason": "not_finished"}, {"status": 200}, {"finish_reason": 7}])  # fmt: skip
def test_no_reason_is_unknown(info: dict[str, Any]) -> None:
    assert end_of(info).ending == "unknown"


class Reason(Enum):
    MAX_TOKENS = 2


@pytest.mark.parametrize(
    ("info", "ending"),
    [
        ({"finish_reason": "stop", "stop_reason": "\n\n"}, "stop_string"),
        ({"finish_reason": "stop", "stop_reason": None}, "natural"),
        ({"finish_reason": "stop", "stop_reason": 151645}, "natural"),
        ({"finish_reason": "stop", "matched_stop": "\n\n"}, "stop_string"),
        ({"finish_reason": "stop", "matched_stop": 2}, "natural"),
        ({"finish_reason": "length", "stop_reason": None}, "length"),
        ({"stop_reason": "max_tokens"}, "length"),
        ({"stop_reason": "overheated"}, "unknown"),
        ({"status": "completed"}, "natural"),
        ({"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}, "length"),
        ({"status": "incomplete", "incomplete_details": {"reason": "content_filter"}}, "failed"),
        ({"status": "incomplete"}, "length"),
        ({"status": "failed"}, "failed"),
        ({"finish_reason": Reason.MAX_TOKENS}, "length"),
        ({"finish_reason": {"type": "length", "length": 16}}, "length"),
        ({"finishReason": {"reason": "endoftext"}}, "natural"),
        ({"completionReason": "CONTENT_FILTERED"}, "failed"),
        ({"prompt_feedback": {"block_reason": "SAFETY"}}, "failed"),
        ({"prompt_feedback": {"block_reason": 3}}, "failed"),
        ({"prompt_feedback": {"block_reason": 0}, "finish_reason": "STOP"}, "stopped"),
        ({"stopReason": "maxTokens"}, "length"),
        ({"finish_reason": "stop", "native_finish_reason": "end_turn"}, "stopped"),
    ],
)
def test_where_clients_put_it(info: dict[str, Any], ending: str) -> None:
    assert end_of(info).ending == ending


@pytest.mark.parametrize(
    "message",
    [
        AIMessage("", additional_kwargs={"refusal": "I cannot help."}),
        AIMessage([{"type": "refusal", "refusal": "I cannot help."}]),
    ],
)
def test_a_refusal_is_one_whatever_the_reason(message: AIMessage) -> None:
    end = end_of({"finish_reason": "stop", "status": "completed"}, message)
    assert (end.ending, "I cannot help." in end.reason) == ("failed", True)
