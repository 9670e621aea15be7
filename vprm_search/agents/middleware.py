"""`ProcessRewardMiddleware`: best-of-n and verification at the model calls of `create_agent`.

All tries of one model call happen inside it (`wrap_model_call`), so neither the conversation nor a
person who approves tools sees what was rejected. What a person is asked, and what is raised, comes
after it (`after_model`), when the answer and its verdict are in the checkpoint: an agent that is
resumed does not sample again.
"""

from __future__ import annotations

import asyncio
import operator
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NotRequired

from langchain.agents.middleware.types import (
    AgentMiddleware,
    AgentState,
    ExtendedModelResponse,
    ModelRequest,
    ModelResponse,
    OmitFromInput,
    hook_config,
)
from langchain_core.messages import AIMessage, BaseMessage, RemoveMessage, ToolMessage
from langchain_core.runnables.config import ContextThreadPoolExecutor
from langgraph.types import Command, TracePolicy, interrupt, omit_payload

from vprm_search.agents.turns import StepOf, feedback_turn, steps_so_far, turn_as_step
from vprm_search.aggregate import aggregation
from vprm_search.chat.failures import explain
from vprm_search.errors import ConfigError, InputError, NoAnswerError, ScorerError
from vprm_search.graph.blocking import run_blocking
from vprm_search.graph.light_tracers import untraced_pictures
from vprm_search.graph.nodes import unstreamed
from vprm_search.graph.parts import check_part
from vprm_search.graph.questions import read_problem_and_images
from vprm_search.graph.verdict import feedback_on, weigh
from vprm_search.images.messages import restore_images
from vprm_search.images.store import ImageStore
from vprm_search.steps import split_solution
from vprm_search.types import ImageData, Problem, ScoreRequest, ScoreResult, StepScorer

OnExhausted = Literal["best", "last", "raise", "interrupt"]
_ASKED = ("accept", "retry")
_FAILED = "Model call failed after "  # how LangChain's ModelRetryMiddleware says a failure
_NO_WORD = "the message says nothing and calls no tool"


class RewardedState(AgentState[Any]):
    """What the middleware adds to an agent's state: a verdict on every message it looked at."""

    vprm_verdicts: NotRequired[Annotated[list[dict[str, Any]], OmitFromInput, operator.add]]


class ProcessRewardMiddleware(AgentMiddleware[RewardedState, Any, Any]):
    """Lets a reward model choose among, and judge, what an agent's model says.

    At every model call `n` candidates are sampled; each, its text and its tool calls, is scored as
    the next step after the agent's turns since the last question, with the pictures of question and
    tools; the best goes on. Valid structured output and calls come first. With a `threshold`
    the best must reach it: else the model is told where it first looks wrong and tries again, at
    most `max_tries` times in all.

    What was found is appended to the state's `vprm_verdicts`, one entry per model call: "outcome"
    ("passed" or "failed" against the threshold, "scored" without one, "unscored" with a "reason"),
    "message_id", "score", "steps", "tries" and the scores of all "candidates". The message that
    goes on has outcome and score in `response_metadata["vprm"]`. What did not pass never says so.

    A candidate whose call raises is left out; if all raise, the first exception is raised, for a
    retry or a fallback around it. A scorer that fails costs no model call: the candidate that comes
    first goes on, "unscored". A failure that an inner `ModelRetryMiddleware` has put into words is
    never scored as an answer.

    Order: list it after `HumanInTheLoopMiddleware`, `SummarizationMiddleware` and whatever should
    see one answer, before what should act on each candidate (retry, fallback).

    Args:
        scorer: what gives each step P('+').
        n: candidates per try. Default: 1 (with a threshold).
        when: at which model calls to do so, by the `ModelRequest`. Default: at every one.
        threshold: the score from which a message passes, in [0, 1]. Default: None, no verification.
        max_tries: tries per model call, the first included. Default: 3.
        on_exhausted: what to do with a message that did not pass when the tries are spent, or that
            could not be scored: go on with the "best" or the "last", "raise" `NoAnswerError`, or
            "interrupt": a person answers "accept", "retry", or `{"answer": text}`. Default: "best".
        aggregate: how the scores of a message's steps make its score. Default: "mean".
        step_of: writes a turn as text. Default: `turn_as_step`.
        image_store: where references to pictures (`ImageIntake`) are looked up, for the reward
            model and for the agent's own. Default: None, there are none.
        name: the middleware's name; two in one agent need two names.

    Raises:
        ConfigError: an option is out of range, or nothing is asked for (n=1, no threshold).
    """

    state_schema = RewardedState
    trace_policy = TracePolicy(process_inputs=omit_payload)

    def __init__(
        self,
        scorer: StepScorer,
        *,
        n: int = 1,
        when: Callable[[ModelRequest[Any]], bool] | None = None,
        threshold: float | None = None,
        max_tries: int = 3,
        on_exhausted: OnExhausted = "best",
        aggregate: str = "mean",
        step_of: StepOf = turn_as_step,
        image_store: ImageStore | None = None,
        name: str = "ProcessRewardMiddleware",
    ) -> None:
        super().__init__()
        check_part("scorer", scorer, StepScorer)
        aggregation(aggregate)
        if n < 1 or max_tries < 1:
            raise ConfigError(f"n is {n} and max_tries {max_tries}; both must be at least 1")
        if threshold is None and n == 1:
            raise ConfigError("n=1 without a threshold changes nothing; give n=4 or threshold=0.8")
        if threshold is not None and not 0 <= threshold <= 1:
            raise ConfigError(f"threshold is {threshold}; it must be between 0 and 1")
        if on_exhausted not in ("best", "last", "raise", "interrupt"):
            raise ConfigError(
                f'on_exhausted is {on_exhausted!r}; give "best", "last", "raise" or "interrupt"'
            )
        self.scorer, self.n, self.when = scorer, n, when
        self.threshold, self.max_tries, self.on_exhausted = threshold, max_tries, on_exhausted
        self.aggregate, self.step_of, self.image_store = aggregate, step_of, image_store
        self._name = name

    @property
    def name(self) -> str:
        """The name of this middleware in the agent's graph."""
        return self._name

    # --- a model call ----------------------------------------------------------------------------

    def wrap_model_call(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> Any:
        """Sample, score and choose at one model call. Raises what all candidates raise."""
        if self.when is not None and not self.when(request):
            with untraced_pictures():
                return handler(self._shown(request))
        tries = _Tries(self, request)
        while tries.go_on:
            tries.take(self._sample(self._shown(tries.request), handler))
            tries.weigh(run_blocking(tries.scores()))
        return tries.response()

    async def awrap_model_call(
        self,
        request: ModelRequest[Any],
        handler: Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]],
    ) -> Any:
        """Do what `wrap_model_call` does, the candidates side by side in one event loop."""
        if self.when is not None and not self.when(request):
            with untraced_pictures():
                return await handler(await asyncio.to_thread(self._shown, request))
        tries = _Tries(self, request)
        while tries.go_on:
            shown = await asyncio.to_thread(self._shown, tries.request)
            with unstreamed():
                asked = [handler(shown) for _ in range(self.n)]
                tries.take(await asyncio.gather(*asked, return_exceptions=True))
            tries.weigh(await tries.scores())
        return tries.response()

    def _shown(self, request: ModelRequest[Any]) -> ModelRequest[Any]:
        """Return a request as the agent's model is to see it: with pictures for references."""
        if self.image_store is None:
            return request
        return request.override(messages=restore_images(request.messages, self.image_store))

    def _sample(
        self, request: ModelRequest[Any], handler: Callable[[ModelRequest[Any]], ModelResponse[Any]]
    ) -> list[ModelResponse[Any] | BaseException]:
        with unstreamed():
            if self.n == 1:
                return [_attempt(handler, request)]
            with ContextThreadPoolExecutor(max_workers=self.n) as pool:
                return list(pool.map(lambda _: _attempt(handler, request), range(self.n)))

    # --- after it --------------------------------------------------------------------------------

    @hook_config(can_jump_to=["model"])
    def after_model(self, state: RewardedState, runtime: Any) -> dict[str, Any] | None:
        """Raise or ask a person about a message that did not pass, where that is asked for.

        Raises `NoAnswerError` with `on_exhausted="raise"`. Nothing is sampled again when the agent
        goes on after an interrupt or an exception.
        """
        if self.threshold is None or self.on_exhausted not in ("raise", "interrupt"):
            return None
        verdict = next(iter((state.get("vprm_verdicts") or [])[::-1]), None)
        if verdict is None or verdict["by"] != self.name or verdict["outcome"] == "passed":
            return None
        messages = state["messages"]
        place = next((i for i, m in enumerate(messages) if m.id == verdict["message_id"]), None)
        if place is None or not isinstance(judged := messages[place], AIMessage):
            return None
        if self.on_exhausted == "raise":
            raise NoAnswerError(
                f"after {verdict['tries']} tries no message passed: {feedback_on(verdict)} "
                "The best one is in the state with its verdict (vprm_verdicts); lower the "
                'threshold, allow more tries, or take on_exhausted="best"'
            )
        answer = _asked(judged, verdict)
        return _answered(answer, {**verdict, "answered": answer}, messages[place:])

    @hook_config(can_jump_to=["model"])
    async def aafter_model(self, state: RewardedState, runtime: Any) -> dict[str, Any] | None:
        """Do what `after_model` does."""
        return self.after_model(state, runtime)


def _asked(judged: AIMessage, verdict: dict[str, Any]) -> Any:
    """Return what a person says of a message that did not pass; asks again until it is known."""
    question: dict[str, Any] = {
        "type": "vprm_verdict",
        "message": str(judged.text),
        "tool_calls": [{"name": c["name"], "args": c["args"]} for c in judged.tool_calls],
        "verdict": verdict,
        "answers": [*_ASKED, {"answer": "a text in place of the message"}],
    }
    while True:
        answer = interrupt(question)
        if answer in _ASKED or (isinstance(answer, dict) and isinstance(answer.get("answer"), str)):
            return answer
        question = {**question, "error": f"{str(answer)[:200]!r} is none of the answers"}


def _answered(answer: Any, told: dict[str, Any], said: Sequence[BaseMessage]) -> dict[str, Any]:
    """Return the update that an answer makes; `said` is the message and what came with it."""
    update: dict[str, Any] = {"vprm_verdicts": [told]}
    if answer == "accept":
        return update
    gone: list[BaseMessage] = [RemoveMessage(id=m.id) for m in said[1:] if m.id]
    if answer == "retry":
        gone.append(RemoveMessage(id=str(said[0].id)))
        return {**update, "messages": gone, "jump_to": "model"}
    written = AIMessage(
        answer["answer"], id=said[0].id, response_metadata={"vprm": {"by": "person"}}
    )
    return {**update, "messages": [*gone, written]}


def _attempt(
    handler: Callable[[ModelRequest[Any]], ModelResponse[Any]], request: ModelRequest[Any]
) -> ModelResponse[Any] | BaseException:
    try:
        return handler(request)
    except Exception as error:  # one candidate's; the others may be good
        return error


# --- the tries of one model call -----------------------------------------------------------------


@dataclass(slots=True, eq=False)
class _Candidate:
    """One response with the steps of its message; `reason` says why it cannot be scored."""

    response: ModelResponse[Any]
    message: AIMessage
    steps: list[str]
    reason: str = ""
    verdict: dict[str, Any] = field(default_factory=dict)

    @property
    def invalid(self) -> str:
        """Why an agent cannot go on with it: output or a call that cannot be read; "" if it can."""
        if self.message.invalid_tool_calls:
            return "a tool call cannot be read"
        parsed = self.response.structured_response is not None
        refused = not parsed and any(isinstance(m, ToolMessage) for m in self.response.result)
        return "the structured output is invalid" if refused else ""

    def rank(self) -> tuple[bool, bool, float]:
        """Return what candidates are compared by: valid ones first, then by their score."""
        score = self.verdict.get("score")
        stand_in = self.reason.startswith(_FAILED)
        return not self.invalid and not stand_in, score is not None, score or 0.0


class _Tries:
    """What happens at one model call, without asking anybody: try after try, until one passes."""

    def __init__(self, of: ProcessRewardMiddleware, request: ModelRequest[Any]) -> None:
        self._of = of
        self.request = request
        self._first = request
        self._unseen: list[str] = []
        self._number = 0
        self._now: list[_Candidate] = []
        self._best: _Candidate | None = None
        self._last: _Candidate | None = None
        self._scores: list[float | None] = []
        self._read: tuple[Problem, tuple[ImageData, ...], list[str]] | None = None

    @property
    def go_on(self) -> bool:
        """Whether another try is to be made."""
        if self._best is None:
            return True
        failed = self._best.verdict["outcome"] == "failed" or self._best.reason == _NO_WORD
        wanted = self._of.threshold is not None  # an outage of the scorer is not mended by trying
        return wanted and failed and self._number < self._of.max_tries

    def take(self, replies: Sequence[Any]) -> None:
        """Take the candidates of a try. Raises the first exception if there is nothing else."""
        self._number += 1
        for reply in replies:
            if isinstance(reply, BaseException) and not isinstance(reply, Exception):
                raise reply
        self._now = [self._candidate(r) for r in replies if not isinstance(r, BaseException)]
        if not self._now and self._best is None:
            raise replies[0]

    def _candidate(self, reply: Any) -> _Candidate:
        if isinstance(reply, ExtendedModelResponse):
            reply = reply.model_response
        response = ModelResponse(result=[reply]) if isinstance(reply, AIMessage) else reply
        message = next(m for m in response.result if isinstance(m, AIMessage))
        text = str(message.text)
        if message.id is None and text.startswith(_FAILED):
            return _Candidate(response, message, [], text[:300])
        written = self._of.step_of([*self._first.messages, message])
        steps = split_solution(written) if written.strip() else []
        return _Candidate(response, message, steps, "" if steps else _NO_WORD)

    async def scores(self) -> list[ScoreResult]:
        """Return the scores of the candidates' steps; a failure is a reason in their place."""
        asked = [c for c in self._now if not c.reason]
        distinct = {tuple(c.steps): c for c in asked}
        before: list[str] = []
        try:
            if self._read is None:
                self._read = await asyncio.to_thread(self._problem)
            problem, images, before = self._read
            requests = [ScoreRequest(problem, (*before, *steps), images) for steps in distinct]
            with unstreamed():
                found = await self._of.scorer.score(requests) if requests else []
            if [len(r.scores) for r in found] != [len(r.steps) for r in requests]:
                raise ScorerError(f"the scorer answered {len(requests)} requests wrongly")
            results = dict(zip(distinct, found, strict=True))
        except Exception as error:  # raised, it would make every model call of this try again
            why = (
                str(error)
                if isinstance(error, InputError)
                else f"the scorer failed: {explain(error)}"
            )
            before, results = [], {s: ScoreResult.failed(len(s), why) for s in distinct}
        return [
            ScoreResult(results[tuple(c.steps)].scores[len(before) :])
            if not c.reason
            else ScoreResult.failed(1, c.reason)
            for c in self._now
        ]

    def _problem(self) -> tuple[Problem, tuple[ImageData, ...], list[str]]:
        messages = self._first.messages
        problem, images, self._unseen = read_problem_and_images(messages, self._of.image_store)
        before = steps_so_far(messages, self._of.step_of)
        return problem, images, [part for step in before for part in split_solution(step)]

    def weigh(self, results: Sequence[ScoreResult]) -> None:
        """Judge the candidates of a try, and make the request of the next."""
        of = self._of
        for candidate, result in zip(self._now, results, strict=True):
            verdict = weigh(
                candidate.steps,
                result,
                aggregate=of.aggregate,
                threshold=of.threshold or 0.0,
                unseen=self._unseen,
            )
            candidate.verdict = dict(verdict)
            if of.threshold is None and verdict["outcome"] != "unscored":
                candidate.verdict["outcome"] = "scored"
            if candidate.invalid and candidate.verdict["outcome"] == "passed":
                candidate.verdict |= {"outcome": "failed", "reason": candidate.invalid}
            self._scores.append(candidate.verdict["score"])
        if not self._now:  # all calls of another try failed: what was found before stays
            self._number = of.max_tries
            return
        self._last = max(self._now, key=_Candidate.rank)
        known = [c for c in (self._best, self._last) if c is not None]
        self._best = max(known, key=_Candidate.rank)  # the earlier one of equals
        told = feedback_on(self._last.verdict)
        rest = [m for m in self._last.response.result if m is not self._last.message]
        self.request = self._first.override(
            messages=[*self._first.messages, *feedback_turn(self._last.message, rest, told)]
        )

    def response(self) -> ExtendedModelResponse[Any]:
        """Return the response that goes on, with the record of how it was found."""
        best = self._last if self._of.on_exhausted == "last" else self._best
        if self._best is not None and self._best.verdict["outcome"] == "passed":
            best = self._best
        if best is None:
            raise ScorerError("no candidate was sampled")
        verdict, metadata = best.verdict, dict(best.message.response_metadata)
        message = best.message.model_copy(
            update={
                "id": best.message.id or f"vprm-{uuid.uuid4()}",
                "response_metadata": {
                    **metadata,
                    "vprm": {"outcome": verdict["outcome"], "score": verdict["score"]},
                },
            }
        )
        record = {
            "by": self._of.name,
            "outcome": verdict["outcome"],
            "message_id": message.id,
            "score": verdict["score"],
            "aggregate": verdict["aggregate"],
            "threshold": self._of.threshold,
            "steps": verdict["steps"],
            "weak_step": verdict["weak_step"],
            "reason": verdict["reason"],
            "unseen": verdict["unseen"],
            "tries": self._number,
            "candidates": self._scores,
        }
        result = [message if m is best.message else m for m in best.response.result]
        response = ModelResponse(
            result=result, structured_response=best.response.structured_response
        )
        return ExtendedModelResponse(response, Command(update={"vprm_verdicts": [record]}))
