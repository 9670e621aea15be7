"""Can the reward model tell near-identical candidates apart, and does it help another policy?"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from types import MappingProxyType

import numpy as np

from examples.tiny_models.packaging import model_path
from examples.tiny_models.paper_figures import (
    FIRST_INDEX,
    RESAMPLES,
    THRESHOLD,
    known,
    reward_model,
    share_of,
    shown,
    step_scores,
    table,
)
from vprm_search.aggregate import aggregated
from vprm_search.bench.labelled_solutions import LabelledSteps
from vprm_search.bench.step_results import summarise
from vprm_search.compare.intervals import Estimate, bootstrap
from vprm_search.labelling.records import ScoredPath
from vprm_search.tiny.policy import TinyPolicy
from vprm_search.tiny.scored import scored_paths
from vprm_search.tiny.world import FAMILIES, LARGEST_RESULT, TinyProblem, generate, parse_answer
from vprm_search.types import StepScorer

SELECTIONS = ("mean", "min", "last")
BINS: Mapping[str, range] = MappingProxyType(
    {"1": range(1, 2), "2": range(2, 3), "3 or 4": range(3, 5), "5 or more": range(5, 99)}
)
"""Steps in which two solutions differ."""
CHANGES = ("a value read", "a result", "the answer alone")


def near(
    problems: int = 200, scorer: StepScorer | None = None, policy: TinyPolicy | None = None
) -> str:
    """Measure how often the right one of two solutions is chosen that are more or less alike.

    First the gold solution against copies in which one number differs and nothing else; then the
    policy's own solutions of one problem, a right and a wrong one, by the steps that differ. A tie
    counts one half.

    Args:
        problems: of each family.
        scorer: a reward model of the world. Default: the packaged one.
        policy: who writes the solutions. Default: the packaged policy, T = .7.
    """
    scorer = scorer or reward_model()
    policy = policy or TinyPolicy.from_pretrained(model_path("policy"))
    tasks = _draw(problems)
    pairs = list(_sampled_pairs(scored_paths(tasks, policy, scorer, name="policy", samples=8)))
    sampled = []
    for name, steps in BINS.items():
        chosen = [(owner, wins) for owner, differ, wins in pairs if differ in steps]
        sampled.append([name, str(len(chosen)), *_won(chosen)])
    head = [f"`{name}`, %" for name in SELECTIONS]
    return "\n\n".join(
        [
            f"{problems} problems of each family. One number changed:",
            table(["what differs", "steps", "pairs", *head], _changed_rows(scorer, tasks)),
            "Two solutions of the policy (T = .7, 8 of a problem), one right and one wrong:",
            table(["steps that differ", "pairs", *head], sampled),
        ]
    )


def one_number(problem: TinyProblem, change: str, rng: random.Random) -> list[str]:
    """Return the gold solution with one number changed and all others as they were.

    Args:
        problem: the problem.
        change: one of `CHANGES`.
        rng: draws the place and the number.
    """
    steps = list(problem.steps)
    if change == CHANGES[2]:
        place, mark = len(steps) - 1, "Answer: "
    else:  # a value is read first and before every calculation
        places = [0, *range(1, len(steps), 2)] if change == CHANGES[0] else range(2, len(steps), 2)
        place, mark = rng.choice(places), "= "
    before, number, after = _number_behind(steps[place], mark)
    largest = 9 if change == CHANGES[0] else LARGEST_RESULT
    smallest = 1 if change == CHANGES[0] else 0
    close = [n for n in (number - 2, number - 1, number + 1, number + 2)
             if smallest <= n <= largest]  # fmt: skip
    steps[place] = f"{before}{rng.choice(close)}{after}"
    return steps


def _number_behind(step: str, mark: str) -> tuple[str, int, str]:
    start = step.index(mark) + len(mark)
    digits = len(step[start:]) - len(step[start:].lstrip("0123456789"))
    return step[:start], int(step[start : start + digits]), step[start + digits :]


def _changed_rows(scorer: StepScorer, tasks: Sequence[TinyProblem]) -> list[list[str]]:
    rng = random.Random("paper|near")
    solutions: list[tuple[TinyProblem, Sequence[str]]] = [(task, task.steps) for task in tasks]
    for change in CHANGES:
        solutions += [(task, one_number(task, change, rng)) for task in tasks]
    scores = step_scores(scorer, solutions)
    gold = scores[: len(tasks)]
    rows = []
    for number, change in enumerate(CHANGES, start=1):
        changed = scores[number * len(tasks) : (number + 1) * len(tasks)]
        for low, high in ((5, 7), (9, 11)):
            won = [
                (task.id, _wins(right, wrong))
                for task, right, wrong in zip(tasks, gold, changed, strict=True)
                if low <= len(task.steps) <= high
            ]
            rows.append([change, f"{low} or {high}", str(len(won)), *_won(won)])
    return rows


def _sampled_pairs(
    paths: Sequence[ScoredPath],
) -> Iterator[tuple[str, int, tuple[float, ...]]]:
    """Yield problem, steps that differ and what each selection says, for right and wrong ones."""
    for owner, own in _by_problem(paths).items():
        distinct = {tuple(step.text for step in path.steps): path for path in own}
        right = [path for path in distinct.values() if path.correct]
        wrong = [path for path in distinct.values() if path.correct is False]
        for one, other in product(right, wrong):
            texts = [step.text for step in one.steps], [step.text for step in other.steps]
            same = sum(a == b for a, b in zip(*texts, strict=False))
            yield owner, max(map(len, texts)) - same, _wins(_scores(one), _scores(other))


def _wins(right: Sequence[float], wrong: Sequence[float]) -> tuple[float, ...]:
    both = [(aggregated(name, right), aggregated(name, wrong)) for name in SELECTIONS]
    return tuple(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in both)


def _won(rows: Sequence[tuple[str, Sequence[float]]]) -> list[str]:
    """Return how often each selection was right, with intervals from resampled problems."""
    if not rows:
        return ["–"] * len(SELECTIONS)
    owners = {owner: place for place, owner in enumerate(dict.fromkeys(row[0] for row in rows))}
    counts = np.zeros((len(owners), len(SELECTIONS) + 1))
    for owner, wins in rows:
        counts[owners[owner]] += [*wins, 1.0]
    return [shown(share_of(counts, n, len(SELECTIONS))) for n in range(len(SELECTIONS))]


# --- another policy ------------------------------------------------------------------------------

POLICIES = ("policy", "policy_strong")


def policies(problems: int = 200, scorer: StepScorer | None = None, samples: int = 8) -> str:
    """Measure the same reward model on the solutions of two policies.

    Its Monte Carlo labels are of solutions of the first one. Majority: ties are shared out.

    Args:
        problems: of each family; both policies solve the same ones.
        scorer: a reward model of the world. Default: the packaged one.
        samples: solutions of a problem, T = .7.
    """
    scorer = scorer or reward_model()
    tasks = _draw(problems)
    outcomes, steps = [], []
    for name in POLICIES:
        policy = TinyPolicy.from_pretrained(model_path(name))
        paths = scored_paths(tasks, policy, scorer, name=name, samples=samples)
        groups = [_by_problem(paths)[task.id] for task in tasks]
        alone = [sum(bool(path.correct) for path in own) / len(own) for own in groups]
        voted = [majority(own, task.answer) for own, task in zip(groups, tasks, strict=True)]
        best = [best_by_mean(own) for own in groups]
        some = [float(any(path.correct for path in own)) for own in groups]
        gains = [[a - b for a, b in zip(best, base, strict=True)] for base in (alone, voted)]
        outcomes.append([name, *(shown(bootstrap(x)) for x in (alone, voted, best)),
                         *(shown(bootstrap(x), "+") for x in gains),
                         shown(bootstrap(some))])  # fmt: skip
        steps.append([name, *_step_figures(paths)])
    return "\n\n".join(
        [
            f"{problems} problems of each family, {samples} solutions of each, T = .7.",
            table(
                ["policy", "alone", f"majority of {samples}", f"PRM best of {samples} (mean)",
                 "PRM − alone", "PRM − majority", "any right"],
                outcomes,
            ),
            table(
                ["policy", "steps", "wrong", "macro F1", "AUROC", "first wrong step",
                 "right ones passed"],
                steps,
            ),
        ]
    )  # fmt: skip


def majority(paths: Sequence[ScoredPath], answer: str) -> float:
    """Return whether the most frequent answer is right; a tie is shared out."""
    votes = Counter(said for path in paths if (said := parse_answer(path.steps[-1].text)))
    leaders = [said for said, count in votes.items() if count == max(votes.values())]
    return float(answer in leaders) / max(1, len(leaders))


def best_by_mean(paths: Sequence[ScoredPath]) -> float:
    """Return whether the solution with the highest mean score is right; the first of equal ones."""
    finished = [path for path in paths if path.correct is not None]
    best = max(finished, key=lambda path: aggregated("mean", _scores(path)), default=None)
    return float(best is not None and bool(best.correct))


def _step_figures(paths: Sequence[ScoredPath]) -> list[str]:
    solutions = [
        LabelledSteps(
            row=number,
            id=str(number),
            question=path.problem,
            steps=tuple(step.text for step in path.steps),
            labels=tuple(1 if step.label else -1 for step in path.steps),
            source="",
        )
        for number, path in enumerate(paths, start=1)
    ]
    told = summarise(
        solutions, [_scores(p) for p in paths], thresholds=(THRESHOLD,), resamples=RESAMPLES
    )
    (at,) = told["thresholds"]
    low, high = at["interval"]["pooled"]
    wrong = told["labels"]["wrong"] / told["steps"]
    first = at["first_error"]
    return [
        str(told["steps"]),
        f"{100 * wrong:.1f} %",
        shown(Estimate(at["pooled"], low, high, told["questions"])),
        f"{told['auroc']['pooled']:.3f}",
        f"{100 * first['erroneous']:.1f}",
        f"{100 * first['correct']:.1f}",
    ]


# --- both ----------------------------------------------------------------------------------------


def _draw(problems: int) -> list[TinyProblem]:
    return [
        generate(family, "test", FIRST_INDEX + number)
        for family in FAMILIES
        for number in range(problems)
    ]


def _by_problem(paths: Sequence[ScoredPath]) -> dict[str, list[ScoredPath]]:
    found: dict[str, list[ScoredPath]] = {}
    for path in paths:
        found.setdefault(path.problem, []).append(path)
    return found


def _scores(path: ScoredPath) -> list[float]:
    return [known(step.score) for step in path.steps]
