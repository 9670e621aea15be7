"""Many searches in lockstep: one request to the policy and one to the scorer per round for all.

The same phases as in the LangGraph graph, without checkpoints: for measurements over hundreds of
problems.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from vprm_search import ids
from vprm_search.budget import usage_of
from vprm_search.graph.phases import Job, SearchRules, close_nodes, next_plan, propose, score
from vprm_search.search.outcome import conclude
from vprm_search.tree import SearchTree
from vprm_search.types import ImageData, Policy, Problem, SearchResult, StepScorer

Progress = Callable[[int, int], None]
"""Called with (searches ended, searches in all) after every round."""


@dataclass(frozen=True, slots=True)
class SearchRun:
    """A search that has ended: its result and its whole tree."""

    result: SearchResult
    tree: SearchTree


async def search_many(
    problems: Sequence[tuple[Problem, tuple[ImageData, ...]]],
    policy: Policy,
    scorer: StepScorer,
    rules: SearchRules,
    *,
    run_seed: int = 0,
    batch: int = 64,
    progress: Progress | None = None,
) -> list[SearchRun]:
    """Search every problem under `rules`; `batch` problems at a time advance together.

    Time budgets are not supported here, as the searches of a batch share their time.
    """
    runs: list[SearchRun] = []
    for start in range(0, len(problems), batch):
        part = problems[start : start + batch]
        jobs = [Job(SearchTree(problem, run_seed), images) for problem, images in part]
        ended = await _run_batch(jobs, policy, scorer, rules)
        runs += [_concluded(job.tree, rules, reason) for job, reason in ended]
        if progress is not None:
            progress(len(runs), len(problems))
    return runs


async def _run_batch(
    jobs: Sequence[Job], policy: Policy, scorer: StepScorer, rules: SearchRules
) -> list[tuple[Job, str]]:
    reasons = [""] * len(jobs)
    active = list(range(len(jobs)))
    while active:
        plans = []
        for number in active:
            plan = next_plan(jobs[number].tree, rules)
            close_nodes(jobs[number].tree, plan)
            reasons[number] = plan.finish
            plans.append(plan)
        going = [pair for pair in zip(active, plans, strict=True) if not pair[1].finish]
        active = [number for number, _ in going]
        moving = [jobs[number] for number in active]
        await propose(moving, [plan for _, plan in going], policy, rules)
        await score(moving, scorer, rules)
    return list(zip(jobs, reasons, strict=True))


def _concluded(tree: SearchTree, rules: SearchRules, reason: str) -> SearchRun:
    result = conclude(tree, rules.selector, usage=usage_of(tree), ended_by=reason)
    return SearchRun(result, tree)


async def rescore(
    runs: Sequence[SearchRun],
    scorer: StepScorer,
    rules: SearchRules,
    images: Sequence[tuple[ImageData, ...]],
    *,
    batch: int = 64,
) -> list[SearchTree]:
    """Return copies of the trees whose steps are scored by another scorer, or on other images.

    `images` are those the scorer is shown; where they differ from a problem's own, the copy's
    problem names them instead, so that no cache can answer for the original picture.
    """
    trees = []
    for start in range(0, len(runs), batch):
        part = range(start, min(start + batch, len(runs)))
        jobs = [Job(unscored_copy(runs[i].tree, images[i]), images[i]) for i in part]
        await score(jobs, scorer, rules)
        trees += [job.tree for job in jobs]
    return trees


def unscored_copy(tree: SearchTree, images: Sequence[ImageData]) -> SearchTree:
    """Return the same steps without scores, as a search over the same question and `images`."""
    problem = replace(tree.problem, images=tuple(image.digest for image in images))
    copy = SearchTree(problem, tree.run_seed)
    waiting = [(tree.root_id, copy.root_id)]
    while waiting:
        old, new = waiting.pop()
        for child in tree.children(old):
            node = ids.child_id(new, child.index, child.text)
            blank = replace(child, id=node, parent=new, path_scores={}, scored_tokens=0)
            copy.merge([replace(blank, score=None, score_reason="")])
            waiting.append((child.id, node))
    return copy
