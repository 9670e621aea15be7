"""The evaluation end to end on the packaged models, and its tables against plain counting."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from examples.tiny_models.evaluate import Evaluation, Models, evaluate, make_cell, rescore
from examples.tiny_models.evaluation_report import (
    accuracy_table,
    difference,
    full_report,
    read_cells,
)
from examples.tiny_models.packaging import model_path
from examples.tiny_models.references import ExactScorer
from vprm_search.compare.report import fill_section
from vprm_search.errors import ConfigError, RecordError
from vprm_search.graph.parts import SearchRules
from vprm_search.graph.run import search_many
from vprm_search.scoring import TransformersScorer
from vprm_search.search import BestOfN, BestScore
from vprm_search.tiny.policy import TinyPolicy
from vprm_search.tiny.scored import sample_leaves
from vprm_search.tiny.world import exact_labels, parse_answer

pytestmark = pytest.mark.slow

BLIND = "prm, blank image"
CONFIG = Evaluation(
    split="validation",
    families=("tiles", "bars"),
    temperatures=(0.7,),
    problems=6,
    first_index=300,
    sizes=(2, 4),
)


@pytest.fixture(scope="module")
def policy() -> TinyPolicy:
    return TinyPolicy.from_pretrained(model_path("policy"))


@pytest.fixture(scope="module")
def models(policy: TinyPolicy) -> Models:
    def scorer(name: str) -> TransformersScorer:
        return TransformersScorer.from_pretrained(model_path(name), device="cpu")

    return Models(
        policy.at_temperature,
        {"prm": (scorer("prm"), ("mean", "product")), "orm": (scorer("orm"), ("last",))},
    )


@pytest.fixture(scope="module")
def measured(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("evaluation")
    evaluate(CONFIG, models, out, report=lambda line: None)
    return out


def test_outcomes_agree_with_each_other(measured: Path) -> None:
    for cell in read_cells(measured):
        outcomes = cell["outcomes"]
        assert {len(values) for values in outcomes.values()} == {CONFIG.problems}
        for size in CONFIG.sizes:
            best = outcomes[f"pass@{size} (any right)"]
            for name, values in outcomes.items():
                if name.endswith(f"@{size}") or f"best-of-{size} (" in name:
                    assert all(v <= b for v, b in zip(values, best, strict=True)), name
            assert outcomes[f"oracle best-of-{size} (last)"] == best
        seeing, blind = (cell["steps"][name]["auc"]["mean"] for name in ("prm", BLIND))
        assert seeing > 0.8
        assert seeing > blind + 0.1


def test_measured_cells_are_not_measured_again(measured: Path, models: Models) -> None:
    before = {path: path.stat().st_mtime_ns for path in measured.iterdir()}
    said: list[str] = []
    evaluate(CONFIG, models, measured, report=said.append)
    assert {path: path.stat().st_mtime_ns for path in measured.iterdir()} == before
    assert all("already measured" in line for line in said)


async def test_the_exact_scorer_gives_the_exact_labels(policy: TinyPolicy) -> None:
    cell = make_cell(CONFIG, "tiles", 0.7)
    truths = {task[0]: problem for task, problem in zip(cell.tasks, cell.problems, strict=True)}
    rules = SearchRules(BestOfN(3), BestScore(), extract=parse_answer)
    runs = await search_many(cell.tasks, policy, ExactScorer(truths), rules)
    images = [task[1] for task in cell.tasks]
    again = await rescore(runs, ExactScorer(truths), rules, images, first=2)
    for problem, run, copy in zip(cell.problems, runs, again, strict=True):
        assert len(sample_leaves(copy)) == 2
        for leaf, twin in zip(sample_leaves(run.tree), sample_leaves(copy), strict=False):
            labels = [float(x) for x in exact_labels(problem, run.tree.steps(leaf.id))]
            assert list(run.tree.step_scores(leaf.id)) == labels
            assert list(copy.step_scores(twin.id)) == labels


def test_tables_count_as_one_would_by_hand(tmp_path: Path) -> None:
    right = {"pass@1 of 8": [0.5, 0.25], "self-consistency@8": [1.0, 0.0]}
    beams = {f"{kind} beam {b}": [1.0, 1.0] for kind in ("prm", "tokens") for b in ("2x4", "4x4")}
    beams |= {f"prm beam {b}, weighted vote": [0.0, 1.0] for b in ("2x4", "4x4")}
    same = {"self-consistency@16": [1.0, 0.0], "prm best-of-8 (mean)": [1.0, 1.0]}
    cell = {"family": "tiles", "temperature": 0.7, "outcomes": right | beams | same, "steps": {}}
    assert difference([cell], "prm best-of-8 (mean)", "self-consistency@8").mean == 0.5
    table = accuracy_table([cell])
    assert "| **PRM best-of-N (mean)** | 100.0 [100.0, 100.0] | +50.0" in table
    assert "| policy alone (pass@1) | 37.5 [25.0, 50.0] |" in table


def test_the_report_fills_a_section_and_leaves_the_rest(measured: Path, tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text("before\n<!-- results:begin -->\nold\n<!-- results:end -->\nafter\n")
    fill_section(page, "new")
    assert page.read_text().split() == (
        ["before", "<!--", "results:begin", "-->", "new", "<!--", "results:end", "-->", "after"]
    )
    page.write_text("no marks")
    with pytest.raises(RecordError, match="marks"):
        fill_section(page, "new")
    with pytest.raises(RecordError, match="no measured cells"):
        read_cells(tmp_path)


def test_bad_configurations_are_refused() -> None:
    for options in ({"families": ("pies",)}, {"split": "dev"}, {"problems": 1}, {"sizes": ()}):
        with pytest.raises(ConfigError, match="cannot evaluate"):
            Evaluation(**options)


def test_cells_are_plain_json(measured: Path) -> None:
    for path in measured.glob("*.json"):
        json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(name))


def test_reports_need_the_sizes_they_show(measured: Path) -> None:
    cells = read_cells(measured)
    for cell in cells:  # the tables compare N = 8 and 16; rename what was measured at 2 and 4
        cell["outcomes"] = {
            name.replace("@2", "@8").replace("of-2", "of-8").replace("of 2", "of 8")
            .replace("@4", "@16").replace("of-4", "of-16").replace("of 4", "of 16"): values
            for name, values in cell["outcomes"].items()
        }  # fmt: skip
    assert "### Step scores against exact truth" in full_report(cells)
