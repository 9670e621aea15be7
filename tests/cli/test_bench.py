"""`vprm-search bench …` on our own world, written as VisualProcessBench is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sklearn.metrics import f1_score

from examples.tiny_models.problem_files import png_of
from examples.tiny_models.step_benchmark import SOURCES, write_step_benchmark
from tests.cli.conftest import Run
from vprm_search.tiny.world import generate


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_step_benchmark(folder, problems=2, samples=1)
    return folder


def test_the_whole_command_against_an_independent_computation(
    run: Run, world: Path, tmp_path: Path
) -> None:
    file, out = str(world / "test.jsonl"), str(tmp_path / "out")
    ran = run("bench", "visualprocessbench", file, "--out", out, "--threshold", "0.5")
    assert ran.code == 0, ran.err
    records = [json.loads(line) for line in (world / "test.jsonl").open()]
    rows = {
        row["row"]: row["scores"] for row in map(json.loads, (tmp_path / "out/scores.jsonl").open())
    }
    assert {record["data_source"] for record in records} == {f"{f}@{t:g}" for f, t in SOURCES}
    pairs = [
        (label > 0, score > 0.5)
        for number, record in enumerate(records, start=1)
        for label, score in zip(
            record["response"]["process_correctness"], rows[number], strict=True
        )
        if label
    ]
    expected = f1_score([t for t, _ in pairs], [s for _, s in pairs], average="macro")
    result = json.loads((tmp_path / "out/results.json").read_text())
    assert result["thresholds"][0]["pooled"] == pytest.approx(expected)
    assert result["thresholds"][0]["pooled"] > result["baselines"]["always '+'"]["pooled"]
    assert "| **tiny**, t = 0.5 |" in ran.out
    written = (tmp_path / "out/scores.jsonl").read_bytes()
    again = run("bench", "visualprocessbench", file, "--out", out, "--tune-on", "bars@0.7")
    assert again.code == 0
    assert (tmp_path / "out/scores.jsonl").read_bytes() == written  # nothing was scored again
    assert "best on bars@0.7" in again.out


def test_missing_pictures_stop_the_run_unless_they_are_left_out(
    run: Run, world: Path, tmp_path: Path
) -> None:
    for folder in ("images", "out"):
        (tmp_path / folder).mkdir()
    lines = (world / "test.jsonl").read_text().splitlines()
    whole = json.loads(lines[0]) | {"image": []}
    lacking = json.loads(lines[1]) | {"image": ["images/nowhere.png"]}
    file = tmp_path / "test.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in (whole, lacking)))
    command = ("bench", "visualprocessbench", str(file), "--out", str(tmp_path / "out"))
    ran = run(*command)
    assert ran.code == 1
    assert "1 of 2 cannot be measured (a picture is not there in 1)" in ran.err
    assert "images/nowhere.png" in ran.err
    ran = run(*command, "--leave-out")
    assert ran.code == 0, ran.err
    assert "a picture is not there: 1; left out for it: 1 solution" in ran.out
    file.write_text(json.dumps(lacking) + "\n")
    ran = run(*command, "--leave-out")
    assert ran.code == 1
    assert "1 of 1 cannot be measured" in ran.err  # nothing would be left to measure
    assert "images/nowhere.png); name the pictures' folder (--images)" in ran.err
    assert "--leave-out" not in ran.err


def test_text_benchmarks_run_too(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "gsm8k.json"
    steps = ["Step 1: red = 5.", "Step 2: blue = 3."]
    row = {"id": "gsm8k-0", "problem": "What is red + blue?", "steps": steps, "label": 1}
    file.write_text(json.dumps([row, {**row, "id": "gsm8k-1", "label": -1}]))
    ran = run("bench", "processbench", str(file), "--out", str(tmp_path / "out"))
    assert ran.code == 0, ran.err
    assert "### The first wrong step" in ran.out
    assert "2 solutions to 1 question, 4 steps: 3 right, 1 wrong" in ran.out
    ran = run("bench", "processbench", str(file), "--images", str(tmp_path))
    assert ran.code == 1
    assert "processbench is text alone" in ran.err


def test_pairs_of_responses(run: Run, tmp_path: Path) -> None:
    problem = generate("tiles", "test", 0)
    gold, wrong = problem.solution, problem.solution.replace("= ", "= 1")
    (tmp_path / "a.png").write_bytes(png_of(problem))
    told = {"query": problem.question, "image_path": "a.png"}
    rows = [
        {**told, "id": "mmmu_1", "response": [gold, wrong], "human_ranking": [0, 1]},
        {**told, "id": "mmmu_2", "response": [wrong, gold], "human_ranking": [1, 0]},
    ]
    file = tmp_path / "data.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ("bench", "vlrewardbench", str(file), "--out", str(tmp_path / "out"))
    ran = run(*command)
    assert ran.code == 0, ran.err
    assert "2 pairs of responses to 1 question." in ran.out
    assert "| prefers | reasoning (2) | Overall | Macro | ties |" in ran.out
    assert "| **tiny**, mean of the steps | 100.0 | 100.0 [100.0, 100.0] | 100.0 | 0 |" in ran.out
    assert "--threshold and --tune-on are for" in run(*command, "--threshold", "0.5").err


def test_options_that_do_not_fit(run: Run, world: Path, tmp_path: Path) -> None:
    command = ("bench", "visualprocessbench", str(world / "test.jsonl"), "--out", str(tmp_path))
    assert "the sources are" in run(*command, "--tune-on", "x").err
    assert "--base-url is for --judge" in run(*command, "--base-url", "http://x").err
