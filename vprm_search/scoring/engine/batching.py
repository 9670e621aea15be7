"""Many paths in few forward passes: bounded by tokens, halved when memory runs out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from vprm_search.scoring.engine.token_tree import TokenPath, tree_sizes

T = TypeVar("T")
_MEMORY_WORDS = ("out of memory", "defaultcpuallocator", "can't allocate memory")


class TokenBatcher:
    """Runs paths in batches of at most `max_tokens` packed tokens.

    Batches are runs of neighbours in the token tree, so whole subtrees stay together; a prefix
    shared by two batches is part of both (computed in both, if nothing keeps it). When memory runs
    out, the bound becomes half of what was tried and stays there. A single path is always tried,
    however long.
    """

    def __init__(self, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self.out_of_memory = 0

    def run(
        self, paths: Sequence[TokenPath], compute: Callable[[list[int]], Sequence[T]]
    ) -> list[T | None]:
        """Return one result per path, or None where even the path alone does not fit in memory.

        `compute` takes indices into `paths` and returns one result for each. Paths should differ.
        """
        order, added = tree_sizes(paths)
        waiting = deque(zip(order, added, strict=True))
        results: list[T | None] = [None] * len(paths)
        while waiting:
            batch, size = self._next(paths, waiting)
            try:
                computed = compute([path for path, _ in batch])
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self.out_of_memory += 1
                computed = None
            if computed is not None:
                for (path, _), result in zip(batch, computed, strict=True):
                    results[path] = result
            elif len(batch) > 1:
                self.max_tokens = max(1, size // 2)
                waiting.extendleft(reversed(batch))
            if computed is None:
                release_memory()  # only here the failed pass no longer holds its tensors
        return results

    def _next(
        self, paths: Sequence[TokenPath], waiting: deque[tuple[int, int]]
    ) -> tuple[list[tuple[int, int]], int]:
        batch = [waiting.popleft()]
        size = len(paths[batch[0][0]].ids)
        while waiting and size + waiting[0][1] <= self.max_tokens:
            size += waiting[0][1]
            batch.append(waiting.popleft())
        return batch, size


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device's or the machine's memory is full."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(word in text for word in _MEMORY_WORDS)


def release_memory() -> None:
    """Give memory that torch caches back to the device."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
