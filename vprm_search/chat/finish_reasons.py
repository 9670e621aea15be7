"""Why a chat model's reply ended: one table of what every provider's own words mean.

Clients put the reason into different places and spell it in different ways; `end_of` looks into
all of them. What no table knows is "unknown", never "finished".

Sources: the API references of OpenAI (chat completions, responses), Anthropic (messages), Google
(GenerateContentResponse), AWS Bedrock (Converse, InvokeModel), Cohere (v1, v2), Mistral, Groq,
Fireworks, Together, DeepSeek, xAI, OpenRouter, Hugging Face TGI, Ollama, llama.cpp, IBM watsonx,
Zhipu, and vLLM's and SGLang's sources.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Literal

from langchain_core.messages import AIMessage

Ending = Literal["stopped", "natural", "stop_string", "length", "failed", "unknown"]
"""How a reply ended.

"natural": by the model's own end; "stop_string": at a stop string; "stopped": one of these two,
the provider does not say which; "length": by a limit, unfinished; "failed": no usable reply.
"""


@dataclass(frozen=True, slots=True)
class End:
    """How a reply ended, and the provider's word for it with what that means ("" if none).

    `at` is the stop string that ended it, where the provider says which.
    """

    ending: Ending = "unknown"
    reason: str = ""
    at: str = ""


_MEANINGS: tuple[tuple[Ending, str, str], ...] = (
    ("stopped", "", "stop reason_stop finish finished stop_criteria_met"),
    ("natural", "", "end_turn eos eos_token endoftext end_of_text complete completed"),
    ("stop_string", "", "stop_sequence stop_string stop_word word"),
    (
        "length",
        "the token limit was reached",
        "length max_tokens max_output_tokens max_length max_new_tokens token_limit limit max_len "
        "reason_max_len length_exceeded max_completion_tokens",
    ),
    (
        "length",
        "the model's context was full",
        "model_length model_context_window_exceeded context_length_exceeded max_context "
        "reason_max_context max_context_length context_length context_window_exceeded error_limit",
    ),
    (
        "length",
        "the reply is incomplete",
        "incomplete pause_turn compaction repetition repetition_truncation",
    ),
    ("length", "the provider's time was over", "time_limit reason_time_limit timeout"),
    (
        "failed",
        "the model refused to answer or its output was filtered",
        "content_filter content_filtered safety refusal refused blocklist prohibited_content spii "
        "recitation image_safety image_prohibited_content image_recitation sensitive error_toxic "
        "guardrail_intervened guardrails blocked model_armor jailbreak language toxic moderation "
        "policy_violation",
    ),
    (
        "failed",
        "the model called tools instead of answering",
        "tool_calls tool_call tool_use function_call reason_tool_calls unexpected_tool_call "
        "too_many_tool_calls",
    ),
    (
        "failed",
        "what the model wrote could not be parsed",
        "malformed_function_call malformed_tool_use malformed_model_output malformed_response "
        "missing_thought_signature",
    ),
    (
        "failed",
        "the provider failed while it answered",
        "error error_server internal_error failed failure insufficient_system_resource "
        "network_error engine_overloaded server_error other no_image image_other "
        "rag_query_when_rag_disabled",
    ),
    (
        "failed",
        "the reply was aborted",
        "abort aborted cancelled canceled cancel user_cancel preempted",
    ),
    ("failed", "the model was only loaded", "load unload"),
)
REASONS: dict[str, End] = {
    word: End(ending, f"{meaning} ({word})" if meaning else word)
    for ending, meaning, words in _MEANINGS
    for word in words.split()
}
"""Every documented reason, in lower case with underscores, and what it means."""

_NOT_YET = (
    "",
    "null",
    "none",
    "not_finished",
    "unspecified",
    "finish_reason_unspecified",
    "block_reason_unspecified",
    "reason_invalid",
    "in_progress",
    "queued",
)
_KEYS = (
    "finish_reason",
    "finishReason",
    "done_reason",
    "stopReason",
    "completion_reason",
    "completionReason",
    "stop_type",
)
_STATUS = frozenset({"completed", "incomplete", "failed", "cancelled", "in_progress", "queued"})
# Anthropic's word for the reason; vLLM's and SGLang's stop string, token number or null.
_MATCHED = ("stop_reason", "matched_stop")


def end_of(info: Mapping[str, Any], message: AIMessage | None = None) -> End:
    """Return how a reply ended.

    Args:
        info: what the client says of the reply: generation info, response metadata and the output
            of the call, all in one.
        message: the reply, which may carry a refusal.
    """
    refused = _refusal(message) or _blocked(info.get("prompt_feedback"))
    if refused:
        return End("failed", f"the model refused to answer or its output was filtered ({refused})")
    told = [end for end in (_meaning(info.get(key)) for key in _KEYS) if end is not None]
    told += _of_responses(info)
    matched = [info[key] for key in _MATCHED if key in info]
    stops = [value for value in matched if isinstance(value, str)]
    told += [end for end in map(_meaning, stops) if end is not None and end.ending != "unknown"]
    for ending in ("failed", "length", "stop_string", "natural", "stopped", "unknown"):
        for end in told:
            if end.ending != ending:
                continue
            if ending == "stopped" and matched:
                kind: Ending = "stop_string" if stops else "natural"
                return End(kind, end.reason, stops[0] if stops else "")
            named = info.get("stop_sequence")  # Anthropic's
            return replace(end, at=named) if ending == "stop_string" and named else end
    return End("unknown", stops[0][:80] if stops else "")


def _meaning(value: Any) -> End | None:
    """Return what a word means; None where there is none, "unknown" for one nobody knows."""
    if isinstance(value, Mapping):  # SGLang's own API: {"type": "length", "length": 16}
        value = value.get("type") or value.get("reason")
    if isinstance(value, Enum):
        value = value.name
    if value is None:
        return None
    if not isinstance(value, str):
        return End("unknown", str(value)[:80])
    word = _plain(value)
    if word in _NOT_YET:
        return None
    shorter = re.sub(r"^(?:finish|stop|block)_reason_", "", word)
    return REASONS.get(word) or REASONS.get(shorter) or End("unknown", value[:80])


def _plain(value: str) -> str:
    """Return a word in lower case with underscores: `FinishReason.MAX_TOKENS`, `maxTokens`."""
    word = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", value.strip().rpartition(".")[2])
    return re.sub(r"[\s-]+", "_", word).lower()


def _of_responses(info: Mapping[str, Any]) -> list[End]:
    status = info.get("status")
    if not isinstance(status, str) or status not in _STATUS:
        return []
    details = info.get("incomplete_details")
    why = _meaning(details.get("reason")) if isinstance(details, Mapping) else None
    if status == "incomplete" and why is not None and why.ending in ("length", "failed"):
        return [why]
    return [end for end in [_meaning(status)] if end is not None]


def _refusal(message: AIMessage | None) -> str:
    if message is None:
        return ""
    blocks = [] if isinstance(message.content, str) else message.content
    said = [b.get("refusal") for b in blocks if isinstance(b, dict) and b.get("type") == "refusal"]
    text = message.additional_kwargs.get("refusal") or next(iter(said), "")
    return " ".join(str(text).split())[:200]


def _blocked(feedback: Any) -> str:
    """Return why a prompt was blocked, by Google's `prompt_feedback`."""
    reason = feedback.get("block_reason") if isinstance(feedback, Mapping) else None
    if isinstance(reason, Enum):
        reason = reason.name
    if isinstance(reason, int) and reason:
        return f"block reason {reason}"
    plain = _plain(reason) if isinstance(reason, str) else ""
    return "" if plain in _NOT_YET else plain
