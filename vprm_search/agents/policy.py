"""An agent as the policy of a search, and what its turns are judged with."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace

from langchain_core.messages import AIMessage
from langchain_core.runnables.config import ensure_config

from vprm_search.agents.acting import finished, new_messages
from vprm_search.agents.branches import Branches, last_said, messages_of
from vprm_search.agents.turns import StepOf, results_as_step
from vprm_search.chat.failures import explain
from vprm_search.errors import ConfigError, InputError
from vprm_search.graph.questions import read_problem
from vprm_search.images.messages import ImageIntake
from vprm_search.types import Proposal, ProposeRequest, ScoreRequest, ScoreResult, StepScorer


@dataclass(slots=True)
class Round:
    """What policy and scorer need to know of a round: which branch is meant, and its pictures.

    `parents` has the name of the branch whose children are asked for, by the first of their seeds.
    """

    branches: Branches
    parents: Mapping[int, str]
    failed: Mapping[str, str]
    intake: ImageIntake
    pictures: dict[int, list[str]] = field(default_factory=dict)


this_round: ContextVar[Round] = ContextVar("vprm_search_agent_round")
pictures_shown: ContextVar[Mapping[tuple[str, ...], list[str]]] = ContextVar(
    "vprm_search_agent_pictures"
)


class AgentPolicy:
    """An agent as a policy: each child is a branch in which its model has spoken once more."""

    batches = True

    def __init__(self, step_of: StepOf) -> None:
        self._step_of = step_of

    async def propose(self, requests: Sequence[ProposeRequest]) -> list[list[Proposal]]:
        """Let the agent's model speak in a branch of its own for every child, side by side."""
        now = this_round.get()
        if any(request.until == "end" for request in requests):
            raise ConfigError(
                "the strategy asks for whole solutions, whose tools would run before any score; "
                "take one that goes step by step, such as BeamSearch or ParticleFilter"
            )
        limit = asyncio.Semaphore(ensure_config().get("max_concurrency") or 64)

        async def child(parent: str, seed: int) -> Proposal:
            if parent in now.failed:
                return Proposal("", "error", error=now.failed[parent])
            async with limit:
                try:
                    return await self._child(now, parent, seed)
                except Exception as error:  # one candidate's
                    return Proposal("", "error", requests=1, error=explain(error))

        asked = [
            asyncio.gather(*(child(now.parents[request.seeds[0]], seed) for seed in request.seeds))
            for request in requests
        ]
        return [list(replies) for replies in await asyncio.gather(*asked)]

    async def _child(self, now: Round, parent: str, seed: int) -> Proposal:
        name, branches = str(seed), now.branches
        state = await branches.state(name)
        if not state.values:
            await branches.copy(parent, name)
        if not state.values or await branches.is_copy(parent, name):
            state = await branches.run(name)
        messages = messages_of(state)
        new = new_messages(messages_of(await branches.state(parent)), messages)
        place = last_said(messages)
        if place is None or messages[place] not in new:
            if finished(state) and (ending := results_as_step(messages)):  # a tool's own answer
                return Proposal(ending, "stop")
            return Proposal("", "error", requests=1, error="the agent's model said nothing")
        said = messages[place]
        if isinstance(said, AIMessage) and said.invalid_tool_calls:
            return Proposal("", "error", requests=1, error="a tool call cannot be read")
        talk = messages[: place + 1]
        with contextlib.suppress(InputError):  # the question's are shown all the same
            problem = read_problem(talk, now.intake.name_image)
            now.pictures[seed] = list(problem.images)
        spent = [m.usage_metadata for m in new if isinstance(m, AIMessage) and m.usage_metadata]
        return Proposal(
            self._step_of(talk),
            "stop" if finished(state) else "step",
            generated_tokens=sum(usage["output_tokens"] for usage in spent),
            prompt_tokens=sum(usage["input_tokens"] for usage in spent),
            requests=1,
        )


class PicturedScorer:
    """Shows a scorer the pictures that tools have shown on a path, beside the question's."""

    def __init__(self, inner: StepScorer) -> None:
        self._inner = inner
        self.has_prefix_cache = getattr(inner, "has_prefix_cache", False)

    async def score(self, requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
        """Score all requests: same length, same order."""
        known, intake = pictures_shown.get({}), this_round.get().intake
        return await self._inner.score(
            [self._with(r, known.get(r.steps), intake) for r in requests]
        )

    def _with(
        self, request: ScoreRequest, digests: list[str] | None, intake: ImageIntake
    ) -> ScoreRequest:
        if digests is None or tuple(digests) == request.problem.images:
            return request
        problem = replace(request.problem, images=tuple(digests))
        return replace(request, problem=problem, images=intake.images(problem))
