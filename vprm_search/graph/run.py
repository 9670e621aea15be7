"""Searches without a graph, through the same loop: for scripts and benchmarks."""

from __future__ import annotations

import asyncio
import contextlib
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from vprm_search.answers import extract_answer
from vprm_search.budget import Budget
from vprm_search.errors import SearchError, SearchWarning
from vprm_search.graph import events
from vprm_search.graph.blocking import blocking, in_run, new_run
from vprm_search.graph.loop import Job, Loop, Told
from vprm_search.graph.parts import SearchRules, as_policy, as_scorer, choose_rules
from vprm_search.images.normalise import normalise_image
from vprm_search.search.auto import Advice
from vprm_search.search.outcome import OnNoAnswer
from vprm_search.search.plan import Plan, Strategy
from vprm_search.search.selectors import Selector
from vprm_search.steps import DEFAULT_LIMITS, Splitter, StepLimits, normalise_text, split_solution
from vprm_search.tree import SearchTree
from vprm_search.types import ImageData, Policy, Problem, SearchResult, StepScorer

if TYPE_CHECKING:
    import os

    from langchain_core.language_models import BaseChatModel
    from langchain_core.messages import AnyMessage, BaseMessage
    from PIL.Image import Image

    from vprm_search.graph.questions import QuestionOf

    ImageSource = ImageData | bytes | str | os.PathLike[str] | Image
    Message = BaseMessage | Mapping[str, Any]
    Question = str | Problem | Message | Sequence[Message]

OnEvent = Callable[[events.Event], None]


@dataclass(frozen=True, slots=True)
class SearchRun:
    """The outcome of a search and the tree it grew; as text (`str`) the outcome's."""

    result: SearchResult
    tree: SearchTree

    def __str__(self) -> str:
        """Return what a user reads of the outcome."""
        return str(self.result)


async def arun_search(
    question: Question,
    *,
    policy: Policy | BaseChatModel | Mapping[str, Policy | BaseChatModel],
    scorer: StepScorer | None,
    images: Sequence[ImageSource] = (),
    strategy: Strategy | Literal["auto"] = "auto",
    selector: Selector | None = None,
    advice: Advice | None = None,
    budget: Budget | None = None,
    run_seed: int = 0,
    on_no_answer: OnNoAnswer = "best_truncated",
    extract: Callable[[str], str | None] = extract_answer,
    split: str | Splitter = split_solution,
    limits: StepLimits = DEFAULT_LIMITS,
    question_of: QuestionOf | None = None,
    on_event: OnEvent | None = None,
) -> SearchRun:
    """Search for the answer to one question, in memory.

    The tree is the one the search graph (`create_search_graph`) grows from the same question,
    images and options; nothing is checkpointed.

    Args:
        question: its text; or a message, or a conversation, as a search graph takes it: with its
            images inside (`image_message`, or `{"role": "user", "content": [...]}`); or a
            `Problem`, whose images are then given as `images`.
        policy: what proposes steps: any LangChain chat model, or a `Policy`; or several by name.
        scorer: what gives each step P('+'); None if neither strategy nor selector reads scores.
        images: the images of a question given as text: bytes, paths, PIL images or `ImageData`.
        strategy: which paths to go on with. Default: "auto", an `AutoSearch`, or best-of-N where
            there is no scorer or nothing can be searched (`choose_rules`).
        selector: which finished path is the answer. Default: `WeightedVote()`; for "auto" the one
            of `choose_rules`.
        advice: what a pre-flight check found the scorer good for with this policy, for "auto":
            "search", "vote" or "majority". Default: None, nothing was checked.
        budget: limits that end the search with the best answer so far. Default: none.
        run_seed: makes the seeds of all candidates; equal searches draw equally.
        on_no_answer: when no path finished, take the best unfinished one ("best_truncated") or
            raise `NoAnswerError` ("error").
        extract: reads the final answer out of a solution, None if there is none.
        split: cuts a whole solution into steps; what it returns is scored as it is.
        limits: what a step (characters) and a solution (bytes, steps) may measure.
        question_of: makes the question that the reward model is shown of a conversation.
            Default: as `create_search_graph` does it.
        on_event: gets the events of the graph's `custom` stream (`graph/events.py`).

    Raises:
        ConfigError: `policy` is none, or there is no scorer where one is needed.
        ImageError: an image cannot be used.
        SearchError: images are given twice, or are not those of the problem, or a problem comes
            without the conversation it was asked in.
        VprmError: what the policy or the scorer raises.
    """
    proposer = as_policy(policy)
    chosen = choose_rules(
        strategy, selector, policy=proposer, scorer=scorer, budget=budget, advice=advice
    )
    rules = SearchRules(*chosen, budget or Budget(), extract=extract, split=split, limits=limits)
    problem, taken, messages = read_question(question, images, question_of)
    job = Job(SearchTree(problem, run_seed), taken, messages=messages)
    runs = await run_jobs(
        [job],
        proposer,
        as_scorer(scorer, rules),
        rules,
        on_no_answer=on_no_answer,
        on_event=on_event,
    )
    if warning := runs[0].result.warning:
        warnings.warn(warning, SearchWarning, stacklevel=2)
    return runs[0]


run_search = blocking(arun_search)
"""`arun_search` for synchronous code."""


async def run_jobs(
    jobs: Sequence[Job],
    policy: Policy,
    scorer: StepScorer,
    rules: SearchRules,
    *,
    on_no_answer: OnNoAnswer = "best_truncated",
    on_event: OnEvent | None = None,
    on_run: Callable[[int, SearchRun], None] | None = None,
    lockstep: bool | None = None,
) -> list[SearchRun]:
    """Run many searches at the same time; return one run per job, in order.

    In lockstep, all searches make their rounds together, with one request to the policy and one to
    the scorer: best for models in this process, which then compute one large batch. Otherwise each
    search goes on as soon as its own replies are there, so that a slow reply holds up no other
    search: best for servers. The trees are the same either way. The time of a shared round counts
    for each search in it.

    Args:
        jobs: the searches; their trees grow, and may hold steps already.
        policy: what proposes steps.
        scorer: what scores them.
        rules: strategy, selector, budget and how texts are read.
        on_no_answer: see `arun_search`.
        on_event: see `arun_search`.
        on_run: called with the place of a job and its run as soon as that search has ended, so
            that it can be kept while others go on; what it raises ends them.
        lockstep: see above. Default: the policy's `batches`, True if it has none.
    """
    begun = [replace(job, seconds=0.0, plan=Plan()) for job in jobs]
    together = getattr(policy, "batches", True) if lockstep is None else lockstep
    waits = together or rules.waits_for_all(policy)
    loop = Loop(
        policy, scorer, rules, waits=waits, on_no_answer=on_no_answer, tells=on_event is not None
    )
    tell: OnEvent = on_event or (lambda event: None)
    runs: dict[int, SearchRun] = {}

    def conclude(place: int) -> None:
        runs[place] = _concluded(loop, begun[place], tell)
        if on_run is not None:
            on_run(place, runs[place])

    async def alone(place: int) -> None:
        run = new_run()
        try:
            with in_run(run):
                await _search(loop, [begun[place]], tell, lambda _: conclude(place))
        finally:
            loop.calls.end_run(run)

    if together:
        await _search(loop, begun, tell, conclude)
    else:
        tasks = [asyncio.ensure_future(alone(place)) for place in range(len(begun))]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:  # only after an error is any still under way
                task.cancel()
    return [runs[place] for place in range(len(begun))]


async def search_many(
    problems: Sequence[tuple[Problem, tuple[ImageData, ...]]],
    policy: Policy,
    scorer: StepScorer,
    rules: SearchRules,
    *,
    run_seed: int = 0,
    batch: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> list[SearchRun]:
    """Search every problem under `rules`, `batch` at a time (`run_jobs`).

    After every batch, `progress` is called with (searches ended, searches in all).
    """
    runs: list[SearchRun] = []
    for start in range(0, len(problems), batch):
        part = problems[start : start + batch]
        jobs = [Job(SearchTree(problem, run_seed), images) for problem, images in part]
        runs += await run_jobs(jobs, policy, scorer, rules)
        if progress is not None:
            progress(len(runs), len(problems))
    return runs


async def _search(
    loop: Loop, jobs: Sequence[Job], tell: OnEvent, conclude: Callable[[int], None]
) -> None:
    """Make rounds until every search has ended; one that has ended leaves, and is concluded."""
    active = dict(enumerate(jobs))
    while active:
        with _timed(active.values()):
            _tell(tell, [loop.plan(job) for job in active.values()])
        for place in [place for place, job in active.items() if job.plan.finish]:
            del active[place]
            conclude(place)
        left = list(active.values())
        if left:
            with _timed(left):
                _tell(tell, await loop.propose(left))
            with _timed(left):
                _tell(tell, await loop.score(left))


@contextlib.contextmanager
def _timed(jobs: Iterable[Job]) -> Iterator[None]:
    """Count the time of a block for each of the searches."""
    started = time.monotonic()
    try:
        yield
    finally:
        for job in jobs:
            job.seconds += time.monotonic() - started


def _concluded(loop: Loop, job: Job, tell: OnEvent) -> SearchRun:
    result, told = loop.conclude(job)
    _tell(tell, [([], told)])
    return SearchRun(result, job.tree)


def _tell(tell: OnEvent, phases: Sequence[Told]) -> None:
    for _, told in phases:
        for event in told:
            tell(event)


def read_question(
    question: Question,
    images: Sequence[ImageSource] = (),
    question_of: QuestionOf | None = None,
) -> tuple[Problem, tuple[ImageData, ...], tuple[AnyMessage, ...]]:
    """Return the problem that is asked, its images in their order, and what the policy is shown."""
    given = tuple(i if isinstance(i, ImageData) else normalise_image(i) for i in images)
    digests = tuple(image.digest for image in given)
    if isinstance(question, str):
        return Problem(normalise_text(question).strip(), digests), given, ()
    if isinstance(question, Problem):
        if question.images != digests:
            raise SearchError(
                f"the problem names {len(question.images)} images and {len(digests)} were given, "
                "or they differ; pass the problem's images in its order"
            )
        if question.context:
            raise SearchError(
                "the problem was asked within a conversation, which it does not hold; ask with the "
                "messages"
            )
        return question, given, ()
    if given:
        raise SearchError(
            f"{len(given)} images were given beside a message; put them into the message "
            "(image_message), or ask with a text"
        )
    from vprm_search.graph.questions import question_in_context, read_asked  # loads LangChain

    return read_asked(question, question_of or question_in_context)
