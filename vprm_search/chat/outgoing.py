"""Messages as one client takes them: pictures in the shape it reads, marks for prompt caches.

Clients of provider packages read LangChain's standard image block; some hand on whatever they are
given, or drop it without a word, and need OpenAI's. OpenAI, Google and others remember prompts by
themselves; Anthropic and Bedrock remember a prompt up to a mark in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage

from vprm_search.chat.capabilities import CacheMarks, ModelCapabilities
from vprm_search.images.messages import content_blocks, is_image


def outgoing(
    messages: Sequence[BaseMessage], known: ModelCapabilities, shared: str | None = None
) -> list[BaseMessage]:
    """Return `messages` as a client with these capabilities takes them.

    Args:
        messages: the conversation of one call.
        known: what the client can do.
        shared: the text with which the last human message begins in every call about the problem;
            None where only its pictures are the same.
    """
    fitting = [_with_image_urls(m) if known.image_urls else m for m in messages]
    return _marked(fitting, known.cache_marks, shared) if known.cache_marks != "none" else fitting


def _with_image_urls(message: BaseMessage) -> BaseMessage:
    if isinstance(message, AIMessage) or isinstance(message.content, str):
        return message
    blocks = [_image_url(block) if is_image(block) else block for block in content_blocks(message)]
    return message.model_copy(update={"content": blocks})


def _image_url(block: dict[str, Any]) -> dict[str, Any]:
    if "base64" not in block:
        return block
    url = f"data:{block.get('mime_type', 'image/png')};base64,{block['base64']}"
    return {"type": "image_url", "image_url": {"url": url}}


def _marked(messages: list[BaseMessage], mark: CacheMarks, shared: str | None) -> list[BaseMessage]:
    """Return the messages with a mark after what all calls about a problem begin with.

    A conversation that carries marks of its own keeps those alone: there may be four at most.
    """
    blocks = [block for message in messages for block in _blocks(message)]
    if any("cache_control" in block or "cachePoint" in block for block in blocks):
        return messages
    place = max((i for i, m in enumerate(messages) if isinstance(m, HumanMessage)), default=None)
    if place is None:
        return messages
    message = messages[place]
    parts, end = _shared_part(_blocks(message), shared)
    if not end:
        return messages
    if mark == "cachePoint":
        parts.insert(end, {"cachePoint": {"type": "default"}})
    else:
        parts[end - 1] = {**parts[end - 1], "cache_control": {"type": "ephemeral"}}
    marked = message.model_copy(update={"content": parts})
    return [*messages[:place], marked, *messages[place + 1 :]]


def _shared_part(
    blocks: list[dict[str, Any]], shared: str | None
) -> tuple[list[dict[str, Any]], int]:
    """Return the blocks and how many of them are shared; a text that is so in part is cut."""
    if shared is None:
        return blocks, max((i + 1 for i, block in enumerate(blocks) if is_image(block)), default=0)
    text = str(blocks[-1].get("text", "")) if blocks else ""
    if not shared.strip() or not text.startswith(shared):
        return blocks, max(0, len(blocks) - 1)
    first, rest = text[: len(shared)], text[len(shared) :].lstrip()
    if not rest:
        return blocks, len(blocks)
    cut = [{"type": "text", "text": first}, {"type": "text", "text": rest}]
    return [*blocks[:-1], *cut], len(blocks)


def _blocks(message: BaseMessage) -> list[dict[str, Any]]:
    if isinstance(message.content, str):
        return [{"type": "text", "text": message.content}] if message.content else []
    return [b if isinstance(b, dict) else {"type": "text", "text": b} for b in message.content]
