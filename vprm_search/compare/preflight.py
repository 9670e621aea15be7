"""Is a scorer any help with a policy? Told without labels, before a search is trusted.

Some problems are answered several times, and the scores of the whole solutions are looked at. A
scorer that sees the truth leaves traces that need no right answers: the truth about a path lasts
from step to step, paths that come to one answer share it, and where a policy is mostly right the
paths of its frequent answer score higher. From these traces comes an advice: search by the scores,
weigh votes by them, or leave them alone. How often it is wrong: docs/preflight.md.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from vprm_search import ids
from vprm_search.answers import answer_classes, choices_of, extract_answer
from vprm_search.calibration.maps import logit
from vprm_search.compare.report import many
from vprm_search.compare.signals import ScoredSolution, Signal, centred_levels, measured_signals
from vprm_search.errors import ConfigError, PolicyError, RecordError, ScorerError, VprmError
from vprm_search.graph.blocking import blocking
from vprm_search.graph.loop import Job
from vprm_search.graph.parts import SearchRules, as_policy, check_part
from vprm_search.graph.run import read_question, run_jobs
from vprm_search.records import VersionedFile
from vprm_search.search import Advice, BestOfN, BestScore
from vprm_search.steps import Splitter, split_solution
from vprm_search.tree import SearchTree
from vprm_search.types import ImageData, NodeRecord, Problem, StepScorer

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel

    from vprm_search.graph.run import Question
    from vprm_search.types import Policy

Pictured = tuple[Problem, tuple[ImageData, ...]]

FEWEST_PROBLEMS = 5
_BATCH = 4

_PREFERENCE = 0.6  # below it a search gains nothing, if it is not chance
_LEAD = 0.25  # from here on the frequent answer is worth more than its like by chance


# --- the rule ------------------------------------------------------------------------------------


def advised(signals: Mapping[str, Signal]) -> tuple[Advice, str]:
    """Return the advice and why.

    What counts is whether the scorer surely prefers the policy's frequent answer: only this is seen
    anew in every problem, while errors of a scorer that come with a text make its scores correlate
    along a path, last, and be alike under one answer as the truth does. Where no answer leads, the
    frequent one is chance and the majority nothing to lose; there the traces along the path decide.
    """
    prefers = signals["preference"]
    if prefers.low > 0.5 and prefers.value >= _PREFERENCE:
        if signals["correlation"].low > 0:
            return "search", (
                "The scorer prefers what the policy mostly answers, and a step's score says "
                "something about the next one's: let the scores guide the search."
            )
        return "vote", (
            "The last scores prefer what the policy mostly answers, but a step's score says "
            "nothing about the next one's: weigh the votes of whole solutions by their last scores."
        )
    if signals["lead"].value < _LEAD:
        if signals["lasting"].low > 0 or signals["likeness"].low > 0:
            return "search", (
                "No answer leads by much, so a majority is worth little, and the scores of a path "
                "hang together as they do if they know right from wrong: search."
            )
        return "majority", (
            "No answer leads by much, and the scores of a path do not hang together either: they "
            "are no help. Take the most frequent answer, or another policy."
        )
    if prefers.high < 0.5:
        return "majority", (
            "The scorer speaks against what the policy mostly answers: it prefers wrong paths, or "
            "the policy is mostly wrong. Take the most frequent answer; some labelled problems "
            "(vprm-search compare) would tell which it is."
        )
    if prefers.value >= _PREFERENCE:
        return "majority", (
            "The scorer seems to prefer what the policy mostly answers, but with so few problems "
            "that may be chance: ask more problems. Until then, take the most frequent answer."
        )
    return "majority", (
        "No sign that the scores know right from wrong: take the most frequent answer and leave "
        "the scores alone."
    )


# --- warnings ------------------------------------------------------------------------------------


def warnings_of(
    solutions: Sequence[Sequence[ScoredSolution]], signals: Mapping[str, Signal]
) -> tuple[str, ...]:
    """Return what is wrong with the scores or the solutions `[problems][solutions]`.

    A scorer that says '+' to everything, and one that is saturated on early steps, are the failures
    that VisualPRM's authors report of other reward models (arXiv 2503.10291 §4).
    """
    distinct = [s for problem in solutions for s in problem]
    logits = [value for s in distinct for value in s.logits]
    found = []
    positive = fmean(value > 0 for value in logits)
    if max(positive, 1 - positive) >= 0.95:
        sign = "+" if positive >= 0.95 else "-"
        found.append(
            f"The scorer says '{sign}' to {100 * max(positive, 1 - positive):.0f} % of the steps "
            f"(median P('+') {_probability(median(logits)):.3f}): only the order of its scores can "
            "tell anything; a threshold (verifier, pruning) at .5 tells nothing."
        )
    found += _early(distinct)
    found += _alike(solutions, signals)
    return tuple(found)


def _early(distinct: Sequence[ScoredSolution]) -> list[str]:
    """Tell of scores that are high on early steps, whatever comes."""
    long = [s for s in distinct if len(s.logits) >= 3]
    if not long:
        return []
    first, last = (median(s.logits[place] for s in long) for place in (0, -1))
    if first < logit(0.9) or first - last < 1:
        return []
    return [
        f"Early steps score high (median P('+') {_probability(first):.3f}, at the end "
        f"{_probability(last):.3f}): paths of different lengths cannot be compared by these "
        "scores, as BestFirst and thresholds do."
    ]


def _alike(
    solutions: Sequence[Sequence[ScoredSolution]], signals: Mapping[str, Signal]
) -> list[str]:
    """Tell of solutions or scores that are too much alike to tell them apart."""
    found = []
    samples = sum(s.count for problem in solutions for s in problem)
    share = sum(map(len, solutions)) / samples
    if share < 0.5:
        found.append(
            f"The policy repeats itself: {100 * share:.0f} % of its solutions are distinct; raise "
            "its temperature, or sample fewer."
        )
    if signals["lead"].value >= 0.9:
        found.append(
            "Nearly all solutions agree: these problems leave nothing to choose; check on harder "
            "ones."
        )
    spreads = [
        abs(a - b)
        for problem in solutions
        for level in centred_levels(problem)
        for a, b in pairwise(sorted(level.values()))
    ]
    if spreads and fmean(gap < 1e-4 for gap in spreads) >= 0.5:
        found.append(
            "Most steps have the same score as another candidate at their place: the scorer cannot "
            "tell them apart."
        )
    return found


def _probability(value: float) -> float:
    return 1 / (1 + math.exp(-value))


# --- the report ----------------------------------------------------------------------------------


class PreflightReport(VersionedFile):
    """What the check found. `auto` obeys its `advice`; it can be kept as a JSON file.

    Args:
        advice: what the scorer is good for: "search", "vote" or "majority".
        sentence: the advice and its reason in words.
        signals: what was measured, by name (`SIGNALS`), with 95 % intervals.
        warnings: what else is wrong with scores or solutions.
        problems: problems with at least two scored solutions.
        samples: solutions that were asked for.
        failed: of these, calls of the policy that failed.
        unscored: of these, solutions of which a step has no score.
        policy: who wrote the solutions, as far as its name is known.
        scorer: the scorer's identity, "" if it has none.
    """

    noun = "report of vprm-search preflight"
    made_by = "vprm-search preflight"

    format: Literal["vprm-search preflight"] = "vprm-search preflight"
    version: Literal[1] = 1
    advice: Advice
    sentence: str
    signals: dict[str, Signal]
    warnings: tuple[str, ...] = ()
    problems: int = Field(ge=1)
    samples: int = Field(ge=1)
    failed: int = Field(default=0, ge=0)
    unscored: int = Field(default=0, ge=0)
    policy: str = ""
    scorer: str = ""

    def save(self, path: str | Path) -> None:
        """Write the report to a JSON file."""
        Path(path).write_text(self.dumps(), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> PreflightReport:
        """Read a report from a JSON file. Raises `RecordError` for a file that is none."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RecordError(f"{path} cannot be read: {error}") from error
        return cls.loads(text, str(path))


# --- the check -----------------------------------------------------------------------------------


async def apreflight(
    policy: Policy | BaseChatModel,
    scorer: StepScorer,
    problems: Sequence[Question | Pictured],
    *,
    samples: int = 16,
    run_seed: int = 0,
    max_failed: float = 0.2,
    extract: Callable[[str], str | None] = extract_answer,
    split: str | Splitter = split_solution,
    progress: Callable[[int, int], None] | None = None,
) -> PreflightReport:
    """Ask each problem `samples` times, score the solutions, and advise how to use the scores.

    Twenty problems of the kind that will be asked are enough; right answers are not needed.

    Args:
        policy: what writes solutions: any LangChain chat model, or a `Policy`.
        scorer: what gives each step P('+').
        problems: texts, messages with their images inside (`image_message`), conversations, or
            pairs of a `Problem` and its images.
        samples: solutions per problem.
        run_seed: makes the seeds of all solutions; equal checks draw equally.
        max_failed: share of failed calls of the policy, or of unscored solutions, above which the
            check is no result.
        extract: reads the final answer out of a solution, None if there is none.
        split: cuts a whole solution into steps.
        progress: is told after each batch of problems: problems done, problems in all.

    Raises:
        ConfigError: too few problems or samples, or policy or scorer are none.
        PolicyError: too many calls of the policy failed; or it left too few different solutions.
        ScorerError: too many solutions have no score.
        VprmError: what the policy or the scorer raises.
    """
    if len(problems) < FEWEST_PROBLEMS or not 2 <= samples <= 256:
        raise ConfigError(
            f"{many(len(problems), 'problem')} with {samples} solutions each tell too little; give "
            f"at least {FEWEST_PROBLEMS} problems and between 2 and 256 solutions (20 x 16 are "
            "usual)"
        )
    check_part("scorer", scorer, StepScorer)
    jobs = [_job(problem, run_seed) for problem in problems]
    rules = SearchRules(BestOfN(samples), BestScore(), extract=extract, split=split)
    writer, runs = as_policy(policy), []
    for start in range(0, len(jobs), _BATCH):
        runs += await run_jobs(jobs[start : start + _BATCH], writer, scorer, rules)
        if progress is not None:
            progress(len(runs), len(jobs))
    found = [_read_solutions(run.tree) for run in runs]
    failures = [reason for one in found for reason in one.failures]
    unscored = [reason for one in found for reason in one.unscored]
    drawn = len(problems) * samples
    _refuse_above(max_failed, failures, drawn, PolicyError, "calls of the policy failed")
    _refuse_above(max_failed, unscored, drawn, ScorerError, "solutions have no score")
    usable = [one.solutions for one in found if len(one.solutions) > 1]
    if len(usable) < FEWEST_PROBLEMS:
        raise PolicyError(
            f"{len(usable)} of {len(problems)} problems have two different solutions, it takes "
            f"{FEWEST_PROBLEMS}: nothing can be chosen here; raise the policy's temperature, or "
            "take harder problems"
        )
    signals = measured_signals(usable)
    advice, sentence = advised(signals)
    return PreflightReport(
        advice=advice,
        sentence=sentence,
        signals=signals,
        warnings=warnings_of(usable, signals),
        problems=len(usable),
        samples=drawn,
        failed=len(failures),
        unscored=len(unscored),
        policy=str(getattr(policy, "model_name", "") or type(policy).__name__),
        scorer=str(getattr(scorer, "identity", "")),
    )


preflight = blocking(apreflight)
"""`apreflight` for synchronous code."""


def _job(problem: Question | Pictured, run_seed: int) -> Job:
    if isinstance(problem, tuple) and isinstance(problem[0], Problem):
        question, images, messages = read_question(*problem)
    else:
        question, images, messages = read_question(problem)  # type: ignore[arg-type]
    return Job(SearchTree(question, run_seed), images, messages=messages)


@dataclass(frozen=True, slots=True)
class _Read:
    """The distinct scored solutions of one problem, and why the others are none."""

    solutions: list[ScoredSolution]
    failures: list[str]
    unscored: list[str]


def _read_solutions(tree: SearchTree) -> _Read:
    """Read the sampled solutions of a tree."""
    leaves = [_end_of(tree, child) for child in tree.children(tree.root_id)]
    failures = [leaf.reason for leaf in leaves if leaf.status == "failed"]
    kept = [leaf for leaf in leaves if leaf.status != "failed"]
    answers = [leaf.answer if leaf.status == "finished" else None for leaf in kept]
    classes = answer_classes(answers, choices=choices_of(tree.problem))
    unscored = []
    known: dict[tuple[str, ...], ScoredSolution] = {}
    for leaf, answer in zip(kept, classes, strict=True):
        steps, scores = tree.steps(leaf.id), tree.step_scores(leaf.id)
        logits = tuple(logit(score) for score in scores if score is not None)
        if len(logits) < len(scores) or not scores:
            reasons = [record.score_reason for record in tree.path(leaf.id) if record.score_reason]
            unscored.append(reasons[0] if reasons else "the scorer gave no score")
        elif steps in known:
            known[steps] = replace(known[steps], count=known[steps].count + 1)
        else:
            known[steps] = ScoredSolution(_keys(steps), logits, answer)
    return _Read(list(known.values()), failures, unscored)


def _end_of(tree: SearchTree, record: NodeRecord) -> NodeRecord:
    while below := tree.children(record.id):
        record = below[0]
    return record


def _keys(steps: Sequence[str]) -> tuple[str, ...]:
    """Return a key of every beginning of the steps."""
    keys = [""]
    for step in steps:
        keys.append(ids.digest(keys[-1], step).hex())
    return tuple(keys[1:])


def _refuse_above(
    limit: float, reasons: Sequence[str], drawn: int, kind: type[VprmError], what: str
) -> None:
    """Raise `kind` if there are too many `reasons`, naming the most frequent one."""
    if len(reasons) <= limit * drawn:
        return
    reason, times = Counter(reasons).most_common(1)[0]
    raise kind(
        f"{len(reasons)} of {drawn} {what}, more than {100 * limit:g} %: the check is no result. "
        f"Most often ({times}): {reason}"
    )
