"""`vprm-search calibrate` on the packaged models, and what its file does to `solve` and `score`."""

from __future__ import annotations

import asyncio
import io
import json
from pathlib import Path
from random import Random

import pytest
from PIL import Image

from examples.tiny_models.label import answer_is_right, label_tasks
from tests.cli.conftest import Asked, Run
from vprm_search.labelling.monte_carlo import LabelConfig, label_problems
from vprm_search.labelling.records import (
    ScoredPath,
    ScoredStep,
    read_scored_paths,
    write_scored_paths,
)
from vprm_search.scoring.wrappers import read_calibration
from vprm_search.tiny.policy import TinyPolicy
from vprm_search.tiny.weights import weights_path


@pytest.fixture
def paths(run: Run, tmp_path: Path) -> Path:
    """Scored, labelled paths of the packaged models on validation problems."""
    out = tmp_path / "paths.jsonl"
    sizes = ("--problems", "8", "--samples", "3", "--family", "bars", "--family", "tiles")
    ran = run("calibrate", "tiny", "--out", str(out), *sizes)
    assert ran.code == 0
    assert "48 paths" in ran.err
    return out


@pytest.mark.slow
def test_the_tiny_reward_model_is_calibrated_on_real_paths(
    run: Run, paths: Path, asked: Asked, tmp_path: Path
) -> None:
    out, png = tmp_path / "cal.json", tmp_path / "cal.png"
    ran = run("calibrate", "fit", "--paths", str(paths), "--out", str(out), "--png", str(png))
    assert ran.code == 0
    for word in ("ECE", "Brier", "log loss", "tiny@0.7", "before", "after"):
        assert word in ran.out
    with Image.open(io.BytesIO(png.read_bytes())) as drawn:
        assert drawn.format == "PNG"
    found = read_calibration(out).of("tiny@0.7")
    (scorer,) = {path.scorer for path in read_scored_paths(paths)}
    assert found.scorer == scorer
    solution = tmp_path / "solution.txt"
    solution.write_text(asked.problem.solution)
    told = ("score", *asked.arguments, "--solution", str(solution), "--json")
    raw = [row["score"] for row in json.loads(run(*told).out)["steps"]]
    mapped = json.loads(run(*told, "--calibration", str(out)).out)["steps"]
    assert [row["score"] for row in mapped] == [found.apply(score) for score in raw]
    assert raw != [row["score"] for row in mapped]


def test_label_records_of_the_pipeline_become_paths(run: Run, tmp_path: Path) -> None:
    records, out = tmp_path / "labels.jsonl", tmp_path / "paths.jsonl"
    policy = TinyPolicy.from_pretrained(weights_path("policy"))
    config = LabelConfig(solutions=2, continuations=2)
    tasks = label_tasks("validation", 3)
    asyncio.run(label_problems(tasks, policy, answer_is_right, records, config))
    asked_for = ("--records", str(records), "--policy", "mine", "--images", "tiny")
    ran = run("calibrate", "score", *asked_for, "--out", str(out))
    assert ran.code == 0
    found = list(read_scored_paths(out))
    assert len(found) == 6
    assert {path.policy for path in found} == {"mine"}
    assert all(step.score is not None for path in found for step in path.steps)
    empty = tmp_path / "store"
    ran = run("calibrate", "score", *asked_for[:-1], str(empty), "--out", str(out))
    assert ran.code == 1
    assert "image" in ran.err


def made_up(policy: str, slope: float, seed: int = 0) -> list[ScoredPath]:
    rng = Random(seed)
    paths = []
    for number in range(240):
        scores = [rng.random() for _ in range(3)]
        steps = [ScoredStep(f"{k}", s, rng.random() < s**slope) for k, s in enumerate(scores)]
        paths.append(ScoredPath(f"p{number}", policy, "s", tuple(steps), rng.random() < scores[2]))
    return paths


def test_every_policy_gets_its_own_calibration(run: Run, tmp_path: Path, asked: Asked) -> None:
    file, out = tmp_path / "paths.jsonl", tmp_path / "cal.json"
    write_scored_paths(file, [*made_up("weak", 3.0), *made_up("strong", 0.3)])
    fit = ("calibrate", "fit", "--paths", str(file), "--out", str(out))
    assert run(*fit, "--method", "platt").code == 0
    found = read_calibration(out)
    assert [c.policy for c in found.calibrations] == ["weak", "strong"]
    assert found.of("weak").apply(0.7) < 0.7 < found.of("strong").apply(0.7)
    assert run(*fit, "--target", "path", "--aggregate", "last").code == 0
    assert read_calibration(out).of("weak", target="path").aggregate == "last"
    pytest.importorskip("sklearn")
    assert run(*fit, "--method", "isotonic").code == 0
    ran = run("solve", *asked.arguments, "--calibration", str(out))
    assert ran.code == 1
    assert "2 calibrations of steps" in ran.err
    ran = run("solve", *asked.arguments, "--calibration", str(out), "--calibration-policy", "weak")
    assert ran.code == 1  # it was fitted on another scorer
    assert "was fitted on scorer 's'" in ran.err


def test_bad_input_is_one_line(run: Run, tmp_path: Path, asked: Asked) -> None:
    bad, out = tmp_path / "bad.jsonl", tmp_path / "cal.json"
    bad.write_text("{}\n")
    few = tmp_path / "few.jsonl"
    write_scored_paths(few, made_up("few", 1.0)[:4])
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    said = {bad: "line 1", few: "policy 'few'", empty: "no paths", tmp_path / "x": "cannot be read"}
    for file, words in said.items():
        ran = run("calibrate", "fit", "--paths", str(file), "--out", str(out))
        assert ran.code == 1
        assert words in ran.err
        assert ran.err.count("\n") == 1
    assert not out.exists()
    ran = run("solve", *asked.arguments, "--calibration", str(bad))
    assert ran.code == 1
    assert "bad.jsonl" in ran.err
    assert run("calibrate", "tiny", "--out", str(out), "--split", "none").code == 1


def test_solve_shows_what_a_search_cost(run: Run, asked: Asked, tmp_path: Path) -> None:
    search = ("solve", *asked.arguments, "--width", "2", "--expand", "2", "--max-rounds", "2")
    file = tmp_path / "prices.json"
    file.write_text(json.dumps({"per_million_generated_tokens": 1.0, "currency": "EUR"}))
    prices = ("--prices", str(file), "--price-generated", "2", "--price-scored", "0.5")
    data = json.loads(run(*search, *prices, "--json").out)
    usage = data["result"]["usage"]
    expected = (2 * usage["generated_tokens"] + 0.5 * usage["scored_tokens"]) / 1e6
    assert data["cost"] == {"amount": pytest.approx(expected), "currency": "EUR"}
    assert data["result"]["ended_by"] == "budget: rounds 2 of 2"
    shown = run(*search, *prices).out
    assert f"Cost: {expected:.6g} EUR" in shown
    assert "cut by budget" in shown
    assert "cost" not in json.loads(run(*search, "--json").out)
    for wrong in (("--price-image", "-1"), ("--prices", str(tmp_path / "none.json"))):
        assert run(*search, *wrong).code == 1


@pytest.mark.parametrize("selector", ["hybrid", "knockout"])
def test_solve_knows_the_selectors(run: Run, asked: Asked, selector: str) -> None:
    options = ("--strategy", "best-of-n", "--n", "4", "--aggregate", "prior_mean:0.5,2")
    ran = run("solve", *asked.arguments, *options, "--selector", selector, "--json")
    assert ran.code in (0, 3)
    assert json.loads(ran.out)["result"]["candidates"]
