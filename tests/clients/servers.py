"""Doubles of the providers' servers, one for each wire format, strict about what they are sent.

A body with a key that the provider does not document is answered with 400 in the provider's words,
so a client that is asked with too much shows it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.clients.secure import server_context, vertex_server
from tests.json_server import Asked, Reply, json_server

Body = dict[str, Any]
PROMPT, GENERATED, CACHED = 40, 7, 16

_CHAT = (
    "model messages stream temperature top_p stop tools tool_choice response_format user "
    "frequency_penalty presence_penalty stream_options logprobs top_logprobs"
)
# Every key a body may have, as the provider documents it.
_KEYS = {
    "openai": f"{_CHAT} n seed max_tokens max_completion_tokens",
    "vllm": f"{_CHAT} n seed max_tokens max_completion_tokens continue_final_message "
    "add_generation_prompt include_stop_str_in_output",
    "groq": f"{_CHAT} seed max_tokens max_completion_tokens service_tier",
    "mistral": f"{_CHAT} max_tokens random_seed safe_prompt",
    "fireworks": f"{_CHAT} n max_tokens",
    "deepseek": f"{_CHAT} max_tokens",
    "openrouter": f"{_CHAT} seed max_tokens max_completion_tokens",
    "perplexity": f"{_CHAT} max_tokens".replace(" stop ", " "),
    "huggingface": f"{_CHAT} seed max_tokens",
    "responses": "model input stream temperature top_p max_output_tokens reasoning include store "
    "text instructions tools",
    "anthropic": "model messages max_tokens stop_sequences temperature top_k top_p system stream "
    "thinking metadata",
    "invoke": "messages max_tokens stop_sequences temperature top_k top_p system thinking tools "
    "anthropic_version anthropic_beta",
    "watsonx": "model_id messages project_id space_id tools tool_choice tool_choice_option "
    "frequency_penalty logprobs top_logprobs presence_penalty response_format temperature "
    "max_tokens max_completion_tokens time_limit top_p n logit_bias seed stop guided_choice "
    "guided_regex guided_grammar guided_json chat_template_kwargs reasoning_effort "
    "include_reasoning repetition_penalty length_penalty",
    "gemini": "model contents generationConfig systemInstruction safetySettings tools toolConfig",
    "ollama": "model messages stream options think format keep_alive tools logprobs top_logprobs",
    "cohere": "model messages stream temperature max_tokens stop_sequences k p seed",
    "converse": "messages system inferenceConfig additionalModelRequestFields toolConfig",
}
KEYS = {name: frozenset(keys.split()) for name, keys in _KEYS.items()}


_OF_WATSONX = {"version": "5.2", "entity": {"storage": {"type": "local_git_storage"}}}
_TOKENS_OF_BEDROCK = {
    "x-amzn-bedrock-input-token-count": str(PROMPT - CACHED),
    "x-amzn-bedrock-output-token-count": str(GENERATED),
    "x-amzn-bedrock-cache-read-input-token-count": str(CACHED),
}


@dataclass
class Provider:
    """What was asked, and what to answer: a text, the provider's word for its end, thinking."""

    keys: str
    text: str = "Red is 3."
    reason: str = ""
    thinking: str = ""
    url: str = ""
    bodies: list[Body] = field(default_factory=list)

    def rule(self, asked: Asked) -> Reply:
        """Answer a request; a rule for `json_server`."""
        path = asked.path.partition("?")[0]
        if asked.method == "GET":
            return Reply({"object": "list", "data": [], **_OF_WATSONX})
        return self.answer(path, asked.body)

    def answer(self, path: str, body: Body) -> Reply:
        """Answer a body sent to a path."""
        self.bodies.append(body)
        # Some clients send their defaults: null, and one answer.
        sent = {key for key, value in body.items() if value is not None}
        sent -= {"n"} if body.get("n") == 1 else set()
        if unknown := sent - KEYS[self.keys]:
            return Reply({"error": {"message": f"Unsupported parameter: {sorted(unknown)}"}}, 400)
        if path.endswith("/responses"):
            return Reply(self.responses(body))
        if path.endswith("/messages"):
            return Reply(self.anthropic(body))
        if path.endswith(("/invoke", ":rawPredict")):  # Claude at Amazon's and at Google's
            return Reply(self.anthropic(body), headers=_TOKENS_OF_BEDROCK)
        if path.endswith("generateContent"):
            return Reply(self.gemini())
        if path.endswith("/api/chat"):
            return self.ollama(body)
        if path.endswith("/v2/chat"):
            return Reply(self.cohere())
        if path.endswith("/converse"):
            return Reply(self.converse())
        return Reply(self.chat(body))

    def chat(self, body: Body) -> Body:
        message: Body = {"role": "assistant", "content": self.text}
        if self.thinking:
            message["reasoning_content"] = self.thinking
        n = body.get("n") or 1
        choice = {"message": message, "finish_reason": self.reason or "stop", "logprobs": None}
        return {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": body.get("model", "m"),
            "system_fingerprint": "f",
            "choices": [{"index": i, **choice} for i in range(n)],
            "usage": {
                "prompt_tokens": PROMPT,
                "completion_tokens": GENERATED * n,
                "total_tokens": PROMPT + GENERATED * n,
                "prompt_tokens_details": {"cached_tokens": CACHED},
            },
        }

    def responses(self, body: Body) -> Body:
        reason = self.reason or "completed"
        cut = {} if reason == "completed" else {"reason": reason}
        text = {"type": "output_text", "text": self.text, "annotations": []}
        message = {"type": "message", "id": "m1", "role": "assistant", "status": "completed"}
        return {
            "id": "resp_1",
            "object": "response",
            "created_at": 1,
            "model": body["model"],
            "status": "incomplete" if cut else "completed",
            "incomplete_details": cut or None,
            "error": None,
            "output": [{**message, "content": [text]}],
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "usage": {
                "input_tokens": PROMPT,
                "input_tokens_details": {"cached_tokens": CACHED},
                "output_tokens": GENERATED,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": PROMPT + GENERATED,
            },
        }

    def anthropic(self, body: Body) -> Body:
        thought = {"type": "thinking", "thinking": self.thinking, "signature": "x"}
        return {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": body.get("model", "claude"),
            "content": [*([thought] if self.thinking else []), {"type": "text", "text": self.text}],
            "stop_reason": self.reason or "end_turn",
            "stop_sequence": None,
            "usage": {
                "input_tokens": PROMPT - CACHED,
                "cache_read_input_tokens": CACHED,
                "cache_creation_input_tokens": 0,
                "output_tokens": GENERATED,
            },
        }

    def gemini(self) -> Body:
        parts: list[Body] = [{"text": self.text}]
        if self.thinking:
            parts.insert(0, {"text": self.thinking, "thought": True})
        return {
            "candidates": [
                {
                    "index": 0,
                    "content": {"role": "model", "parts": parts},
                    "finishReason": self.reason or "STOP",
                }
            ],
            "modelVersion": "gemini",
            "usageMetadata": {
                "promptTokenCount": PROMPT,
                "candidatesTokenCount": GENERATED,
                "totalTokenCount": PROMPT + GENERATED,
                "cachedContentTokenCount": CACHED,
            },
        }

    def ollama(self, body: Body) -> Reply:
        message: Body = {"role": "assistant", "content": self.text}
        if self.thinking:
            message["thinking"] = self.thinking
        told = {
            "model": body["model"],
            "created_at": "2026-01-01T00:00:00Z",
            "message": message,
            "done": True,
            "done_reason": self.reason or "stop",
            "prompt_eval_count": PROMPT,
            "eval_count": GENERATED,
        }
        line = json.dumps(told).encode() + b"\n"
        return Reply(line, headers={"Content-Type": "application/x-ndjson"})

    def cohere(self) -> Body:
        content: list[Body] = [{"type": "text", "text": self.text}]
        if self.thinking:
            content.insert(0, {"type": "thinking", "thinking": self.thinking})
        tokens = {"input_tokens": PROMPT, "output_tokens": GENERATED}
        return {
            "id": "c1",
            "finish_reason": self.reason or "COMPLETE",
            "message": {"role": "assistant", "content": content},
            "usage": {"billed_units": tokens, "tokens": tokens},
        }

    def converse(self) -> Body:
        content: list[Body] = [{"text": self.text}]
        if self.thinking:
            text = {"text": self.thinking, "signature": "x"}
            content.insert(0, {"reasoningContent": {"reasoningText": text}})
        return {
            "output": {"message": {"role": "assistant", "content": content}},
            "stopReason": self.reason or "end_turn",
            "usage": {
                "inputTokens": PROMPT - CACHED,
                "outputTokens": GENERATED,
                "totalTokens": PROMPT + GENERATED,
                "cacheReadInputTokens": CACHED,
                "cacheWriteInputTokens": 0,
            },
            "metrics": {"latencyMs": 1},
        }


@contextmanager
def providing(keys: str, by: str = "http") -> Iterator[Provider]:
    """Run a provider's double on a free port of this machine, by "http", "https" or "grpc"."""
    provider = Provider(keys)
    if by == "grpc":
        with vertex_server(provider.answer) as provider.url:
            yield provider
        return
    with json_server(provider.rule, server_context() if by == "https" else None) as provider.url:
        yield provider
