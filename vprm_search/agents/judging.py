"""Judges of runs: evaluators for LangSmith and openevals.

An evaluator is given what went into a run and what came out of it, and gives feedback in the shape
of openevals: a mark for the whole, and one for every step.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, Protocol

from langchain_core.messages import AIMessage, BaseMessage, convert_to_messages
from typing_extensions import TypedDict

from vprm_search.agents.turns import StepOf, steps_so_far, trajectory, turn_as_step
from vprm_search.errors import InputError
from vprm_search.graph.blocking import run_blocking
from vprm_search.graph.questions import read_problem_and_images
from vprm_search.graph.verdict import Verdict, feedback_on, weigh
from vprm_search.graph.verifier import create_verifier_node
from vprm_search.images.messages import image_message
from vprm_search.images.normalise import image_from_base64, image_from_data_uri
from vprm_search.images.store import DiskImageStore, ImageStore
from vprm_search.types import ScoreRequest, StepScorer

_QUESTION = ("question", "input", "prompt", "query", "text")
_SOLUTION = ("solution", "output", "answer", "response", "text", "content")


class Feedback(TypedDict):
    """A mark, as openevals gives it and LangSmith takes it.

    `score` is None where `comment` says why. `metadata` of the whole's mark is the `Verdict`.
    """

    key: str
    score: float | None
    comment: str | None
    metadata: dict[str, Any] | None
    source_run_id: str | None


class Evaluator(Protocol):
    """Judges a run."""

    def __call__(
        self, *, inputs: Any = None, outputs: Any, reference_outputs: Any = None, **kwargs: Any
    ) -> list[Feedback]:
        """Return the marks of a run: the whole, then its steps in order."""
        ...


class AsyncEvaluator(Protocol):
    """Judges a run, asynchronously."""

    def __call__(
        self, *, inputs: Any = None, outputs: Any, reference_outputs: Any = None, **kwargs: Any
    ) -> Awaitable[list[Feedback]]:
        """Return the marks of a run: the whole, then its steps in order."""
        ...


def create_async_vprm_evaluator(
    scorer: StepScorer,
    *,
    key: str = "vprm",
    aggregate: str = "mean",
    threshold: float = 0.8,
    steps: bool = True,
    step_of: StepOf = turn_as_step,
    image_store: ImageStore | None = None,
) -> AsyncEvaluator:
    """Return an evaluator that scores the solution, or the trajectory, of a run step by step.

    The run's `inputs` are a text, messages, or a mapping with `messages` or with a question (under
    `question`, `input`, `prompt`, `query` or `text`) and perhaps `images` (base64 or data URIs);
    its `outputs` a text, messages, or a mapping with `messages` or a solution (under `solution`,
    `output`, `answer`, `response`, `text` or `content`). Messages of the outputs that hold the
    question, as a graph's state does, are the whole conversation. An answer is cut into steps as
    `create_verifier_node` does it; of an agent's trajectory every turn is a step. Reference outputs
    are not looked at: a process reward model needs none.

    Args:
        scorer: what gives each step P('+').
        key: the name of the whole's mark; a step's is `KEY_step_1`, `KEY_step_2`, ….
        aggregate: how step scores make the whole's: the name of an aggregation.
        threshold: from which score the verdict in the mark's metadata is "passed".
        steps: whether the steps are marked, too.
        step_of: writes a turn of an agent as a step.
        image_store: where reference blocks of a search graph are looked up. Default:
            `DiskImageStore()`.

    Raises:
        ConfigError: an option is out of range; the evaluator itself raises what the scorer does.
    """
    store = DiskImageStore() if image_store is None else image_store
    verifier = create_verifier_node(
        scorer, threshold=threshold, aggregate=aggregate, image_store=store
    )

    async def turns(messages: Sequence[BaseMessage]) -> Verdict:
        said = steps_so_far(messages, step_of)
        problem, images, unseen = await asyncio.to_thread(read_problem_and_images, messages, store)
        (result,) = await scorer.score([ScoreRequest(problem, tuple(said), images)])
        return weigh(said, result, aggregate=aggregate, threshold=threshold, unseen=unseen)

    async def evaluate(
        *, inputs: Any = None, outputs: Any, reference_outputs: Any = None, **kwargs: Any
    ) -> list[Feedback]:
        try:
            messages = conversation_of(inputs, outputs)
            if len(trajectory(messages)[1]) > 1:
                verdict: Mapping[str, Any] = await turns(messages)
            else:
                verdict = (await verifier.ainvoke({"messages": messages}))["vprm"]
        except InputError as error:
            return [_mark(key, None, str(error))]
        return _marks(verdict, key, steps)

    return evaluate


def create_vprm_evaluator(scorer: StepScorer, **options: Any) -> Evaluator:
    """Return what `create_async_vprm_evaluator` returns, which see, for synchronous code.

    Args:
        scorer: what gives each step P('+').
        options: those of `create_async_vprm_evaluator`.
    """
    judge: Any = create_async_vprm_evaluator(scorer, **options)

    def evaluate(
        *, inputs: Any = None, outputs: Any, reference_outputs: Any = None, **kwargs: Any
    ) -> list[Feedback]:
        return run_blocking(judge(inputs=inputs, outputs=outputs))

    return evaluate


def conversation_of(inputs: Any, outputs: Any) -> list[BaseMessage]:
    """Return the conversation of a run, its question and its answer in it.

    Raises `InputError` where there is neither text nor message in one of them.
    """
    said = _messages(outputs, "outputs", _SOLUTION, AIMessage)
    if any(message.type == "human" for message in said):
        return said
    return [*_messages(inputs, "inputs", _QUESTION, image_message), *said]


def _messages(given: Any, what: str, names: Sequence[str], make: Any) -> list[BaseMessage]:
    images: Sequence[Any] = ()
    if isinstance(given, Mapping) and "role" not in given and "type" not in given:
        if isinstance(given.get("messages"), Sequence) and given["messages"]:
            return _messages(given["messages"], what, names, make)
        images = given.get("images") or () if what == "inputs" else ()
        named = [given[name] for name in names if given.get(name) is not None]
        if not named:
            listed = ", ".join(names)
            raise InputError(f"the {what} hold neither messages nor one of: {listed}")
        given = named[0]
    if isinstance(given, str):
        return [make(given, *(_picture(image) for image in images))]
    whole = given if isinstance(given, Sequence) else [given]
    try:
        return convert_to_messages(list(whole))
    except (ValueError, TypeError, NotImplementedError) as error:
        raise InputError(
            f"the {what} are no text and no messages ({type(given).__name__})"
        ) from error


def _picture(image: Any) -> Any:
    if not isinstance(image, str):
        return image
    read = image_from_data_uri if image[:5].lower() == "data:" else image_from_base64
    return read(image)


def _marks(verdict: Mapping[str, Any], key: str, steps: bool) -> list[Feedback]:
    comment = feedback_on(verdict) or None
    if verdict["score"] is None:
        comment = verdict["reason"]
    if verdict["unseen"]:
        lack = f"The reward model was not shown {', '.join(verdict['unseen'])}."
        comment = f"{comment} {lack}" if comment else lack
    marks = [_mark(key, verdict["score"], comment, dict(verdict))]
    for number, step in enumerate(verdict["steps"] if steps else (), start=1):
        said = step["reason"] if step["score"] is None else step["text"]
        marks.append(_mark(f"{key}_step_{number}", step["score"], said))
    return marks


def _mark(
    key: str, score: float | None, comment: str | None, metadata: dict[str, Any] | None = None
) -> Feedback:
    return Feedback(key=key, score=score, comment=comment, metadata=metadata, source_run_id=None)
