"""A policy, a scorer and a chat model that do by a script what servers do at their worst."""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import Sequence
from typing import Literal

from hypothesis import strategies as st
from langchain_core.messages import AIMessage
from langchain_core.messages.ai import UsageMetadata

from vprm_search.steps import DEFAULT_LIMITS
from vprm_search.testing import ChatCall, ScriptedChatModel, ScriptedPolicy
from vprm_search.types import (
    Proposal,
    ProposeRequest,
    ScoreRequest,
    ScoreResult,
    StepScore,
)

Fault = Literal["ok", "error", "timeout", "cut", "empty", "blank", "long", "deep"]
ScoreFault = Literal["ok", "error", "nan", "above", "too_long"]

FAULTS: list[Fault] = ["ok", "error", "timeout", "cut", "empty", "blank", "long", "deep"]
SCORE_FAULTS: list[ScoreFault] = ["ok", "error", "nan", "above", "too_long"]
LONG = "x" * ((DEFAULT_LIMITS.max_step_chars or 0) + 1)

scripts = st.lists(st.sampled_from([*FAULTS, *["ok"] * 6]), min_size=1, max_size=12)
score_scripts = st.lists(st.sampled_from([*SCORE_FAULTS, *["ok"] * 6]), min_size=1, max_size=9)


def number(*parts: object) -> int:
    """Return a number that depends on `parts` alone."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=6).digest(), "big")


class FlakyPolicy(ScriptedPolicy):
    """Writes steps of a few words; each child's seed picks its fault from the script.

    `seen` holds the fault of every child asked for, by seed, and `nth` makes one child fail by its
    place in the order of asking instead. `spent` adds up what was answered.
    """

    def __init__(self, script: Sequence[Fault] = ("ok",), nth: int = -1, steps: int = 4) -> None:
        super().__init__(self._counted)
        self.script, self.nth, self.steps = script, nth, steps
        self.seen: dict[int, Fault] = {}
        self.spent = {"generated_tokens": 0, "prompt_tokens": 0, "requests": 0}

    def _counted(self, request: ProposeRequest, seed: int) -> Proposal:
        child = self._child(request, seed)
        for name in self.spent:
            self.spent[name] += getattr(child, name)
        return child

    def _child(self, request: ProposeRequest, seed: int) -> Proposal:
        fault = self.script[number("fault", seed) % len(self.script)]
        if len(self.seen) == self.nth:
            fault = "error"
        self.seen[seed] = fault
        if fault in ("error", "timeout"):
            said = "TimeoutError: no reply" if fault == "timeout" else "the server said 500"
            return Proposal("", "error", requests=2, error=said)
        if fault in ("empty", "blank"):
            text = "" if fault == "empty" else " \n\n \t"
            return Proposal(text, "step", generated_tokens=1, requests=1)
        if fault == "long":
            return Proposal(LONG, "step", generated_tokens=9, requests=1)
        texts = self._steps(request, seed, fault)
        finish = "length" if fault == "cut" else "stop" if "Answer" in texts[-1] else "step"
        text = "\n\n".join(texts)
        return Proposal(text, finish, generated_tokens=len(text), prompt_tokens=3, requests=1)  # type: ignore[arg-type]

    def _steps(self, request: ProposeRequest, seed: int, fault: Fault) -> list[str]:
        done = len(request.steps)
        if fault == "deep" and request.until == "end":  # more steps than a solution may have
            return [f"s{n}" for n in range((DEFAULT_LIMITS.max_steps or 0) + 1)]
        last = self.steps if request.until == "end" else done + 1
        texts = [f"step {n} word {number('w', seed, n) % 4}" for n in range(done, last)]
        if last >= self.steps:
            texts[-1] += f" Answer: {number('a', seed) % 3}"
        return texts


class FlakyScorer:
    """P('+') of a step depends on its text; each path picks its fault from the script."""

    def __init__(self, script: Sequence[ScoreFault] = ("ok",)) -> None:
        self.script = script
        self.tokens = 0

    async def score(self, requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
        await asyncio.sleep(0)
        return [self._score(request) for request in requests]

    def _score(self, request: ScoreRequest) -> ScoreResult:
        count = len(request.steps)
        fault = self.script[number("score", *request.steps) % len(self.script)]
        if fault in ("error", "too_long"):
            return ScoreResult.failed(count, fault)
        ends = range(1, count + 1)
        values = [number("p", *request.steps[:end]) % 16 / 16 for end in ends]
        if fault != "ok":
            values[-1] = math.nan if fault == "nan" else 1.5
        return ScoreResult(tuple(map(StepScore, values)), 50, (10,) * count)


def flaky_chat_model(script: Sequence[str]) -> ScriptedChatModel:
    """Return a chat model whose calls, in the order in which they come, meet `script`'s faults.

    "hang" never answers. After the script all goes well.
    """

    async def said(call: ChatCall) -> AIMessage | None:
        place = call.number
        fault = script[place] if place < len(script) else "ok"
        if fault == "hang":
            await asyncio.Event().wait()
        if fault == "error":
            raise ValueError("the server said 400")
        if fault == "timeout":
            raise TimeoutError
        if fault == "nothing":
            return None
        text = {"empty": "", "long": LONG}.get(fault, f"step {place}\nAnswer: {place % 2}")
        ended = "length" if fault == "cut" else "stop"
        usage = UsageMetadata(input_tokens=5, output_tokens=7, total_tokens=12)
        return AIMessage(text, response_metadata={"finish_reason": ended}, usage_metadata=usage)

    return ScriptedChatModel(said)
