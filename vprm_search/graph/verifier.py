"""`create_verifier_node`: a reward model as a judge inside a graph you already have."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, NotRequired

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    HumanMessage,
    ToolMessage,
    convert_to_messages,
)
from langchain_core.runnables import Runnable, RunnableConfig
from langgraph.graph import END
from pydantic import BaseModel
from typing_extensions import TypedDict  # pydantic cannot show typing's before Python 3.12

from vprm_search import ids
from vprm_search.aggregate import aggregation
from vprm_search.errors import ConfigError, InputError, ScorerError
from vprm_search.graph.blocking import run_blocking
from vprm_search.graph.nodes import unstreamed
from vprm_search.graph.parts import check_part
from vprm_search.graph.questions import (
    FEEDBACK_NAME,
    asked_message,
    message_text,
    read_problem_and_images,
)
from vprm_search.graph.verdict import (
    count_failures,
    feedback_on,
    merge_verdicts,
    verdicts_in,
    weigh,
)
from vprm_search.images.store import DiskImageStore, ImageStore
from vprm_search.steps import (
    DEFAULT_LIMITS,
    Splitter,
    json_object,
    merge_steps,
    normalise_text,
    split_at_blank_lines,
    split_solution,
    splitter_of,
    structured_steps,
)
from vprm_search.steps.thinking import put_thinking_aside
from vprm_search.types import ScoreRequest, ScoreResult, StepScorer

_STRUCTURED = "Returning structured response: "  # how `create_agent` answers its own output tool


class VerifierState(TypedDict):
    """The key a verifier writes; inherit it, or declare your own `output_key` alike."""

    vprm: NotRequired[dict[str, Any]]


class VerdictsState(TypedDict):
    """The same key for the verdict on every message, by its id: for `Send`, and to look back."""

    vprm: NotRequired[Annotated[dict[str, Any], merge_verdicts]]


def create_verifier_node(
    scorer: StepScorer,
    *,
    threshold: float = 0.8,
    aggregate: str = "mean",
    messages_key: str = "messages",
    output_key: str = "vprm",
    splitter: str | Splitter = split_at_blank_lines,
    max_steps: int = 12,
    image_store: ImageStore | None = None,
    name: str = "verify",
) -> VerifierNode:
    """Return a node that scores the last AI message against the question and images before it.

    The verdict is written under `output_key` as plain JSON (see `Verdict`), at every visit and on
    the conversation as it then is; messages are only read. What has no score is "unscored", with
    a reason, which is not "passed": a question without an answer yet, tool calls, an empty
    message, what a search graph found on no finished path, a picture given by address (nothing is
    fetched), a step that the scorer gave no score. What the scorer raises is raised.

    Structured output is judged by what its fields say (`structured_steps`): a message that is one
    JSON object, as a provider's own structured output is, and the output tool of `create_agent`
    (`ToolStrategy`), known by the answer it gets, or by `structured_response` where the state
    declares it. Only written text is judged, not thinking within it or beside it.

    Args:
        scorer: what gives each step P('+').
        threshold: the path score from which a message passes, in [0, 1].
        aggregate: how step scores make the path score: the name of an aggregation, such as "mean"
            (VisualPRM's), "min", "last" or "product".
        messages_key: the key of the conversation.
        output_key: the key of the verdict; the graph's state has to declare it.
        splitter: cuts a message into steps: a function, or the name of one (`steps.SPLITTERS`,
            "auto"). Default: at every blank line ("exact"), as VisualPRM's own code does; nothing
            is stripped and empty steps are scored.
        max_steps: more steps than this are merged into groups, as VisualPRM does (12).
        image_store: where reference blocks of a search graph are looked up. Default:
            `DiskImageStore()`. Pictures inside the messages need no store.
        name: the node's name in traces.

    Raises:
        ConfigError: an option is out of range or not known, or `scorer` is no scorer.
    """
    if not 0 <= threshold <= 1:
        raise ConfigError(f"threshold is {threshold}; it must be between 0 and 1")
    if max_steps < 1:
        raise ConfigError(f"max_steps is {max_steps}; it must be at least 1")
    check_part("scorer", scorer, StepScorer)
    aggregation(aggregate)

    store = DiskImageStore() if image_store is None else image_store
    cut = _Cut(splitter_of(splitter), max_steps)
    return VerifierNode(scorer, threshold, aggregate, messages_key, output_key, cut, store, name)


@dataclass(frozen=True, slots=True)
class _Cut:
    """How a message is cut into the steps that are scored."""

    splitter: Splitter
    max_steps: int

    def steps(self, answer: _Answer) -> list[str]:
        """Return the steps of an answer. Raises `InputError` if it is too long."""
        text = put_thinking_aside(normalise_text(answer.text))
        steps: list[str] = []
        if text.strip():
            steps = split_solution(text, max_steps=self.max_steps, splitter=self.splitter)
        if answer.fields is None:
            return steps
        DEFAULT_LIMITS.check_text(json.dumps(answer.fields, default=str), "the structured answer")
        said = structured_steps(answer.fields, splitter=self.splitter)
        return merge_steps([*steps, *map(normalise_text, said)], self.max_steps)


class VerifierNode(Runnable[Any, dict[str, Any]]):
    """A node for `add_node`, with `route` for `add_conditional_edges`."""

    def __init__(
        self,
        scorer: StepScorer,
        threshold: float,
        aggregate: str,
        messages_key: str,
        output_key: str,
        cut: _Cut,
        store: ImageStore,
        name: str,
    ) -> None:
        self.name = name
        self.output_key = output_key
        self._scorer = scorer
        self._threshold = threshold
        self._aggregate = aggregate
        self._messages_key = messages_key
        self._cut = cut
        self._store = store

    def invoke(
        self, input: Any, config: RunnableConfig | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Judge the last AI message of the state `input`; return the update of the state.

        Raises `ConfigError` as a node of a graph whose state does not declare `output_key`.
        """
        return run_blocking(self._judge(input, config))

    async def ainvoke(
        self, input: Any, config: RunnableConfig | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Judge as `invoke` does."""
        return await self._judge(input, config)

    def route(
        self,
        *,
        on_fail: str,
        on_pass: str = END,
        max_retries: int = 2,
        on_exhausted: str = END,
        on_unscored: str | None = None,
    ) -> Callable[[Any], str]:
        """Return a function for `add_conditional_edges` that reads the verdict.

        Only a message that passed goes to `on_pass`.

        Args:
            on_fail: where a failed message goes, `max_retries` times in a row.
            on_pass: where a message goes whose verdict is "passed".
            max_retries: how often a question is tried again.
            on_exhausted: where a failed message goes after that. Default: the end of the graph,
                where the state still says "failed".
            on_unscored: where a message without a score goes; to `on_fail` at most `max_retries`
                times, then to `on_exhausted`. Default: `on_exhausted` if that is a node of
                yours (another answer mends no outage), else `on_fail`.

        Raises:
            ConfigError: `max_retries` is negative; and the returned function, when the state's
                verdict is missing or of another message.
        """
        if max_retries < 0:
            raise ConfigError(f"max_retries is {max_retries}; it must be at least 0")
        unscored = on_unscored or (on_fail if on_exhausted == END else on_exhausted)

        def route(state: Any) -> str:
            verdict = self.verdict(state)
            if verdict is None:
                raise ConfigError(
                    f"the state has no verdict on its last message under {self.output_key!r}; "
                    "declare the key (inherit VerifierState) and route after the verifier node"
                )
            if verdict["outcome"] == "passed":
                return on_pass
            target = unscored if verdict["outcome"] == "unscored" else on_fail
            exhausted = target == on_fail and verdict["failures"] > max_retries
            return on_exhausted if exhausted else target

        return route

    def verdict(self, state: Any) -> dict[str, Any] | None:
        """Return the state's verdict if it is of its last message as it is now, else None.

        A verdict on an earlier message, or on one that was edited since, is none.
        """
        known = verdicts_in(_get(state, self.output_key))
        if not known:
            return None
        answer = self._answer(state)
        for verdict in reversed(known):
            # Verdicts written before there were digests name their message by its id alone.
            same = verdict.get("digest", answer.digest) == answer.digest
            if same and verdict["message_id"] == answer.message_id:
                return dict(verdict)
        return None

    def feedback(self, verdict: Mapping[str, Any]) -> str:
        """Return what to tell the author of a failed message: where it first went wrong."""
        return feedback_on(verdict)

    def feedback_message(self, verdict: Mapping[str, Any]) -> HumanMessage:
        """Return the feedback as a message; its name keeps it from being read as a question."""
        return HumanMessage(self.feedback(verdict), name=FEEDBACK_NAME)

    def _answer(self, state: Any) -> _Answer:
        return _answer_of(_get(state, self._messages_key) or [], _get(state, "structured_response"))

    async def _judge(self, state: Any, config: RunnableConfig | None) -> dict[str, Any]:
        self._check_declared(config)
        answer = self._answer(state)
        steps, result, unseen = await self._scores(answer)
        verdict = weigh(
            steps, result, aggregate=self._aggregate, threshold=self._threshold, unseen=unseen
        )
        verdict["message_id"] = answer.message_id
        verdict["digest"] = answer.digest
        verdict["question_id"] = _question_id(answer.before)
        before = verdicts_in(_get(state, self.output_key))
        verdict["failures"] = count_failures(verdict, before[-1] if before else None)
        return {self.output_key: verdict}

    def _check_declared(self, config: RunnableConfig | None) -> None:
        """Raise `ConfigError` if LangGraph would drop the verdict, which it does without a word.

        It does so with what a node writes under a key that the state does not declare. LangGraph
        hands every node a reader of the state; outside a node there is none.
        """
        read = ((config or {}).get("configurable") or {}).get("__pregel_read")
        if read is None:
            return
        try:
            read(self.output_key)
        except KeyError as error:
            raise ConfigError(
                f"the graph's state has no key {self.output_key!r}, so the verdict would be lost: "
                "declare the key (class State(VerifierState), with your messages), or name one of "
                "your own as output_key"
            ) from error

    async def _scores(self, answer: _Answer) -> tuple[list[str], ScoreResult, list[str]]:
        """Return the message's steps, their scores, and what the scorer was not shown.

        What is wrong with a message is the reason of a failed score.
        """
        unseen: list[str] = []
        try:
            if answer.lack:
                return [], ScoreResult.failed(1, answer.lack), unseen
            problem, images, unseen = await asyncio.to_thread(
                read_problem_and_images, answer.before, self._store
            )
            steps = self._cut.steps(answer)
        except InputError as error:
            return [], ScoreResult.failed(1, str(error)), unseen
        except RecursionError:
            why = "the structured answer is nested too deeply"
            return [], ScoreResult.failed(1, why), unseen
        if not steps:
            return [], ScoreResult.failed(1, "the message has no text"), unseen
        with unstreamed():
            results = await self._scorer.score([ScoreRequest(problem, tuple(steps), images)])
        if [len(result.scores) for result in results] != [len(steps)]:
            raise ScorerError(
                f"the scorer was given one message of {len(steps)} steps and returned "
                f"{[len(result.scores) for result in results]} scores"
            )
        return steps, results[0], unseen


def _get(state: Any, key: str) -> Any:
    return state.get(key) if isinstance(state, Mapping) else getattr(state, key, None)


def _question_id(before: Sequence[BaseMessage]) -> str:
    if not any(isinstance(m, HumanMessage) and m.name != FEEDBACK_NAME for m in before):
        return ""
    asked = asked_message(before)
    return asked.id or _digest(asked)


# --- what there is to judge -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Answer:
    """The end of a conversation: the answer's text, its structured fields, what came before it.

    `lack` says why there is nothing to judge. `message_id` and `digest` name the message that is
    judged, or with which the conversation ends.
    """

    before: Sequence[BaseMessage] = ()
    text: str = ""
    fields: Mapping[str, Any] | None = None
    lack: str = ""
    message_id: str = ""
    digest: str = ""


def _answer_of(given: Sequence[Any], response: Any = None) -> _Answer:
    """Return what there is to judge at the end of a conversation.

    Args:
        given: messages, in any of LangChain's notations.
        response: the structured answer that `create_agent` leaves in its state, if it is known.
    """
    try:
        messages = convert_to_messages(list(given))
    except (ValueError, TypeError, NotImplementedError):
        return _Answer(lack="the conversation holds something that is no message")
    results: dict[str, ToolMessage] = {}
    for place in range(len(messages) - 1, -1, -1):
        message = messages[place]
        if isinstance(message, ToolMessage):
            results[message.tool_call_id] = message
        elif isinstance(message, AIMessage):
            return _read_message(messages[:place], message, results, response)
        elif isinstance(message, HumanMessage):
            why = "the last message is a question, not yet an answer"
            return _named(message, _Answer(messages[: place + 1], lack=why))
    return _Answer(messages, lack="the conversation has no AI message")


def _read_message(
    before: Sequence[BaseMessage],
    message: AIMessage,
    results: Mapping[str, ToolMessage],
    response: Any,
) -> _Answer:
    text, fields, lack = message_text(message), None, _unfinished(message)
    if lack:
        text = ""
    elif message.tool_calls:
        structured = [
            call["args"] for call in message.tool_calls if _is_output(call, results, response)
        ]
        fields = structured[0] if len(structured) == 1 else None
        if fields is None:
            names = ", ".join(sorted({call["name"] for call in message.tool_calls}))
            lack = (
                f"the last AI message calls tools ({names}) and no answer follows: let the agent "
                "finish first; for structured output with a tool message of its own, declare "
                "structured_response in the state"
            )
    elif (fields := json_object(text)) is not None:
        text = ""
    return _named(message, _Answer(before, text, fields, lack))


def _unfinished(message: AIMessage) -> str:
    """Return why the message of a search graph is no whole solution, "" if it is one."""
    told = message.response_metadata.get("vprm")
    if not isinstance(told, Mapping) or not told.get("fallback"):
        return ""
    return f"the search found no finished solution: {told.get('warning', '')}"


def _named(message: BaseMessage, answer: _Answer) -> _Answer:
    digest = _digest(message)
    return replace(answer, message_id=message.id or digest, digest=digest)


def _digest(message: BaseMessage) -> str:
    """Return a hash of what a message says and calls."""
    calls = message.tool_calls if isinstance(message, AIMessage) else []
    said = [message.content, [[call["name"], call["args"]] for call in calls]]
    text = normalise_text(json.dumps(said, sort_keys=True, default=str, ensure_ascii=False))
    return ids.digest(message.type, text).hex()[:24]


def _is_output(call: Mapping[str, Any], results: Mapping[str, ToolMessage], response: Any) -> bool:
    """Tell whether `create_agent` took this tool call as the structured answer."""
    result = results.get(call["id"] or "")
    if result is None or result.status == "error":
        return False
    if str(result.text).startswith(_STRUCTURED):
        return True
    return response is not None and call["args"].keys() <= _field_names(response)


def _field_names(response: Any) -> set[str]:
    if isinstance(response, BaseModel):
        return {*response.model_dump(), *response.model_dump(by_alias=True)}
    return set(response if isinstance(response, Mapping) else getattr(response, "__dict__", ()))
