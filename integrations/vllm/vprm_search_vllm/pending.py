"""Requests between their prompts and their scores; nothing stays behind when one ends early."""

from __future__ import annotations

import asyncio
from typing import Generic, TypeVar

from vprm_search_vllm.contract import RequestError

T = TypeVar("T")


class Pending(Generic[T]):
    """What must be remembered of a request until the engine has answered.

    vLLM calls a plugin before and after the engine, but not when a request fails or its client
    goes away. An entry is therefore tied to the asyncio task that serves the request and is gone
    when that task is, however it ends. Outside of asyncio (vLLM's `LLM` class) requests come one
    at a time, and the latest replaces the one before it.
    """

    def __init__(self) -> None:
        self._entries: dict[str | None, T] = {}

    def __len__(self) -> int:
        """Return how many requests are under way."""
        return len(self._entries)

    def add(self, request_id: str | None, entry: T) -> None:
        """Remember `entry`. Raises `RequestError` 409 if the id belongs to a running request."""
        if request_id is not None and request_id in self._entries:
            raise RequestError(409, "the X-Request-Id is in use by a running request; send another")
        try:
            task = asyncio.current_task()
        except RuntimeError:
            task = None
        self._entries[request_id] = entry
        if task is not None:
            task.add_done_callback(lambda _: self._entries.pop(request_id, None))

    def get(self, request_id: str | None) -> T:
        """Return what was remembered."""
        return self._entries[request_id]
