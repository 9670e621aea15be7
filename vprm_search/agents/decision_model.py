"""`VPRMDecisionModel`: a reward model as LangChain's decision model (core 1.8 and newer)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.callbacks import AsyncCallbackManager, CallbackManager
from langchain_core.messages import AIMessage, BaseMessage, ToolCall, convert_to_messages
from langchain_core.runnables import RunnableConfig
from pydantic import ConfigDict, SkipValidation

from vprm_search.agents.turns import StepOf, steps_so_far, turn_as_step
from vprm_search.errors import InputError, MissingDependencyError, ScorerError
from vprm_search.graph.blocking import run_blocking
from vprm_search.graph.light_tracers import light_config
from vprm_search.graph.questions import read_problem_and_images
from vprm_search.images.store import DiskImageStore, ImageStore
from vprm_search.types import ScoreRequest, StepScorer

try:
    from langchain_core.decisions import BaseDecisionModel, ClassifierRequest, ClassifierResponse
except ImportError as error:
    raise MissingDependencyError("langchain-core 1.8 or newer", "agents") from error


class VPRMDecisionModel(BaseDecisionModel):
    """Gives the probability that an agent's next action is wrong, 1 - P('+') of it as a step.

    It drives `AutoModeMiddleware`, which blocks a call at .5 and above: the state's `tool_call` is
    judged after the state's `messages`, as the next step of their trajectory. A state of messages
    alone is judged by its last one. The question's words are not read: a process reward model
    answers one question only. So every `Noul` of a request has the same answer, and another kind
    of question is refused.

    Args:
        scorer: what gives each step P('+').
        model: the name in traces.
        step_of: writes a turn as a step.
        image_store: where reference blocks of a search graph are looked up.

    Raises:
        InputError: the state holds no question or no action, or a question is no `Noul`.
        ScorerError: the action has no score; nothing is let through by it.
    """

    model: str = "vprm"
    scorer: SkipValidation[StepScorer]
    step_of: StepOf = turn_as_step
    image_store: SkipValidation[ImageStore | None] = None

    model_config = ConfigDict(arbitrary_types_allowed=True)

    def invoke(
        self, input: ClassifierRequest, config: RunnableConfig | None = None, **kwargs: Any
    ) -> ClassifierResponse:
        """Answer the questions of a request about its state."""
        return super().invoke(input, light_config(CallbackManager, config), **kwargs)

    async def ainvoke(
        self, input: ClassifierRequest, config: RunnableConfig | None = None, **kwargs: Any
    ) -> ClassifierResponse:
        """Do what `invoke` does."""
        return await super().ainvoke(input, light_config(AsyncCallbackManager, config), **kwargs)

    @property
    def _provider(self) -> str:
        return "vprm_search"

    def _classify(self, state: Any, questions: Mapping[str, Any]) -> ClassifierResponse:
        return run_blocking(self._aclassify(state, dict(questions)))

    async def _aclassify(self, state: Any, questions: dict[str, Any]) -> ClassifierResponse:
        for name, question in questions.items():
            kind = getattr(question, "type", type(question).__name__)
            if kind != "noul":
                raise InputError(
                    f"question {name!r} is a {kind}; only yes or no (Noul) can be answered"
                )
        wrong = 1 - await self._right(_read(state))
        answers: Any = {name: {"type": "noul", "noul": wrong} for name in questions}
        return ClassifierResponse(model=self.model, answers=answers)

    async def _right(self, messages: Sequence[BaseMessage]) -> float:
        """Return P('+') of the last message of a conversation as a step."""
        steps = tuple(steps_so_far(messages, self.step_of))
        if not steps or not isinstance(messages[-1], AIMessage):
            raise InputError("the state ends with no action: nothing is said and no tool called")
        store = self.image_store or DiskImageStore()
        problem, images, _ = await asyncio.to_thread(read_problem_and_images, messages, store)
        (result,) = await self.scorer.score([ScoreRequest(problem, steps, images)])
        last = result.scores[-1]
        if last.value is None:
            raise ScorerError(f"the action has no score: {last.reason}")
        return last.value


def _read(state: Any) -> list[BaseMessage]:
    """Return the conversation of a state, with the call that is asked about as its last message."""
    call = None
    if isinstance(state, Mapping):
        call, state = state.get("tool_call"), state.get("messages")
    given = [state] if isinstance(state, str | BaseMessage) else list(state or [])
    try:
        messages = convert_to_messages(given)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise InputError("the state holds something that is no message") from error
    if call is None:
        return messages
    one = ToolCall(name=call["name"], args=dict(call["args"]), id=call.get("id"))
    last = messages[-1] if messages else None
    if isinstance(last, AIMessage) and last.tool_calls:
        return [*messages[:-1], last.model_copy(update={"tool_calls": [one]})]
    return [*messages, AIMessage("", tool_calls=[one])]
