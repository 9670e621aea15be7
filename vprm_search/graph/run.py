"""`run_search`: a search without a graph's checkpoints, for scripts and benchmarks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from vprm_search.budget import Budget, usage_of
from vprm_search.errors import SearchError
from vprm_search.graph import events, loop
from vprm_search.graph.loop import Job, score
from vprm_search.graph.parts import SearchRules, as_policy
from vprm_search.graph.session import CallsInFlight, propose_some, run_blocking
from vprm_search.images.normalise import normalise_image
from vprm_search.search.beam import BeamSearch
from vprm_search.search.outcome import OnNoAnswer, conclude
from vprm_search.search.plan import Plan, Strategy
from vprm_search.search.selectors import Selector, WeightedVote
from vprm_search.steps import normalise_text
from vprm_search.tree import SearchTree
from vprm_search.types import ImageData, NodeRecord, Policy, Problem, SearchResult, StepScorer

if TYPE_CHECKING:
    import os

    from langchain_core.language_models import BaseChatModel
    from PIL.Image import Image

    ImageSource = ImageData | bytes | str | os.PathLike[str] | Image

OnEvent = Callable[[events.Event], None]


@dataclass(frozen=True, slots=True)
class SearchRun:
    """The outcome of a search and the tree it grew."""

    result: SearchResult
    tree: SearchTree


@dataclass(slots=True)
class _Running:
    """One search among several: its job, the time spent, and why it ended."""

    job: Job
    seconds: float = 0.0
    ended_by: str = ""
    plan: Plan = field(default_factory=Plan)


@dataclass(frozen=True, slots=True)
class _Means:
    """What searches are run with; `calls` if their parts do not wait for one another."""

    policy: Policy
    scorer: StepScorer
    rules: SearchRules
    tell: OnEvent
    calls: CallsInFlight | None = None


def run_search(question: str | Problem, **options: Any) -> SearchRun:
    """Search for the answer to one question; `arun_search` for synchronous code."""
    return run_blocking(arun_search(question, **options))


async def arun_search(
    question: str | Problem,
    *,
    policy: Policy | BaseChatModel | Mapping[str, Policy | BaseChatModel],
    scorer: StepScorer,
    images: Sequence[ImageSource] = (),
    strategy: Strategy | None = None,
    selector: Selector | None = None,
    budget: Budget | None = None,
    run_seed: int = 0,
    on_no_answer: OnNoAnswer = "best_truncated",
    on_event: OnEvent | None = None,
) -> SearchRun:
    """Search for the answer to one question, in memory.

    The tree is the one the search graph grows from the same question, images and options; nothing
    is checkpointed. `images` are bytes, paths, PIL images or `ImageData`. `on_event` gets the
    events of the graph's `custom` stream. Raises what the policy or the scorer raises, and
    `ImageError` for an image that cannot be used.
    """
    rules = SearchRules(strategy or BeamSearch(), selector or WeightedVote(), budget or Budget())
    taken = tuple(i if isinstance(i, ImageData) else normalise_image(i) for i in images)
    problem = _problem(question, taken)
    job = Job(SearchTree(problem, run_seed), taken)
    runs = await run_jobs(
        [job], as_policy(policy), scorer, rules, on_no_answer=on_no_answer, on_event=on_event
    )
    return runs[0]


async def run_jobs(
    jobs: Sequence[Job],
    policy: Policy,
    scorer: StepScorer,
    rules: SearchRules,
    *,
    on_no_answer: OnNoAnswer = "best_truncated",
    on_event: OnEvent | None = None,
    lockstep: bool | None = None,
) -> list[SearchRun]:
    """Run many searches at the same time; return one run per job, in order.

    In lockstep, all searches make their rounds together, with one request to the policy and one to
    the scorer: best for models in this process, which then compute one large batch. Otherwise each
    search goes on as soon as its own replies are there, so that a slow reply holds up no other
    search: best for servers. The default asks the policy's `batches` (lockstep if it has none).
    The trees are the same either way. The time of a shared round counts for each search in it.
    """
    running = [_Running(job) for job in jobs]
    tell: OnEvent = on_event or (lambda event: None)
    means = _Means(policy, scorer, rules, tell)
    if getattr(policy, "batches", True) if lockstep is None else lockstep:
        await _run(running, means)
        return [_concluded(search, rules, on_no_answer, tell) for search in running]
    if not rules.waits_for_all(policy):
        means = replace(means, calls=CallsInFlight(policy))

    async def alone(number: int, search: _Running) -> SearchRun:
        await _run([search], means, str(number))
        return _concluded(search, rules, on_no_answer, tell)

    tasks = [asyncio.ensure_future(alone(*item)) for item in enumerate(running)]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:  # only after an error is any still under way
            task.cancel()


async def _run(running: Sequence[_Running], means: _Means, owner: str = "") -> None:
    """Make rounds until every search has ended; one that has ended leaves the round."""
    try:
        while active := [search for search in running if not search.ended_by]:
            started = time.monotonic()
            for search in active:
                _plan(search, means.rules, means.tell)
            active = [search for search in active if not search.ended_by]
            await _round(active, means, owner)
            for search in active:
                search.seconds += time.monotonic() - started
    finally:
        if means.calls is not None:
            means.calls.cancel(owner)


def _problem(question: str | Problem, images: tuple[ImageData, ...]) -> Problem:
    digests = tuple(image.digest for image in images)
    if isinstance(question, str):
        return Problem(normalise_text(question).strip(), digests)
    if question.images != digests:
        raise SearchError(
            f"the problem names {len(question.images)} images and {len(digests)} were given, or "
            "they differ; pass the problem's images in its order"
        )
    return question


def _plan(search: _Running, rules: SearchRules, tell: OnEvent) -> None:
    tree = search.job.tree
    known = search.plan.expand
    search.plan = loop.next_plan(
        tree, rules, seconds=search.seconds, was_cut=search.plan.cut, under_way=known
    )
    closed = loop.close_nodes(tree, search.plan)
    search.ended_by = search.plan.finish
    _tell(tell, events.planned(tree, search.plan, closed, known=known))
    loop.check_plan(search.plan, tree, rules)


async def _round(active: Sequence[_Running], means: _Means, owner: str) -> None:
    jobs = [replace(search.job, seconds=search.seconds) for search in active]
    proposed = await _propose(active, jobs, means, owner)
    for job, records in zip(jobs, proposed, strict=True):
        _tell(means.tell, events.expanded(job.tree, records))
    scored: list[list[NodeRecord]] = await score(jobs, means.scorer, means.rules)
    for job, records in zip(jobs, scored, strict=True):
        _tell(means.tell, events.scored(job.tree, records))


async def _propose(
    active: Sequence[_Running], jobs: Sequence[Job], means: _Means, owner: str
) -> list[list[NodeRecord]]:
    """Ask for this round's children; a search's plan then holds what is still under way."""
    if means.calls is None:
        plans = [search.plan for search in active]
        proposed = await loop.propose(jobs, plans, means.policy, means.rules)
        for search in active:
            search.plan = replace(search.plan, expand=())
        return proposed
    proposed = []
    for search, job in zip(active, jobs, strict=True):  # one search: each has its own loop
        records, search.plan = await propose_some(job, search.plan, means.calls, means.rules, owner)
        proposed.append(records)
    return proposed


def _concluded(
    search: _Running, rules: SearchRules, on_no_answer: OnNoAnswer, tell: OnEvent
) -> SearchRun:
    tree = search.job.tree
    usage = usage_of(tree, search.seconds)
    result = conclude(
        tree, rules.selector, usage=usage, ended_by=search.ended_by, on_no_answer=on_no_answer
    )
    _tell(tell, events.answered(tree, result))
    return SearchRun(result, tree)


def _tell(tell: OnEvent, told: Sequence[events.Event]) -> None:
    for event in told:
        tell(event)
