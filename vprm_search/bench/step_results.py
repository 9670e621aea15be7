"""From step scores and labels to what the benchmarks publish.

Neutral steps are dropped. A step is said to be right if its score is strictly above the threshold;
one without a score counts as the wrong verdict, whatever its label is. Macro F1 is the mean of the
F1 of right steps and that of wrong ones, each 0 where nothing is hit. Intervals come from
resampling whole questions: one question has several solutions, and a solution many steps.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vprm_search.bench.labelled_solutions import LabelledSteps
from vprm_search.compare.intervals import resampled_means
from vprm_search.errors import ConfigError

THRESHOLDS = (0.5, 0.8, 0.85)
"""Of P('+'): .5; .8, of VisualPRM's own code; .85, of a third party that met the paper's figure."""

Scores = Sequence[float | None]
_CELLS = 4  # right said right, right said wrong, wrong said right, wrong said wrong
Counts = NDArray[np.float64]
"""`[…, 4]`: the four cells of a confusion matrix; they need not be whole."""


@dataclass(frozen=True, slots=True)
class StepTable:
    """All labelled steps, one after the other.

    Args:
        right: `[steps]` whether the step is right.
        score: `[steps]` its score, NaN if it has none.
        place: `[steps]` its place among all steps of its solution, from 0.
        source: `[steps]` the number of its source in `sources`.
        question: `[steps]` the number of its question.
        sources: the sources' names.
    """

    right: NDArray[np.bool_]
    score: NDArray[np.float64]
    place: NDArray[np.int64]
    source: NDArray[np.int64]
    question: NDArray[np.int64]
    sources: tuple[str, ...]

    @classmethod
    def of(cls, solutions: Sequence[LabelledSteps], scores: Sequence[Scores]) -> StepTable:
        """Put solutions and the scores of their steps into one table."""
        sources = tuple(dict.fromkeys(solution.source for solution in solutions))
        questions: dict[tuple[str, ...], int] = {}
        rows: list[tuple[bool, float, int, int, int]] = []
        for solution, values in zip(solutions, scores, strict=True):
            asked = questions.setdefault(solution.asked, len(questions))
            number = sources.index(solution.source)
            for place, (label, value) in enumerate(zip(solution.labels, values, strict=True)):
                if label:
                    known = float("nan") if value is None else value
                    rows.append((label > 0, known, place, number, asked))
        columns = list(zip(*rows, strict=True)) if rows else [()] * 5
        right, score, place_, source, question = columns
        return cls(
            np.array(right, dtype=bool),
            np.array(score, dtype=np.float64),
            np.array(place_, dtype=np.int64),
            np.array(source, dtype=np.int64),
            np.array(question, dtype=np.int64),
            sources,
        )

    def only(self, keep: NDArray[np.bool_]) -> StepTable:
        """Return the steps for which `keep` is true."""
        return StepTable(
            self.right[keep],
            self.score[keep],
            self.place[keep],
            self.source[keep],
            self.question[keep],
            self.sources,
        )

    def said_right(self, threshold: float) -> NDArray[np.bool_]:
        """Return the verdicts at a threshold; a step without a score gets the wrong one."""
        return np.where(np.isnan(self.score), ~self.right, self.score > threshold)

    def counts(self, said: NDArray[np.bool_] | NDArray[np.float64]) -> Counts:
        """Return the confusion `[questions, sources, 4]` of verdicts, or of chances of a '+'."""
        chance = said.astype(np.float64)
        cells = np.stack(
            [self.right * chance, self.right * (1 - chance),
             ~self.right * chance, ~self.right * (1 - chance)], axis=1
        )  # fmt: skip
        shape = (int(self.question.max(initial=-1)) + 1, len(self.sources), _CELLS)
        total: Counts = np.zeros(shape)
        np.add.at(total, (self.question, self.source), cells)
        return total


def f1_scores(counts: Counts) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return F1 of right steps and F1 of wrong steps, of a confusion `[…, 4]`."""
    hit, lost, false, rejected = np.moveaxis(counts, -1, 0)

    def f1(true: NDArray[np.float64]) -> NDArray[np.float64]:
        whole = 2 * true + lost + false
        share: NDArray[np.float64] = np.zeros_like(whole)
        np.divide(2 * true, whole, out=share, where=whole > 0)
        return share

    return f1(hit), f1(rejected)


def macro(counts: Counts) -> NDArray[np.float64]:
    """Return macro F1 of a confusion `[…, 4]`."""
    right, wrong = f1_scores(counts)
    return (right + wrong) / 2


def figures(counts: Counts) -> dict[str, Any]:
    """Return macro F1 per source, pooled, and their two means, of `[questions, sources, 4]`.

    "pooled" is the headline: all steps together, as the paper's overall figures are. "mean" is the
    mean of the sources, "weighted" the mean weighted by their steps.
    """
    by_source = counts.sum(axis=0)
    each, steps = macro(by_source), by_source.sum(axis=-1)
    right, wrong = f1_scores(by_source.sum(axis=0))
    return {
        "sources": [float(value) for value in each],
        "pooled": float(macro(by_source.sum(axis=0))),
        "mean": float(each.mean()),
        "weighted": float((each * steps).sum() / max(1.0, steps.sum())),
        "f1_right": float(right),
        "f1_wrong": float(wrong),
        **_precision_and_recall(by_source.sum(axis=0)),
    }


def _precision_and_recall(counts: Counts) -> dict[str, float]:
    hit, lost, false, rejected = (float(cell) for cell in counts)
    return {
        "precision_right": hit / max(1e-12, hit + false),
        "recall_right": hit / max(1e-12, hit + lost),
        "precision_wrong": rejected / max(1e-12, rejected + lost),
        "recall_wrong": rejected / max(1e-12, rejected + false),
    }


def intervals(counts: Counts, *, seed: int = 0, resamples: int = 2000) -> dict[str, Any]:
    """Return 95 % intervals of macro F1, pooled and per source, from resampled questions."""
    questions, sources, _ = counts.shape
    means = resampled_means(counts.reshape(questions, -1), resamples=resamples, seed=seed)
    drawn = means.reshape(resamples, sources, _CELLS)
    values = np.concatenate([macro(drawn.sum(axis=1))[:, None], macro(drawn)], axis=1)
    low, high = np.quantile(values, [0.025, 0.975], axis=0)
    pairs = [[float(a), float(b)] for a, b in zip(low, high, strict=True)]
    return {"pooled": pairs[0], "sources": pairs[1:]}


def auc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Return the area under the ROC curve; ties count one half. NaN with only one class.

    The Mann-Whitney form: the probability that a right step scores above a wrong one.
    """
    right = np.asarray(labels, dtype=bool)
    values = np.asarray(scores, dtype=np.float64)
    positives, negatives = int(right.sum()), int((~right).sum())
    if not positives or not negatives:
        return float("nan")
    ranks = _average_ranks(values)
    return float((ranks[right].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def _average_ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    average: NDArray[np.float64] = (last - (counts - 1) / 2)[inverse]
    return average


# --- trivial scorers -----------------------------------------------------------------------------


def baselines(table: StepTable) -> dict[str, dict[str, Any]]:
    """Return the figures of scorers that read nothing; coins by their expected counts.

    "position only" knows how often a step at this place is right in other questions, and calls it
    right above one half; its AUROC says how far the place alone ranks steps.
    """
    size = len(table.right)
    rates = np.array(
        [table.right[table.source == n].mean() if (table.source == n).any() else 0.0
         for n in range(len(table.sources))]
    )  # fmt: skip
    by_place = _rate_at_place(table)
    said: Mapping[str, NDArray[np.float64]] = {
        "always '+'": np.ones(size),
        "always '-'": np.zeros(size),
        "fair coin": np.full(size, 0.5),
        "coin at the source's rate": rates[table.source],
        "position only": (by_place > 0.5).astype(np.float64),
    }
    found = {name: figures(table.counts(chances)) for name, chances in said.items()}
    found["position only"]["auroc"] = auc(table.right, by_place)
    return found


def _rate_at_place(table: StepTable) -> NDArray[np.float64]:
    """Return how often steps at each step's place are right in all other questions."""
    total: dict[int, list[float]] = defaultdict(lambda: [1.0, 2.0])  # one right and one wrong more
    own: dict[tuple[int, int], list[float]] = defaultdict(lambda: [0.0, 0.0])
    rows = list(zip(table.place.tolist(), table.question.tolist(), table.right.tolist(),
                    strict=True))  # fmt: skip
    for place, question, right in rows:
        for pair in (total[place], own[place, question]):
            pair[0] += right
            pair[1] += 1
    return np.array(
        [(total[place][0] - own[place, question][0]) / (total[place][1] - own[place, question][1])
         for place, question, _ in rows]
    )  # fmt: skip


# --- thresholds, and the first error -------------------------------------------------------------


def best_threshold(table: StepTable, source: str) -> tuple[float, StepTable]:
    """Return the threshold of the best macro F1 on one source, and the steps of all others.

    Raises `ConfigError` if there is no such source, or no other.
    """
    if source not in table.sources or len(table.sources) < 2:
        raise ConfigError(f"no source {source!r} beside others; there are {list(table.sources)}")
    own = table.source == table.sources.index(source)
    tuned = table.only(own)
    values = np.unique(tuned.score[~np.isnan(tuned.score)])
    tried = [0.0, *((values[1:] + values[:-1]) / 2), 1.0] if len(values) > 1 else [0.5]
    scores = [float(macro(tuned.counts(tuned.said_right(t)).sum(axis=(0, 1)))) for t in tried]
    return float(tried[int(np.argmax(scores))]), table.only(~own)


def first_errors(
    solutions: Sequence[LabelledSteps], scores: Sequence[Scores], threshold: float
) -> dict[str, float]:
    """Return how well the first wrong step is found (ProcessBench: Zheng et al., 2024).

    Said is the first step that is not above the threshold, neutral ones left out. A solution is
    found if that is the first wrong one, or if there is none and none is said. F1 is the harmonic
    mean of the accuracies on solutions with and without an error.
    """
    found: dict[bool, list[bool]] = {True: [], False: []}
    for solution, values in zip(solutions, scores, strict=True):
        said = next((place for place, (label, value) in enumerate(
            zip(solution.labels, values, strict=True))
            if label and (value is None or value <= threshold)), -1)  # fmt: skip
        found[solution.first_error >= 0].append(said == solution.first_error)
    with_error, without = (
        sum(found[kind]) / len(found[kind]) if found[kind] else 0.0 for kind in (True, False)
    )
    both = with_error + without
    return {
        "erroneous": with_error,
        "correct": without,
        "f1": 2 * with_error * without / both if both else 0.0,
    }


def summarise(
    solutions: Sequence[LabelledSteps],
    scores: Sequence[Scores],
    *,
    thresholds: Sequence[float] = THRESHOLDS,
    tune_on: str | None = None,
    seed: int = 0,
    resamples: int = 2000,
) -> dict[str, Any]:
    """Return everything that is told of a run, as plain JSON.

    Args:
        solutions: what was scored.
        scores: `[solutions][steps]`, None for a step without a score.
        thresholds: the first one is the headline's.
        tune_on: source whose best threshold is applied to all others; None tunes nothing.
        seed: of the bootstrap.
        resamples: of questions.

    Raises:
        ConfigError: no labelled step, or no such source.
    """
    table = StepTable.of(solutions, scores)
    if not len(table.right):
        raise ConfigError("no step has a label: there is nothing to measure")
    scored = ~np.isnan(table.score)

    def area(keep: NDArray[np.bool_]) -> float | None:
        value = auc(table.right[keep], table.score[keep])
        return None if np.isnan(value) else value

    at: Callable[[float], dict[str, Any]] = lambda t: {  # noqa: E731
        "threshold": t,
        **figures(table.counts(table.said_right(t))),
        "interval": intervals(table.counts(table.said_right(t)), seed=seed, resamples=resamples),
        "first_error": first_errors(solutions, scores, t),
    }
    told = {
        "sources": list(table.sources),
        "solutions": len(solutions),
        "questions": int(table.question.max()) + 1,
        "steps": sum(len(solution.steps) for solution in solutions),
        "labels": {
            "right": int(table.right.sum()),
            "wrong": int((~table.right).sum()),
            "neutral": sum(label == 0 for s in solutions for label in s.labels),
        },
        "unscored": int((~scored).sum()),
        "thresholds": [at(threshold) for threshold in thresholds],
        "auroc": {
            "pooled": area(scored),
            "sources": [area(scored & (table.source == n)) for n in range(len(table.sources))],
        },
        "baselines": baselines(table),
    }
    if tune_on is not None:
        threshold, others = best_threshold(table, tune_on)
        measured = float(macro(others.counts(others.said_right(threshold)).sum(axis=(0, 1))))
        told["tuned"] = {"on": tune_on, "threshold": threshold, "pooled_of_others": measured}
    return told
