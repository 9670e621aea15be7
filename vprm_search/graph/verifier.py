"""`create_verifier_node`: a reward model as a judge inside a graph you already have."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NotRequired

from langchain_core.messages import AIMessage, AnyMessage, BaseMessage, HumanMessage
from langchain_core.runnables import Runnable, RunnableConfig
from langgraph.graph import END
from typing_extensions import TypedDict  # pydantic cannot show typing's before Python 3.12

from vprm_search import ids
from vprm_search.aggregate import aggregation, path_score
from vprm_search.errors import ConfigError, InputError, ScorerError
from vprm_search.graph.nodes import unstreamed
from vprm_search.graph.parts import check_part
from vprm_search.graph.questions import (
    FEEDBACK_NAME,
    message_text,
    question_of,
    read_problem_and_images,
)
from vprm_search.graph.session import run_blocking
from vprm_search.images.store import DiskImageStore, ImageStore
from vprm_search.steps import Splitter, normalise_text, split_at_blank_lines, split_solution
from vprm_search.types import ScoreRequest, ScoreResult, StepScorer

Outcome = Literal["passed", "failed", "unscored"]

_REMEMBERED = 1000  # ids of judged messages, only to find out that verdicts are not kept


class VerifierState(TypedDict):
    """The key a verifier writes; inherit it, or declare your own `output_key` alike."""

    vprm: NotRequired[dict[str, Any]]


def create_verifier_node(
    scorer: StepScorer,
    *,
    threshold: float = 0.8,
    aggregate: str = "mean",
    messages_key: str = "messages",
    output_key: str = "vprm",
    splitter: Splitter = split_at_blank_lines,
    max_steps: int = 12,
    image_store: ImageStore | None = None,
    name: str = "verify",
) -> VerifierNode:
    """Return a node that scores the last AI message against the question and images before it.

    The verdict is written under `output_key` as plain JSON (see `Verdict`); messages are
    only read. There is nothing to judge when the last AI message calls tools or a question comes
    after it. A message that cannot be scored is "unscored", which is not "passed".

    Args:
        scorer: what gives each step P('+').
        threshold: the path score from which a message passes, in [0, 1].
        aggregate: how step scores make the path score: the name of an aggregation, such as "mean"
            (VisualPRM's), "min", "last" or "product".
        messages_key: the key of the conversation.
        output_key: the key of the verdict; declare it in the graph's state.
        splitter: cuts a message into steps. Default: at every blank line, as VisualPRM's own code
            does; nothing is stripped and empty steps are scored.
        max_steps: more steps than this are merged into groups, as VisualPRM does (12).
        image_store: where reference blocks of a search graph are looked up. Default:
            `DiskImageStore()`. Pictures inside the messages need no store.
        name: the node's name in traces.

    Raises:
        ConfigError: an option is out of range, or `scorer` is no scorer.
    """
    if not 0 <= threshold <= 1:
        raise ConfigError(f"threshold is {threshold}; it must be between 0 and 1")
    if max_steps < 1:
        raise ConfigError(f"max_steps is {max_steps}; it must be at least 1")
    check_part("scorer", scorer, StepScorer)
    aggregation(aggregate)

    def split(text: str) -> list[str]:
        if not text.strip():
            return []
        return split_solution(normalise_text(text), max_steps=max_steps, splitter=splitter)

    store = DiskImageStore() if image_store is None else image_store
    return VerifierNode(scorer, threshold, aggregate, messages_key, output_key, split, store, name)


class VerifierNode(Runnable[Any, dict[str, Any]]):
    """A node for `add_node`, with `route` for `add_conditional_edges`."""

    def __init__(
        self,
        scorer: StepScorer,
        threshold: float,
        aggregate: str,
        messages_key: str,
        output_key: str,
        split: Splitter,
        store: ImageStore,
        name: str,
    ) -> None:
        self.name = name
        self.output_key = output_key
        self._scorer = scorer
        self._threshold = threshold
        self._aggregate = aggregate
        self._messages_key = messages_key
        self._split = split
        self._store = store
        self._judged: OrderedDict[str, None] = OrderedDict()

    def invoke(
        self, input: Any, config: RunnableConfig | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Judge the last AI message of the state `input`; return the update of the state."""
        return run_blocking(self._judge(input))

    async def ainvoke(
        self, input: Any, config: RunnableConfig | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Judge as `invoke` does."""
        return await self._judge(input)

    def route(
        self,
        *,
        on_fail: str,
        on_pass: str = END,
        max_retries: int = 2,
        on_exhausted: str | None = None,
        on_unscored: str | None = None,
    ) -> Callable[[Any], str]:
        """Return a function for `add_conditional_edges` that reads the verdict.

        A failed message goes to `on_fail` `max_retries` times, then to `on_exhausted` (default:
        `on_pass`), where the state still says "failed". `on_unscored` (default: like
        `on_exhausted`) takes messages the scorer could not score: a retry would not help them.
        Nothing to judge counts as passed. Raises `ConfigError` for a negative `max_retries`.
        """
        if max_retries < 0:
            raise ConfigError(f"max_retries is {max_retries}; it must be at least 0")
        exhausted = on_pass if on_exhausted is None else on_exhausted
        unscored = exhausted if on_unscored is None else on_unscored

        def route(state: Any) -> str:
            verdict = self._verdict(state)
            if verdict is None or verdict["outcome"] == "passed":
                return on_pass
            if verdict["outcome"] == "unscored":
                return unscored
            return on_fail if verdict["failures"] <= max_retries else exhausted

        return route

    def feedback(self, verdict: Mapping[str, Any]) -> str:
        """Return what to tell the author of a failed message: where it first went wrong."""
        return feedback_on(verdict)

    def feedback_message(self, verdict: Mapping[str, Any]) -> HumanMessage:
        """Return the feedback as a message; its name keeps it from being read as a question."""
        return HumanMessage(self.feedback(verdict), name=FEEDBACK_NAME)

    def _verdict(self, state: Any) -> dict[str, Any] | None:
        """Return the verdict on the last AI message, or None if there was nothing to judge."""
        message = _judged(_get(state, self._messages_key) or [])
        if message is None:
            return None
        verdict = _get(state, self.output_key)
        if not verdict or verdict["message_id"] != _identity(message):
            raise ConfigError(
                f"the state has no verdict on its last AI message under {self.output_key!r}; "
                "route after the verifier node"
            )
        return dict(verdict)

    async def _judge(self, state: Any) -> dict[str, Any]:
        messages: Sequence[AnyMessage] = _get(state, self._messages_key) or []
        message = _judged(messages)
        if message is None:
            return {}
        before = messages[: next(i for i, other in enumerate(messages) if other is message)]
        self._check_kept(state, before)
        steps, result = await self._scores(before, message)
        verdict = weigh(steps, result, aggregate=self._aggregate, threshold=self._threshold)
        verdict["message_id"] = _identity(message)
        verdict["question_id"] = _identity(question_of(before)) if _asked(before) else ""
        verdict["failures"] = count_failures(verdict, _get(state, self.output_key))
        self._remember(verdict)
        return {self.output_key: verdict}

    def _check_kept(self, state: Any, before: Sequence[BaseMessage]) -> None:
        """Raise `ConfigError` if LangGraph dropped an earlier verdict: retries would never end.

        It drops what a node writes under a key the state does not declare, without a word.
        """
        if _has(state, self.output_key):
            return
        if any(_identity(m) in self._judged for m in before if isinstance(m, AIMessage)):
            raise ConfigError(
                f"the verdict written under {self.output_key!r} is gone: declare the key in the "
                "graph's state schema (inherit VerifierState, or name another output_key)"
            )

    def _remember(self, verdict: Verdict) -> None:
        self._judged[verdict["message_id"]] = None
        while len(self._judged) > _REMEMBERED:
            self._judged.popitem(last=False)

    async def _scores(
        self, before: Sequence[BaseMessage], message: AIMessage
    ) -> tuple[list[str], ScoreResult]:
        """Return the message's steps and their scores; what is wrong with them is a reason."""
        try:
            problem, images = await asyncio.to_thread(read_problem_and_images, before, self._store)
            steps = self._split(message_text(message))
        except InputError as error:
            return [], ScoreResult.failed(1, str(error))
        if not steps:
            return [], ScoreResult.failed(1, "the message has no text")
        with unstreamed():
            results = await self._scorer.score([ScoreRequest(problem, tuple(steps), images)])
        if [len(result.scores) for result in results] != [len(steps)]:
            raise ScorerError(
                f"the scorer was given one message of {len(steps)} steps and returned "
                f"{[len(result.scores) for result in results]} scores"
            )
        return steps, results[0]


def _judged(messages: Sequence[BaseMessage]) -> AIMessage | None:
    """Return the last AI message, unless it calls tools or a human message comes after it."""
    for message in reversed(messages):
        if isinstance(message, AIMessage):
            return None if message.tool_calls else message
        if isinstance(message, HumanMessage):
            return None
    return None


def _asked(messages: Sequence[BaseMessage]) -> bool:
    return any(isinstance(m, HumanMessage) and m.name != FEEDBACK_NAME for m in messages)


def _identity(message: BaseMessage) -> str:
    """Return the message's id, or a hash of its text where the state gives no ids."""
    return message.id or ids.digest(message.type, message_text(message)).hex()[:24]


def _get(state: Any, key: str) -> Any:
    return state.get(key) if isinstance(state, Mapping) else getattr(state, key, None)


def _has(state: Any, key: str) -> bool:
    return key in state if isinstance(state, Mapping) else hasattr(state, key)


# --- the verdict --------------------------------------------------------------------------------


class StepVerdict(TypedDict):
    """One step of the judged message; `score` is None when `reason` says why."""

    text: str
    score: float | None
    reason: str


class Verdict(TypedDict):
    """What the verifier found, as plain JSON.

    `failures` counts the messages in a row that did not pass for the same question; `weak_step`
    is the index of the first step below the threshold.
    """

    outcome: Outcome
    message_id: str
    question_id: str
    score: float | None
    aggregate: str
    threshold: float
    steps: list[StepVerdict]
    weak_step: int | None
    reason: str
    failures: int


def weigh(
    steps: Sequence[str], result: ScoreResult, *, aggregate: str, threshold: float
) -> Verdict:
    """Return the verdict on a message with these steps and scores, not yet tied to a message."""
    values = [score.value for score in result.scores]
    score = path_score(aggregate, values)
    weak = (i for i, value in enumerate(values) if value is not None and value < threshold)
    reasons = [score.reason for score in result.scores if score.value is None]
    outcome: Outcome = "unscored"
    if score is not None:
        outcome = "passed" if score >= threshold else "failed"
    return Verdict(
        outcome=outcome,
        message_id="",
        question_id="",
        score=score,
        aggregate=aggregate,
        threshold=threshold,
        steps=[
            StepVerdict(text=text, score=step.value, reason=step.reason)
            for text, step in zip(steps, result.scores, strict=False)
        ],
        weak_step=next(weak, None),
        reason=reasons[0] if reasons else "",
        failures=0,
    )


def count_failures(verdict: Verdict, previous: Mapping[str, Any] | None) -> int:
    """Return how many messages in a row did not pass for this question, this one included.

    Judging the same message twice (a node repeated after a crash) counts once.
    """
    if verdict["outcome"] == "passed":
        return 0
    if not previous or previous["question_id"] != verdict["question_id"]:
        return 1
    counted = int(previous["failures"])
    same = previous["message_id"] == verdict["message_id"]
    return max(1, counted) if same else counted + 1


def feedback_on(verdict: Mapping[str, Any]) -> str:
    """Return what to tell the author of a failed message; "" if it did not fail."""
    if verdict["outcome"] != "failed":
        return ""
    head = (
        f"A verifier gave your last solution {verdict['score']:.2f}; "
        f"{verdict['threshold']:.2f} is needed to pass."
    )
    weak = verdict["weak_step"]
    if weak is None:  # with a product, steps that are all good can make a weak path
        return f"{head} Solve the problem again, checking every step against the image."
    step = verdict["steps"][weak]
    quoted = " ".join(str(step["text"]).split())[:300]
    return (
        f"{head} Step {weak + 1} is the first that looks wrong "
        f'(probability of being right {step["score"]:.2f}): "{quoted}". '
        "Check it against the image and solve the problem again from there."
    )
