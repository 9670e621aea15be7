"""Scored paths of the tiny world with exact labels: what its reward model is calibrated on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence

from vprm_search.graph.parts import SearchRules
from vprm_search.graph.run import SearchRun, search_many
from vprm_search.images.normalise import normalise_image
from vprm_search.labelling.monte_carlo import LabelTask
from vprm_search.labelling.records import ScoredPath, ScoredStep
from vprm_search.search import BestOfN, BestScore
from vprm_search.steps import split_steps
from vprm_search.tiny.world import TinyProblem, exact_labels, generate, parse_answer, render
from vprm_search.tree import SearchTree
from vprm_search.types import NodeRecord, Policy, Problem, StepScorer


def problem_of(record_id: str) -> TinyProblem:
    """Return the problem that a record is about."""
    family, split, index = record_id.split("/")
    return generate(family, split, int(index))


def label_task(problem: TinyProblem) -> LabelTask:
    """Return the problem as a task of the labelling pipeline, its picture rendered."""
    image = normalise_image(render(problem))
    question = Problem(problem.question, (image.digest,))
    return LabelTask(problem.id, question, problem.answer, (image,))


def sample_leaves(tree: SearchTree) -> list[NodeRecord]:
    """Return the last node of every sampled whole solution, in the order of the samples."""
    leaves = []
    for sample in tree.children(tree.root_id):
        record = sample
        while below := tree.children(record.id):
            record = below[0]
        leaves.append(record)
    return leaves


def scored_paths(
    problems: Sequence[TinyProblem],
    policy: Policy,
    scorer: StepScorer,
    *,
    name: str,
    samples: int = 4,
    run_seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[ScoredPath]:
    """Sample `samples` whole solutions per problem, score them, and label each step exactly.

    A step is right while it and all steps before it are; a path is correct if it ended itself with
    the right answer. `name` is the policy's name in the paths.
    """
    tasks = [label_task(problem) for problem in problems]
    rules = SearchRules(BestOfN(samples), BestScore(), extract=parse_answer, split=split_steps)
    runs = asyncio.run(
        search_many(
            [(task.problem, task.images) for task in tasks],
            policy,
            scorer,
            rules,
            run_seed=run_seed,
            progress=progress,
        )
    )
    identity = str(getattr(scorer, "identity", ""))
    return [
        path
        for problem, run in zip(problems, runs, strict=True)
        for path in _paths(problem, run, name, identity)
    ]


def _paths(problem: TinyProblem, run: SearchRun, name: str, identity: str) -> Iterator[ScoredPath]:
    for leaf in sample_leaves(run.tree):
        if leaf.status == "failed":
            continue
        texts = run.tree.steps(leaf.id)
        triples = zip(
            texts, run.tree.step_scores(leaf.id), exact_labels(problem, texts), strict=True
        )
        steps = tuple(ScoredStep(text, score, label) for text, score, label in triples)
        correct = leaf.answer == problem.answer if leaf.status == "finished" else None
        yield ScoredPath(problem.id, name, identity, steps, correct)
