"""A policy that says what a test wants it to say."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence

from vprm_search.answers import has_final_answer
from vprm_search.chat.failures import explain
from vprm_search.testing.script import Script, words_in
from vprm_search.types import Finish, Proposal, ProposeRequest

Said = str | Proposal | Exception
"""What a policy answers for one child: the text of a step or solution, all of a proposal, or why
the call failed."""


class ScriptedPolicy:
    """Proposes by a script; implements `types.Policy`.

    A text ends its solution ("stop") if a whole one was asked for or it states a final answer, and
    is a "step" otherwise; its tokens are its words. An exception is a failed call: proposals with
    `finish="error"`. What a rule *raises* breaks the policy itself and reaches the caller.

    Args:
        script: a rule `(request, seed)`, which may be async, asked once for every child; or
            replies in the order of asking; or one text for all. See `chance` for rules that draw.
        delay_s: seconds that every call of `propose` takes.
        batches: whether many requests in one call are faster than many calls, as in one process
            (True). False makes the policy one behind a server: parts of a tree ask by themselves.

    `asked` keeps every request; `running` and `most_running` count the calls under way.
    Raises `ConfigError` when the replies are used up.
    """

    def __init__(
        self,
        script: Callable[[ProposeRequest, int], Said | Awaitable[Said]] | Iterable[Said],
        *,
        delay_s: float = 0.0,
        batches: bool = True,
    ) -> None:
        self._script = Script(script)
        self.delay_s, self.batches = delay_s, batches
        self.asked: list[ProposeRequest] = []
        self.running = self.most_running = 0

    async def propose(self, requests: Sequence[ProposeRequest]) -> list[list[Proposal]]:
        """Answer all requests: one list per request, one proposal per seed, in order."""
        self.asked += requests
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await asyncio.sleep(self.delay_s)
            replies = iter(
                await self._script.awaited(
                    [self._script(r, seed) for r in requests for seed in r.seeds]
                )
            )
        finally:
            self.running -= 1
        return [
            [_proposal(next(replies), request, place) for place in range(len(request.seeds))]
            for request in requests
        ]


def _proposal(said: Said, request: ProposeRequest, place: int) -> Proposal:
    if isinstance(said, Proposal):
        return said
    requests = int(place == 0)  # the children of a request share a call
    if isinstance(said, Exception):
        return Proposal("", "error", requests=requests, error=explain(said))
    ends = request.until == "end" or has_final_answer(said)
    finish: Finish = "stop" if ends else "step"
    prompt = words_in(request.problem.system, request.problem.question, *request.steps)
    return Proposal(
        said,
        finish,
        generated_tokens=words_in(said),
        prompt_tokens=prompt * requests,
        requests=requests,
    )
