"""What the tests of the guided model share: scripted parts, and a tracer that keeps its runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import count
from typing import Any

from langchain_core.messages import AIMessage
from langchain_core.tracers.base import BaseTracer
from langchain_core.tracers.schemas import Run

from vprm_search import BestOfN, BestScore, GuidedChatModel
from vprm_search.testing import ChatCall, ScriptedChatModel, ScriptedScorer
from vprm_search.types import ScoreRequest

Written = str | AIMessage | Exception


def in_turn(answers: Iterable[Written]) -> Callable[[ChatCall], Written]:
    """Return a script that gives the answers over and over, in the order of asking."""
    kept, place = list(answers), count()

    def script(_: ChatCall) -> Written:
        answer = kept[next(place) % len(kept)]
        return answer.model_copy(deep=True) if isinstance(answer, AIMessage) else answer

    return script


def by_words(**scores: float) -> ScriptedScorer:
    """Return a scorer that gives a step the score of the first word it holds, else 0.5."""

    def script(request: ScoreRequest) -> float:
        return next((s for word, s in scores.items() if word in request.steps[-1]), 0.5)

    return ScriptedScorer(script)


def guided(*answers: Written, scorer: ScriptedScorer | None = None, **options: Any) -> Any:
    """Return a guided model that chooses the best of all `answers` by `scorer`."""
    parts: dict[str, Any] = {
        "policy": ScriptedChatModel(in_turn(answers)),
        "scorer": scorer or by_words(good=0.9, bad=0.1),
        "strategy": BestOfN(len(answers)),
        "selector": BestScore(),
    }
    return GuidedChatModel(**{**parts, **options})


def calling(tool: str = "add", /, text: str = "", known: str = "1", **args: Any) -> AIMessage:
    """Return a reply that calls a tool."""
    call = {"name": tool, "args": args, "id": known, "type": "tool_call"}
    told = {"finish_reason": "tool_calls"}
    return AIMessage(text, tool_calls=[call], response_metadata=told)


class Traces(BaseTracer):
    """Keeps the runs it is told of, as trees."""

    def __init__(self) -> None:
        super().__init__(_schema_format="original+chat")  # messages, not their texts
        self.roots: list[Run] = []

    def _persist_run(self, run: Run) -> None:
        self.roots.append(run)

    @property
    def shapes(self) -> list[str]:
        return [shape(run) for run in self.roots]


def shape(run: Run) -> str:
    """Return a run and those below it: `Guided(propose, propose)`."""
    inner = ", ".join(shape(child) for child in run.child_runs)
    return f"{run.name}({inner})" if inner else run.name
