"""The messages of a guided model: its candidates, best first, and the best one in pieces."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGenerationChunk

from vprm_search.chat.tool_calls import render_tool_calls
from vprm_search.errors import NoAnswerError, SearchWarning
from vprm_search.graph.events import Event
from vprm_search.graph.run import SearchRun
from vprm_search.guided.turns import KeptReplies
from vprm_search.types import Candidate, Json, Usage

_COUNTS_OF_ONE_CALL = ("token_usage", "usage")  # in `response_metadata`, by OpenAI's and others


def messages_of(run: SearchRun, kept: KeptReplies) -> list[AIMessage]:
    """Return the candidates of a search as messages, the answer first and the others by score.

    Raises the client's own error if every call failed, and `NoAnswerError` if nothing came at all.
    """
    result = run.result
    if result.warning:
        warnings.warn(result.warning, SearchWarning, stacklevel=2)
    told = {**result.to_json(candidates=False), "tree": run.tree.digest()}
    del told["text"]
    if result.node is None:
        return [_with_metadata(_unusable(kept, result.warning), told, result.usage)]
    ranked = sorted(result.candidates, key=lambda c: c.node != result.node)
    found = []
    for rank, candidate in enumerate(ranked):
        message = kept.message(run.tree, candidate.node)
        own = _told_of(candidate, message)
        usage = None if rank else result.usage
        found.append(_with_metadata(message, own if rank else {**told, **own}, usage))
    return found


def _unusable(kept: KeptReplies, warning: str) -> AIMessage:
    """Return the first reply of a search without candidates; raise what the client raised."""
    reply, error = kept.unusable(), kept.error()
    if reply is not None:
        return reply
    if error is not None:
        error.add_note(f"Every candidate of the search failed: {warning}")
        raise error
    raise NoAnswerError(f"no candidate came of the search: {warning}")


def _told_of(candidate: Candidate, message: AIMessage) -> dict[str, Json]:
    return {
        "node": candidate.node,
        "answer": render_tool_calls(message) or candidate.answer,
        "score": candidate.score,
        "step_scores": list(candidate.step_scores),
        "votes": candidate.votes,
    }


def _with_metadata(message: AIMessage, told: dict[str, Json], usage: Usage | None) -> AIMessage:
    """Return a message with what the search tells of it; what all cost stands on the answer."""
    metadata = {**message.response_metadata, "vprm": told}
    for name in _COUNTS_OF_ONE_CALL:
        metadata.pop(name, None)
    spent = None if usage is None else _usage(usage)
    changes = {"id": None, "response_metadata": metadata, "usage_metadata": spent}
    return message.model_copy(update=changes)


def _usage(spent: Usage) -> UsageMetadata:
    total = spent.prompt_tokens + spent.generated_tokens
    usage = UsageMetadata(
        input_tokens=spent.prompt_tokens, output_tokens=spent.generated_tokens, total_tokens=total
    )
    if spent.cached_tokens:
        usage["input_token_details"] = InputTokenDetails(cache_read=spent.cached_tokens)
    return usage


# --- in pieces -----------------------------------------------------------------------------------


def pieces_of(message: AIMessage, message_id: str | None) -> Iterator[ChatGenerationChunk]:
    """Yield a message word by word; all that is no text comes with the last piece."""
    content: Any = message.content
    words = re.findall(r"\s*\S+|\s+$", content) if isinstance(content, str) else []
    for word in words:
        yield _piece(content=word, id=message_id)
    calls = [
        tool_call_chunk(name=call["name"], args=_json(call["args"]), id=call["id"], index=place)
        for place, call in enumerate(message.tool_calls)
    ]
    for call in message.invalid_tool_calls:
        name, args, known = call.get("name"), call.get("args"), call.get("id")
        calls.append(tool_call_chunk(name=name, args=args, id=known, index=len(calls)))
    yield _piece(
        content="" if isinstance(content, str) else content,
        id=message_id,
        name=message.name,
        additional_kwargs=message.additional_kwargs,
        response_metadata=message.response_metadata,
        usage_metadata=message.usage_metadata,
        tool_call_chunks=calls,
        chunk_position="last",
    )


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _piece(**fields: Any) -> ChatGenerationChunk:
    return ChatGenerationChunk(message=AIMessageChunk(**fields))


# --- progress ------------------------------------------------------------------------------------


def progress_of(event: Event) -> str:
    """Return what an event of the search says in a line, "" for one that says nothing new."""
    kind, nodes = event["event"], event.get("nodes", [])
    if kind == "round":
        return f"Round {event['round']}: {sum(e['count'] for e in event['expand'])} candidates.\n"
    if kind == "scored":
        scores = [node["score"] for node in nodes if node["score"] is not None]
        best = f", the best with {max(scores):.2f}" if scores else ""
        return f"Scored {len(scores)} of {len(nodes)} steps{best}.\n"
    if kind == "pruned":
        return f"Put {len(nodes)} paths aside.\n"
    return f"Ended: {event['ended_by']}.\n" if kind == "finished" else ""


def progress_piece(line: str, message_id: str | None) -> ChatGenerationChunk:
    """Return a line of progress as a piece of reasoning before the answer."""
    return _piece(content="", id=message_id, additional_kwargs={"reasoning_content": line})


def with_progress(message: AIMessage, told: str) -> AIMessage:
    """Return a message with all progress before its own reasoning, as the pieces make it."""
    own = message.additional_kwargs.get("reasoning_content") or ""
    extra = {**message.additional_kwargs, "reasoning_content": f"{told}{own}"}
    return message.model_copy(update={"additional_kwargs": extra})
