"""Many searches in step, and the same searches scored again by another scorer.

For measurements over hundreds of problems; each search runs as `run_search` would run it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from vprm_search import ids
from vprm_search.graph.loop import Job, score
from vprm_search.graph.parts import SearchRules
from vprm_search.graph.run import SearchRun, run_jobs
from vprm_search.tree import SearchTree
from vprm_search.types import ImageData, Policy, Problem, StepScorer

_NO_SCORING: dict[str, Any] = {
    "scored_tokens": 0,
    "tokens_sent": 0,
    "tokens_computed": 0,
    "images_encoded": 0,
    "forward_passes": 0.0,
}

Progress = Callable[[int, int], None]
"""Called with (searches ended, searches in all) after every batch."""


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
    """Search every problem under `rules`; `batch` problems at a time share their requests."""
    runs: list[SearchRun] = []
    for start in range(0, len(problems), batch):
        part = problems[start : start + batch]
        jobs = [Job(SearchTree(problem, run_seed), images) for problem, images in part]
        runs += await run_jobs(jobs, policy, scorer, rules)
        if progress is not None:
            progress(len(runs), len(problems))
    return runs


async def rescore(
    runs: Sequence[SearchRun],
    scorer: StepScorer,
    rules: SearchRules,
    images: Sequence[tuple[ImageData, ...]],
    *,
    first: int | None = None,
    batch: int = 64,
) -> list[SearchTree]:
    """Return copies of the trees whose steps are scored by another scorer, or on other images.

    With `first`, only the first so many candidates of each search are copied.

    `images` are those the scorer is shown; where they differ from a problem's own, the copy's
    problem names them instead, so that no cache can answer for the original picture.
    """
    trees = []
    for start in range(0, len(runs), batch):
        part = range(start, min(start + batch, len(runs)))
        jobs = [Job(unscored_copy(runs[i].tree, images[i], first), images[i]) for i in part]
        await score(jobs, scorer, rules)
        trees += [job.tree for job in jobs]
    return trees


def unscored_copy(
    tree: SearchTree, images: Sequence[ImageData], first: int | None = None
) -> SearchTree:
    """Return the same steps without scores, as a search over the same question and `images`.

    With `first`, only the root's first so many children and what is below them.
    """
    problem = replace(tree.problem, images=tuple(image.digest for image in images))
    copy = SearchTree(problem, tree.run_seed)
    waiting = [(tree.root_id, copy.root_id)]
    while waiting:
        old, new = waiting.pop()
        children = tree.children(old)
        for child in children if old != tree.root_id else children[:first]:
            node = ids.child_id(new, child.index, child.text)
            blank = replace(child, id=node, parent=new, path_scores={}, **_NO_SCORING)
            copy.merge([replace(blank, score=None, score_reason="")])
            waiting.append((child.id, node))
    return copy
