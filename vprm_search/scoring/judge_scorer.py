"""Any LangChain chat model as a step scorer: it is asked whether each step is correct."""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import BaseMessage

from vprm_search.chat.calls import (
    DEFAULT_RETRY,
    HIDDEN,
    BoundedCalls,
    RetryRules,
    unwrap_model,
    without_cache,
)
from vprm_search.chat.failures import explain, is_retryable, secrets_of, status_of
from vprm_search.errors import ConfigError
from vprm_search.ids import digest
from vprm_search.scoring.judge_dialogue import (
    PROMPT_VERSION,
    AnswerStyle,
    NoLogprobsError,
    Verdict,
    judge_messages,
    line_verdict,
    probability_of_yes,
    structured_verdict,
)
from vprm_search.scoring.reasons import BAD_REPLY, IMAGE_MISSING, NO_SERVER, REFUSED, SERVER_ERROR
from vprm_search.scoring.score_cache import step_keys
from vprm_search.scoring.wrappers import step_results, whole_answers
from vprm_search.types import Counts, ScoreRequest, ScoreResult, StepScore

JudgeMode = Literal["auto", "logprobs", "verdict", "text"]

_STYLES: dict[str, AnswerStyle] = {"logprobs": "word", "verdict": "verdict", "text": "line"}
_NEXT: dict[str, JudgeMode] = {"logprobs": "verdict", "verdict": "text"}
_MODES = ("auto", "logprobs", "verdict", "text")
_TOP_LOGPROBS = 20
_MOST_REMEMBERED = 65_536  # steps


@dataclass(slots=True)
class JudgeMeter:
    """Running totals: calls, calls that failed for good, steps answered from memory, tokens."""

    calls: int = 0
    failed_calls: int = 0
    remembered_steps: int = 0
    input_tokens: int = 0
    output_tokens: int = 0


@dataclass(frozen=True, slots=True)
class _Judged:
    score: StepScore
    cost: Counts


class _Unsupported(Exception):
    """The model cannot answer in this mode."""


class JudgeScorer:
    """Scores steps by asking a chat model; implements `types.StepScorer`.

    Every step is judged by itself, with the problem, its images and the steps before it, so that a
    score never depends on later steps. A call that fails for good, or an answer that cannot be
    read, costs its own step: a score None with a reason; with several samples the others count.
    Scores are remembered, so that a step asked again in a later round keeps its score.

    Args:
        model: a `BaseChatModel`, or one with arguments bound by `.bind(...)`.
        mode: how the answer is read. "logprobs": one word, and its probability against the other
            one; "verdict": structured output with a reason; "text": a last line 'Verdict: …';
            "auto" (the default) takes the first of these that the model can do and stays with it.
        samples: answers per step (1), whose mean is the score: for verdicts, the share of yes.
        words: what the judge says for yes and for no ("yes", "no").
        orm: judge the whole answer so far as one step (False), as an outcome reward model does.
        max_concurrency: calls at a time in one event loop (16).
        retry: how often a call is repeated and how long it may take; give the model client
            `max_retries=0` so that only one of the two repeats.
        identity: names what the scores depend on, for score caches. Default: a digest of the
            model's class, name, address and temperature, of what is bound, and of the options.

    Raises:
        ConfigError: `model` is not a chat model, or an option is out of range.
    """

    def __init__(
        self,
        model: Any,
        *,
        mode: JudgeMode = "auto",
        samples: int = 1,
        words: tuple[str, str] = ("yes", "no"),
        orm: bool = False,
        max_concurrency: int = 16,
        retry: RetryRules = DEFAULT_RETRY,
        identity: str | None = None,
    ) -> None:
        if mode not in _MODES or min(samples, max_concurrency) < 1 or words[0] == words[1]:
            raise ConfigError(
                f"mode is {mode!r} ({', '.join(_MODES)}), samples {samples} and max_concurrency "
                f"{max_concurrency} (at least 1), words {words!r} (two different ones)"
            )
        self._model, self._bound = unwrap_model(model, "judge")
        self._fixed = mode != "auto"
        self.mode: JudgeMode = mode if self._fixed else _first_mode(self._model)
        self.samples, self.words, self.orm = samples, words, orm
        self.meter = JudgeMeter()
        self.identity = identity or _identity(self._model, self._bound, mode, samples, words, orm)
        self._bounded = BoundedCalls(retry, max_concurrency)
        self._remembered: OrderedDict[str, StepScore] = OrderedDict()
        self._lock = threading.Lock()  # of the memory: searches may run in several threads

    async def score(self, requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
        """Score all requests: same length, same order; a step that fails is a value."""
        if self.orm:
            return step_results(requests, await self._score(whole_answers(requests)))
        return await self._score(requests)

    async def _score(self, requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
        chains = [step_keys(self.identity, request) for request in requests]
        # Held from here on: other calls may push scores out of the memory while this one waits.
        scores = self._recall(key for chain in chains for key in chain)
        wanted = {
            key: (request, number)
            for request, chain in zip(requests, chains, strict=True)
            for number, key in enumerate(chain, start=1)
            if key not in scores
        }
        async with asyncio.TaskGroup() as group:
            tasks = {key: group.create_task(self._judge(*step)) for key, step in wanted.items()}
        fresh = {key: task.result() for key, task in tasks.items()}
        scores |= {key: judged.score for key, judged in fresh.items()}
        costs = {key: judged.cost for key, judged in fresh.items()}
        results = []
        for chain in chains:
            spent = [costs.pop(key) for key in chain if key in costs]  # by the first who asked
            cost = sum(spent, Counts())
            step_scores = tuple(scores[key] for key in chain)
            results.append(ScoreResult(step_scores, 0, (0,) * len(chain), cost))
        self.meter.remembered_steps += sum(map(len, chains)) - len(wanted)
        self._remember({key: judged.score for key, judged in fresh.items()})
        return results

    def _recall(self, keys: Iterable[str]) -> dict[str, StepScore]:
        with self._lock:
            found = {key: self._remembered[key] for key in keys if key in self._remembered}
            for key in found:
                self._remembered.move_to_end(key)
        return found

    def _remember(self, scores: Mapping[str, StepScore]) -> None:
        with self._lock:
            self._remembered |= {k: score for k, score in scores.items() if score.value is not None}
            while len(self._remembered) > _MOST_REMEMBERED:
                self._remembered.popitem(last=False)

    async def _judge(self, request: ScoreRequest, number: int) -> _Judged:
        """Return the mean of all samples of one step."""
        if tuple(image.digest for image in request.images) != request.problem.images:
            reason = f"{IMAGE_MISSING}: the request does not hold the problem's images"
            return _Judged(StepScore(None, reason), Counts())
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._sample(request, number)) for _ in range(self.samples)]
        answers = [task.result() for task in tasks]
        tokens = [message.usage_metadata or {} for _, message in answers if message is not None]
        sent = sum(int(usage.get("input_tokens", 0)) for usage in tokens)
        written = sum(int(usage.get("output_tokens", 0)) for usage in tokens)
        self.meter.input_tokens += sent
        self.meter.output_tokens += written
        values = [answer for answer, _ in answers if isinstance(answer, float)]
        reasons = [answer for answer, _ in answers if isinstance(answer, str)]
        score = StepScore(sum(values) / len(values)) if values else StepScore(None, reasons[0])
        return _Judged(score, Counts(tokens_sent=sent, tokens_computed=sent + written))

    async def _sample(self, request: ScoreRequest, number: int) -> tuple[float | str, Any]:
        """Ask once; return P(yes), or why there is none, and the message."""
        mode = self.mode
        while True:
            outcome = await self._bounded(partial(self._ask, mode, request, number))
            if outcome.value is not None:
                return self._settled(mode, *outcome.value)
            error = outcome.error
            if error is not None and not isinstance(error, _Unsupported):
                self.meter.failed_calls += 1
                return f"{_reason_of(error)}: {explain(error, secrets_of(self._model))}", None
            if self._fixed or mode not in _NEXT:
                return f"{BAD_REPLY}: the judge gives no {mode}: {error}", None
            mode = _NEXT[mode]

    def _settled(
        self, mode: JudgeMode, value: float | None, message: BaseMessage | None
    ) -> tuple[float | str, BaseMessage | None]:
        """Return an answer in `mode` as `_sample` does; once read, the mode is the judge's."""
        if value is None:
            return f"{BAD_REPLY}: the answer cannot be read as one of {self.words}", message
        if _MODES.index(mode) > _MODES.index(self.mode):
            self.mode = mode  # the earlier ones are not for this model
        return value, message

    async def _ask(
        self, mode: str, request: ScoreRequest, number: int
    ) -> tuple[float | None, BaseMessage | None]:
        messages = judge_messages(request, number, _STYLES[mode], self.words)
        runnable = self._runnable(mode)
        self.meter.calls += 1
        try:
            reply = await runnable.ainvoke(messages, config={"tags": [HIDDEN], "run_name": "judge"})
            if mode == "logprobs":
                return probability_of_yes(reply, self.words), reply
        except NoLogprobsError as error:
            raise _Unsupported("the reply has none") from error
        except Exception as error:
            # a client that refuses the arguments of this mode: 400, 422, or an unknown argument
            if mode != "text" and (status_of(error) in (400, 422) or isinstance(error, TypeError)):
                raise _Unsupported(explain(error, secrets_of(self._model))) from error
            raise
        if mode == "text":
            return line_verdict(reply.text, self.words), reply
        return structured_verdict(reply), reply.get("raw")

    def _runnable(self, mode: str) -> Any:
        # Samples must differ, so none may come from a LangChain cache.
        model = self._model if self.samples == 1 else without_cache(self._model)
        if mode == "logprobs":
            return model.bind(**self._bound, logprobs=True, top_logprobs=_TOP_LOGPROBS)
        if mode == "text":
            return model.bind(**self._bound) if self._bound else model
        if self._bound:
            raise _Unsupported("the model is bound to arguments that structured output would lose")
        try:
            return model.with_structured_output(Verdict, include_raw=True)
        except (NotImplementedError, TypeError, ValueError) as error:
            raise _Unsupported("the model has no structured output") from error


def _first_mode(model: BaseChatModel) -> JudgeMode:
    return "logprobs" if "top_logprobs" in type(model).model_fields else "verdict"


def _identity(model: BaseChatModel, bound: dict[str, Any], *rules: Any) -> str:
    """Name what an answer depends on, as far as a client shows it."""
    names = ("model_name", "model", "temperature", "base_url", "openai_api_base")
    shown = [f"{name}={getattr(model, name)}" for name in names if hasattr(model, name)]
    kind = f"{type(model).__module__}.{type(model).__qualname__}"
    given = sorted(f"{name}={value}" for name, value in bound.items())
    return digest("judge", PROMPT_VERSION, kind, *shown, *given, *map(str, rules)).hex()


def _reason_of(error: BaseException) -> str:
    status = status_of(error)
    if status is None:
        return NO_SERVER if is_retryable(error) else BAD_REPLY
    return SERVER_ERROR if is_retryable(error) else REFUSED
