"""Requests between their prompts and their scores: what each asks of the engine, and its answer."""

from __future__ import annotations

import asyncio
import hashlib
import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from vprm_search_vllm.shared.scoring.prompt.layout import ScoringPrompt
from vprm_search_vllm.shared.scoring.vllm.contract import VERSION, RequestError, ScoresReply

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PathPlan:
    """One path: the tokens the engine must see, and the rows at which it is read.

    `ids` holds every token with the images expanded, up to the last read position; `sent` is what
    vLLM gets, with one placeholder per image. The engine returns one row per token it computed,
    so a row counts from the end: those of a cached prefix are missing.
    """

    ids: tuple[int, ...]
    sent: tuple[int, ...]
    reads: tuple[int, ...]
    prefix_tokens: int
    step_tokens: tuple[int, ...]

    @classmethod
    def of(cls, prompt: ScoringPrompt) -> PathPlan:
        """Return the plan of a prompt: each image span, with its two marks, becomes one token."""
        ids, sent, done = prompt.scored_ids, [], 0
        for start, stop in prompt.image_spans:
            sent += [*ids[done : start - 1], ids[start]]
            done = stop + 1
        return cls(
            ids,
            (*sent, *ids[done:]),
            prompt.read_positions,
            prompt.prefix_tokens,
            prompt.step_tokens,
        )

    def read(self, rows: Sequence[float]) -> list[float | None]:
        """Return the score of each step, None where its row is inside the cached prefix."""
        missing = len(self.ids) - len(rows)
        return [rows[read - missing] if read >= missing else None for read in self.reads]

    def step_keys(self) -> list[bytes]:
        """Name each step by all tokens up to its read position: equal names, equal scores."""
        state, done, keys = hashlib.sha256(), 0, []
        for read in self.reads:
            state.update(array("q", self.ids[done : read + 1]).tobytes())
            done = read + 1
            keys.append(state.digest())
        return keys


@dataclass(frozen=True, slots=True)
class RequestPlan:
    """A whole request: a plan or the reason of a failure for each path, in order.

    `answer` is the reply itself where the engine is not needed for it.
    """

    paths: tuple[PathPlan | str, ...] = ()
    step_counts: tuple[int, ...] = ()
    answer: dict[str, Any] | None = None

    def planned(self) -> list[PathPlan]:
        """Return the paths that the engine computes."""
        return [path for path in self.paths if isinstance(path, PathPlan)]

    def reply(
        self, outputs: Sequence[tuple[Sequence[int], Sequence[float]]], identity: str
    ) -> ScoresReply:
        """Return scores, token counts and failures from `(token ids, rows)` of each planned path.

        Raises `RequestError` 400 when the engine scored other tokens than planned: vLLM's own
        fields of the request, such as `truncate_prompt_tokens`, can do that.
        """
        planned = self.planned()
        if len(outputs) != len(planned):
            raise RuntimeError(f"{len(outputs)} outputs for {len(planned)} paths")
        scores = []
        for plan, (ids, rows) in zip(planned, outputs, strict=True):
            if tuple(ids) != plan.ids or len(rows) > len(ids):
                raise RequestError(
                    400,
                    "the engine scored other tokens than the prompt builder wrote; leave out "
                    "vLLM's own fields, such as truncate_prompt_tokens",
                )
            scores.append(plan.read(rows))
        _fill_from_siblings(planned, scores)
        return self._assemble(planned, scores, identity)

    def _assemble(
        self, planned: Sequence[PathPlan], found: Sequence[list[float | None]], identity: str
    ) -> ScoresReply:
        prefix = min((plan.prefix_tokens for plan in planned), default=0)
        answers = iter(zip(planned, found, strict=True))
        scores: list[list[float | None]] = []
        tokens: list[list[int]] = []
        failures: dict[str, str] = {}
        for number, (path, steps) in enumerate(zip(self.paths, self.step_counts, strict=True)):
            if isinstance(path, str):
                failures[str(number)] = path
                scores.append([None] * steps)
                tokens.append([0] * steps)
                continue
            plan, values = next(answers)
            if any(value is not None and not math.isfinite(value) for value in values):
                failures[str(number)] = "not_finite: the model's logits are NaN or infinite"
                values = [v if v is None or math.isfinite(v) else None for v in values]
            scores.append(values)
            # the first step's tokens may merge with the question's: one prefix for all paths
            first = plan.step_tokens[0] + plan.prefix_tokens - prefix
            tokens.append([first, *plan.step_tokens[1:]])
        return ScoresReply(
            version=VERSION,
            scores=scores,
            prefix_tokens=prefix,
            step_tokens=tokens,
            identity=identity,
            **({"failures": failures} if failures else {}),
        )


def _fill_from_siblings(plans: Sequence[PathPlan], scores: Sequence[list[float | None]]) -> None:
    """Take a missing score from another path of the request that has the same tokens so far."""
    if all(None not in values for values in scores):
        return
    keys = [plan.step_keys() for plan in plans]
    known: dict[bytes, float] = {}
    for names, values in zip(keys, scores, strict=True):
        known.update((n, v) for n, v in zip(names, values, strict=True) if v is not None)
    for names, values in zip(keys, scores, strict=True):
        for index, name in enumerate(names):
            if values[index] is None:
                values[index] = known.get(name)


class RequestsInFlight(Generic[T]):
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
