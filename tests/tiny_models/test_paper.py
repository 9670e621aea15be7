"""The checks of the paper's choices, with a scorer that knows the truth, and by plain counting."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from examples.tiny_models import paper_merging
from examples.tiny_models.__main__ import main
from examples.tiny_models.paper_candidates import (
    CHANGES,
    best_by_mean,
    majority,
    near,
    one_number,
    policies,
)
from examples.tiny_models.paper_figures import FIRST_INDEX, THRESHOLD
from examples.tiny_models.paper_merging import LENGTHS, longer, merging, solution_counts
from vprm_search.images.normalise import normalise_image
from vprm_search.labelling.records import ScoredPath, ScoredStep
from vprm_search.tiny.world import (
    FAMILIES,
    TinyProblem,
    exact_labels,
    generate,
    parse_answer,
    render,
)
from vprm_search.types import ScoreRequest, ScoreResult, StepScore

PAGE = Path(__file__).parents[2] / "docs" / "paper.md"


class Truth:
    """Scores .9 while everything so far is right, else .1, also of steps that were merged."""

    def __init__(self, problems: Sequence[TinyProblem]) -> None:
        self._known = {
            (problem.question, normalise_image(render(problem)).digest): problem
            for problem in problems
        }

    async def score(self, requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
        return [ScoreResult(tuple(map(StepScore, self._scores(r)))) for r in requests]

    def _scores(self, request: ScoreRequest) -> list[float]:
        problem = self._known[request.problem.question, request.images[0].digest]
        pieces = [step.split("\n\n") for step in request.steps]
        right = exact_labels(problem, [text for piece in pieces for text in piece])
        ends = accumulate(len(piece) for piece in pieces)
        return [0.9 if right[end - 1] else 0.1 for end in ends]


def rows(text: str) -> list[list[str]]:
    """The cells of all tables, headings left out."""
    lines = [line for line in text.splitlines() if line.startswith("| ") and "---" not in line]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def share(cell: str) -> float:
    return float(cell.split(" [")[0])


def shares(cells: Sequence[str]) -> set[float]:
    """The figures of cells that have one."""
    return {share(cell) for cell in cells if cell != "–"}


# --- merging -------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(st.integers(0, 500), st.sampled_from((9, 11, 13, 17, 25)))
def test_longer_problems_go_on_where_they_ended(index: int, steps: int) -> None:
    problem = generate("tiles-long", "test", index)
    made = longer(problem, steps)
    assert len(made.steps) == steps
    both = min(steps, len(problem.steps)) - 1
    assert made.steps[:both] == problem.steps[:both]
    assert longer(problem, steps) == made
    assert all(0 <= int(step.rsplit(" = ")[1].split(".")[0]) <= 99 for step in made.steps)
    assert exact_labels(made, made.steps) == [True] * steps


def test_a_scorer_that_knows_the_truth_loses_the_place_in_a_group_and_nothing_else() -> None:
    count = 6
    known = [
        longer(generate("tiles-long", "test", FIRST_INDEX + n), length)
        for n in range(count)
        for length in LENGTHS
    ]
    found = {(row[0], row[1]): row[2:] for row in rows(merging(count, Truth(known)))[1:13]}
    for length in map(str, LENGTHS):
        given_, lowest, merged = (found[length, way] for way in paper_merging.WAYS)
        assert given_[0] == length
        assert lowest == merged  # the truth of a group is that of its last step
        assert given_[1].startswith("1.000")
        assert shares(given_[2:]) == {100.0}
        assert 50.0 <= share(merged[3]) < 100.0  # one of two steps is guessed; a last one is alone
        assert shares(merged[4:]) == {100.0}


SCORES = st.lists(st.sampled_from((0.1, 0.5, 0.9)), min_size=1, max_size=8)


@given(st.integers(0, 8), SCORES, st.integers(1, 3))
def test_counts_are_those_of_plain_counting(right: int, scores: list[float], size: int) -> None:
    steps = len(scores)
    truth = [place < right for place in range(steps)]
    groups = [range(start, min(start + size, steps)) for start in range(0, steps, size)]
    per_group = scores[: len(groups)]
    cells = solution_counts(truth, groups, per_group, groups)
    verdict = [per_group[place // size] > THRESHOLD for place in range(steps)]
    pairs = list(zip(truth, verdict, strict=True))
    kinds = ((True, True), (True, False), (False, True), (False, False))
    assert cells[:4] == [pairs.count(kind) for kind in kinds]
    said = verdict.index(False) // size if False in verdict else None
    if right >= steps:
        assert cells[4:] == [0, 0, 0, 1, said is None]
    else:
        found = said == right // size
        guesses = [place == right for place in groups[right // size]]
        chance = sum(guesses) / len(guesses) if found else 0
        assert cells[4:] == [1, chance, found, 0, 0]


def test_the_command_fills_its_section_of_a_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "paper.md"
    page.write_text("before\n<!-- merging:begin -->\nold\n<!-- merging:end -->\nafter\n")
    with pytest.raises(SystemExit) as ended:
        main(["paper", "merging", "--problems", "2", "--page", str(page)])
    assert ended.value.code == 0
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert rows(text) == rows(capsys.readouterr().out)
    assert len(rows(text)) == 1 + 3 * len(LENGTHS) + 1 + 2 * len(LENGTHS)


# --- near-identical candidates, another policy ---------------------------------------------------


@settings(max_examples=50)
@given(st.sampled_from(FAMILIES), st.integers(0, 500), st.sampled_from(CHANGES), st.randoms())
def test_one_number_differs_and_nothing_else(
    family: str, index: int, change: str, rng: random.Random
) -> None:
    problem = generate(family, "test", index)
    changed = one_number(problem, change, rng)
    gold, made = problem.solution, "\n\n".join(changed)
    assert re.sub(r"\d+", "#", gold) == re.sub(r"\d+", "#", made)
    numbers = zip(re.findall(r"\d+", gold), re.findall(r"\d+", made), strict=True)
    ((before, after),) = [pair for pair in numbers if pair[0] != pair[1]]
    assert 1 <= abs(int(before) - int(after)) <= 2
    (place,) = [n for n, (a, b) in enumerate(zip(problem.steps, changed, strict=True)) if a != b]
    assert (parse_answer(made) != problem.answer) is (change == CHANGES[2])
    assert (re.match(r"Step \d+: [a-z]+ =", changed[place]) is not None) is (change == CHANGES[0])


def path(answer: str, right: str, *scores: float) -> ScoredPath:
    texts = [f"Step {n}: 1 + 1 = 2." for n in range(1, len(scores))] + [f"So. Answer: {answer}"]
    steps = tuple(ScoredStep(t, s, None) for t, s in zip(texts, scores, strict=True))
    return ScoredPath("p", "policy", "prm", steps, answer == right)


def test_choosing_among_solutions() -> None:
    own = [path("1", "2", 0.9, 0.1), path("2", "2", 0.6, 0.5), path("1", "2", 0.2, 0.2)]
    assert majority(own, "2") == 0.0
    assert majority(own[:2], "2") == 0.5  # a tie is shared out
    assert best_by_mean(own) == 1.0
    assert best_by_mean([path("1", "2", 0.6, 0.5), own[1]]) == 0.0  # the first of equal ones


def test_a_scorer_that_knows_the_truth_always_takes_the_right_candidate() -> None:
    known = [generate(family, "test", FIRST_INDEX + n) for family in FAMILIES for n in range(3)]
    found = rows(near(3, Truth(known)))
    changed, sampled = found[:7], found[7:]
    assert {share(cell) for row in changed[1:] for cell in row[3:]} == {100.0}
    assert sum(int(row[1]) for row in sampled[1:]) > 0
    told = rows(policies(3, Truth(known), samples=4))
    for row in (told[1], told[2]):
        alone, voted, best, some = (share(row[n]) for n in (1, 2, 3, 6))
        assert alone <= best <= some
        assert share(row[5]) == pytest.approx(best - voted, abs=0.11)
    for row in told[4:]:
        assert row[3].startswith("100.0")
        assert row[4:] == ["1.000", "100.0", "100.0"]


def test_every_command_on_the_page_has_its_figures() -> None:
    text = PAGE.read_text(encoding="utf-8")
    studies = re.findall(r"^python -m examples.tiny_models paper (\w+)", text, re.MULTILINE)
    assert {"merging", "near", "policies"} <= set(studies)
    for study in studies:
        section = text.split(f"<!-- {study}:begin -->")[1].split(f"<!-- {study}:end -->")[0]
        assert len(rows(section)) > 4
