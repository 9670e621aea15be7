"""A chat completion in OpenAI's words: as a whole, or piece by piece as a stream has it.

The shapes are those of OpenAI's API reference (chat completions, streaming); `reasoning_content` is
what vLLM, DeepSeek and others call it.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk

from vprm_search.chat.finish_reasons import end_of


class Completion:
    """One completion: `n` choices of `model`, and their usage at the end of a stream if wished."""

    def __init__(self, model: str, *, n: int = 1, with_usage: bool = False) -> None:
        self._n, self._with_usage = n, with_usage
        self._head = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model,
        }
        self._begun: set[int] = set()
        self._usage: dict[str, Any] = {}
        self._told: dict[str, Any] = {}

    def whole(self, candidates: Sequence[AIMessage]) -> tuple[dict[str, Any], dict[str, str]]:
        """Return the body and the headers of a completion of the best candidates."""
        chosen = candidates[: self._n]
        self.spent(chosen)
        choices = [
            {
                "index": index,
                "message": _message_json(message),
                "finish_reason": _finish(message),
                "logprobs": None,
            }
            for index, message in enumerate(chosen)
        ]
        body = {**self._head, "object": "chat.completion", "choices": choices}
        body |= {"usage": self._usage, "vprm": self._told}
        # what no client keeps of the body stands in the headers, too
        headers = {f"x-vprm-{name}": str(self._told[name]) for name in ("score", "ended_by")
                   if self._told.get(name) is not None}  # fmt: skip
        return body, headers

    def spent(self, messages: Sequence[AIMessage]) -> None:
        """Remember usage and outcome: they stand on the answer, or its last piece."""
        for message in messages:
            if message.usage_metadata is not None:
                self._usage = _usage_json(message)
            if "vprm" in message.response_metadata and not self._told:
                self._told = message.response_metadata["vprm"]

    def pieces(self, message: AIMessage, index: int) -> list[bytes]:
        """Return the lines for a whole message or a chunk of one."""
        deltas: list[dict[str, Any]] = []
        if index not in self._begun:
            self._begun.add(index)
            deltas.append({"role": "assistant", "content": ""})
        reasoning = message.additional_kwargs.get("reasoning_content")
        deltas += [{"reasoning_content": reasoning}] if reasoning else []
        text = str(message.text)
        deltas += [{"content": text}] if text else []
        deltas += [{"tool_calls": [call]} for call in _tool_call_pieces(message)]
        lines = [self._chunk([_choice(index, delta)]) for delta in deltas]
        last = not isinstance(message, AIMessageChunk) or message.chunk_position == "last"
        if last:
            end = {**_choice(index, {}), "finish_reason": _finish(message)}
            told = message.response_metadata.get("vprm")
            lines.append(self._chunk([end], **({"vprm": told} if told else {})))
        return lines

    def ending(self) -> list[bytes]:
        """Return the last lines of a stream: the usage if it is asked for, and the mark."""
        lines = []
        if self._with_usage:
            lines.append(self._chunk([], usage=self._usage))
        return [*lines, b"data: [DONE]\n\n"]

    def _chunk(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        kind = {"object": "chat.completion.chunk"}
        return sse_data({**self._head, **kind, "choices": choices, **more})


def _choice(index: int, delta: dict[str, Any]) -> dict[str, Any]:
    return {"index": index, "delta": delta, "finish_reason": None, "logprobs": None}


def sse_data(value: Mapping[str, Any]) -> bytes:
    """Return a line of a stream of server-sent events that holds `value`."""
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


def _message_json(message: AIMessage) -> dict[str, Any]:
    calls = [
        {
            "id": call["id"] or f"call_{uuid.uuid4().hex[:24]}",
            "type": "function",
            "function": {"name": call["name"], "arguments": json.dumps(call["args"])},
        }
        for call in message.tool_calls
    ]
    body: dict[str, Any] = {"role": "assistant", "content": str(message.text) or None}
    body |= {"tool_calls": calls} if calls else {"content": str(message.text)}
    reasoning = message.additional_kwargs.get("reasoning_content")
    return {**body, "reasoning_content": reasoning} if reasoning else body


def _tool_call_pieces(message: AIMessage) -> list[dict[str, Any]]:
    """Return the calls of a message or chunk: the name first, then the arguments."""
    found: list[dict[str, Any]] = []
    for place, call in enumerate(message.tool_calls):
        name = {"name": call["name"], "arguments": ""}
        known = call["id"] or f"call_{uuid.uuid4().hex[:24]}"
        found.append({"index": place, "id": known, "type": "function", "function": name})
        found.append({"index": place, "function": {"arguments": json.dumps(call["args"])}})
    return found


def _finish(message: AIMessage) -> str:
    if message.tool_calls:
        return "tool_calls"
    end = end_of(message.response_metadata, message)
    if end.ending == "length":
        return "length"
    return "content_filter" if "filtered" in end.reason else "stop"


def _usage_json(message: AIMessage) -> dict[str, Any]:
    usage: Any = message.usage_metadata
    cached = (usage.get("input_token_details") or {}).get("cache_read", 0)
    return {
        "prompt_tokens": usage["input_tokens"],
        "completion_tokens": usage["output_tokens"],
        "total_tokens": usage["total_tokens"],
        "prompt_tokens_details": {"cached_tokens": cached},
    }
