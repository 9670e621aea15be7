"""What a double says: a list that is used up in order, or a rule, a function of what is asked."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from itertools import repeat
from typing import Generic, ParamSpec, TypeVar, cast

from vprm_search.errors import ConfigError

P = ParamSpec("P")
R = TypeVar("R")


def chance(*parts: object) -> float:
    """Return a number in [0, 1) that depends on `parts` alone, by what `repr` says of them.

    A rule that draws with it gives the same replies in every run, whoever asks first.
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


class Script(Generic[P, R]):
    """Replies in order, from any thread: a rule, which may be async, or an iterable of replies.

    One text is said every time. Raises `ConfigError` when the iterable has no reply left.
    """

    def __init__(self, given: Callable[P, R | Awaitable[R]] | Iterable[R]) -> None:
        self._lock = threading.Lock()
        self._said = 0
        self._rule: Callable[P, R | Awaitable[R]]
        if callable(given):
            self._rule = given
        else:
            replies = cast("Iterable[R]", repeat(given)) if isinstance(given, str) else given
            self._replies: Iterator[R] = iter(replies)
            self._rule = self._next

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R | Awaitable[R]:
        """Return the next reply, or what the rule returns."""
        return self._rule(*args, **kwargs)

    async def awaited(self, replies: Sequence[R | Awaitable[R]]) -> list[R]:
        """Return the replies, those of async rules awaited side by side; none is left running."""
        waiting = [asyncio.ensure_future(r) for r in replies if inspect.isawaitable(r)]
        try:
            came = iter(await asyncio.gather(*waiting))
        finally:
            for task in waiting:
                task.cancel()
        return [next(came) if inspect.isawaitable(r) else r for r in replies]

    def _next(self, *_: P.args, **__: P.kwargs) -> R:
        with self._lock:
            for reply in self._replies:
                self._said += 1
                return reply
        raise ConfigError(
            f"the script has {self._said} replies and was asked for one more; give more of them, "
            "one text for every call, or a rule"
        )


def words_in(*texts: str) -> int:
    """Return how many tokens a double counts in `texts`: one a word."""
    return sum(len(text.split()) for text in texts)
