"""Searches with the served model as policy, and what is checked of every one of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.real_models.server import PATIENT, chat_model
from tests.real_models.word_problems import WordProblem
from vprm_search.answers import STRICT, read_answer, same_answer
from vprm_search.answers.choices import choices_of
from vprm_search.graph.run import SearchRun, arun_search
from vprm_search.policy import ChatModelPolicy
from vprm_search.search import MajorityVote, Selector, Strategy
from vprm_search.steps import SPLITTERS, split_steps
from vprm_search.types import StepScorer

AT_ONCE = 8  # searches
MAX_TOKENS, MAX_STEP_TOKENS = 256, 96


@dataclass
class Wire:
    """What the server sent: the texts of all its replies, and the statuses that were no success."""

    texts: list[str] = field(default_factory=list)
    refused: list[int] = field(default_factory=list)

    async def note(self, response: httpx.Response) -> None:
        """Note a reply of the server; a hook of the client."""
        if response.request.method != "POST":
            return
        if response.is_error:
            self.refused.append(response.status_code)
            return
        await response.aread()
        self.texts += [choice["message"]["content"] for choice in response.json()["choices"]]


@dataclass
class Solved:
    """All searches over some problems, and what the server sent meanwhile, in `seconds`."""

    problems: Sequence[WordProblem]
    runs: list[SearchRun]
    wire: Wire
    seconds: float

    def right(self, answer: str | None, number: int) -> bool:
        """Tell whether `answer` is that of problem `number`."""
        wanted = self.problems[number].answer
        return answer is not None and same_answer(answer, wanted, rules=STRICT)


async def solve(
    address: str,
    problems: Sequence[WordProblem],
    strategy: Strategy,
    *,
    scorer: StepScorer | None = None,
    selector: Selector | None = None,
) -> Solved:
    """Search for the answers to all `problems` with the model at `address`, several at a time."""
    wire = Wire()
    client = httpx.AsyncClient(event_hooks={"response": [wire.note]}, timeout=PATIENT.timeout_s)
    model = chat_model(address, temperature=0.8, http_async_client=client)
    policy = ChatModelPolicy(
        model, max_tokens_total=MAX_TOKENS, max_tokens_per_step=MAX_STEP_TOKENS, retry=PATIENT
    )
    slots = asyncio.Semaphore(AT_ONCE)

    async def one(problem: WordProblem) -> SearchRun:
        async with slots:
            return await arun_search(
                problem.question,
                policy=policy,
                scorer=scorer,
                strategy=strategy,
                selector=selector or MajorityVote(),
            )

    started = time.monotonic()
    runs = await asyncio.gather(*map(one, problems))
    await client.aclose()
    return Solved(problems, list(runs), wire, time.monotonic() - started)


def bare(text: str) -> str:
    """Return a text without its white space."""
    return "".join(text.split())


def check_nothing_lost(solved: Solved) -> None:
    """Every reply is in a tree, none has failed, and all of them are split, read and graded."""
    assert solved.wire.refused == []
    for number, run in enumerate(solved.runs):
        run.tree.check()
        lost = [(run.tree.steps(r.id), r.reason) for r in run.tree if r.status == "failed"]
        assert not lost, lost  # said here: pytest explains no asserts outside of test modules
        for record in run.tree.ended():
            if record.status == "pruned":
                continue
            text = "\n\n".join(run.tree.steps(record.id))
            for name in ("auto", *SPLITTERS):
                assert bare("".join(split_steps(text, splitter=name))) or not bare(text)
            reading = read_answer(text, choices=choices_of(run.tree.problem))
            going_on = record.cause == "max_depth"  # cut before the model had finished
            assert record.answer == (reading.text if reading and not going_on else None)
            assert solved.right(record.answer, number) in (True, False)


def report(name: str, solved: Solved) -> dict[str, Any]:
    """Return the figures of a line of the report, over all candidates and over the answers."""
    rights, read, finished, total = 0, 0, 0, 0
    any_right = chosen = 0
    for number, run in enumerate(solved.runs):
        leaves = [r for r in run.tree.ended() if r.status in ("finished", "truncated")]
        answers = [record.answer for record in leaves]
        graded = [solved.right(answer, number) for answer in answers]
        total += len(leaves)
        finished += sum(r.status == "finished" for r in leaves)
        read += sum(answer is not None for answer in answers)
        rights += sum(graded)
        any_right += any(graded)
        chosen += solved.right(run.result.answer, number)
    tokens = sum(run.result.usage.generated_tokens for run in solved.runs)
    return {
        "search": name,
        "problems": len(solved.problems),
        "candidates": total,
        "finished": finished,
        "answer read": read,
        "right": rights,
        "any right": any_right,
        "chosen right": chosen,
        "tokens": tokens,
        "seconds": round(solved.seconds),
    }
