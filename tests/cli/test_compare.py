"""`vprm-search compare` as a user runs it."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from examples.tiny_models.problem_files import draw, write_problems
from tests.cli.conftest import Run
from vprm_search.cli.compare import TinyProblems, file_world
from vprm_search.cli.options import PolicyOptions, ScorerOptions
from vprm_search.errors import ImageError, RecordError
from vprm_search.evaluate.strategies import SetProblems
from vprm_search.tiny.world import generate, render
from vprm_search.types import Problem


def read(file: Path) -> SetProblems:
    """Read problems for the tiny models."""
    return file_world(file, None, None, PolicyOptions(), ScorerOptions())


QUICK = ("--world", "synthetic", "--problems", "6", "--n", "4", "--strategy", "beam")


def test_a_comparison_writes_tables_results_and_plots(run: Run, tmp_path: Path) -> None:
    out, page = tmp_path / "out", tmp_path / "page.md"
    page.write_text("before\n<!-- strategies:begin -->\n<!-- strategies:end -->\nafter\n")
    ran = run("compare", *QUICK, "--out", str(out), "--page", str(page))
    assert ran.code == 0, ran.err
    assert "[2/2] problems 0-5: beam@4" in ran.err
    assert "weighted-vote:product" in ran.out
    with Image.open(out / "results.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > 1000
    results = json.loads((out / "results.json").read_text())
    assert {row["name"] for row in results["searches"]["rows"]} == {"best-of-n", "beam"}
    assert results["comparison"]["world"]["settings"]["auc"] == 0.73
    filled = page.read_text()
    assert filled.startswith("before\n")
    assert filled.endswith("after\n")
    assert "| **beam, weighted-vote:product** |" in filled
    again = run("compare", *QUICK, "--out", str(out), "--selector", "weighted-vote:product")
    assert again.code == 0
    assert "problems 0-5" not in again.err  # nothing was measured again


def test_problems_of_ones_own(run: Run, tmp_path: Path) -> None:
    lines = []
    for number in range(2):
        problem = generate("tiles", "validation", 900 + number)
        render(problem).save(tmp_path / f"{number}.png")
        lines.append(
            {"question": problem.question, "image": f"{number}.png", "answer": problem.answer}
        )
    file = tmp_path / "problems.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)) + "\n")
    ran = run(
        "compare", "--problems", str(file), "--n", "4", "--strategy", "dvts",
        "--selector", "majority", "--out", str(tmp_path / "out"),
    )  # fmt: skip
    assert ran.code == 0, ran.err
    results = json.loads((tmp_path / "out" / "results.json").read_text())["searches"]
    assert results["problems"] == 2
    assert {row["choice"] for row in results["rows"]} == {"majority"}
    assert "### Points over best-of-N of the same N, both by majority" in ran.out
    assert all(row["generated_tokens"] > 0 for row in results["rows"])


def test_a_run_that_measured_nothing_leaves_its_folder_to_the_right_names(
    run: Run, tmp_path: Path
) -> None:
    file = tmp_path / "problems.jsonl"
    problem = generate("tiles", "validation", 900)
    render(problem).save(tmp_path / "0.png")
    line = {"question": problem.question, "image": "0.png", "answer": problem.answer}
    file.write_text(json.dumps(line) + "\n")
    given = ("compare", "--problems", str(file), "--n", "4", "--strategy", "best-of-n")
    out = ("--out", str(tmp_path / "out"))
    ran = run(*given, *out, "--scorer", "/nowhere")
    assert (ran.code, "/nowhere is no directory" in ran.err) == (1, True)
    assert run(*given, *out).code == 0
    ran = run(*given, *out, "--scorer", "/nowhere")
    assert (ran.code, "world.scorer.name 'tiny', not '/nowhere'" in ran.err) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--strategy", "bream"), "no strategy bream"),
        (("--selector", "loudest"), "no selector 'loudest'"),
        (("--selector", "majority:sideways"), "unknown aggregation"),
        (("--n", "1"), "between 2 and 256"),
        (("--difficulty", "absurd"), "easy, medium, hard"),
        (("--policy", "openai:m"), "--policy is for --problems FILE"),
        (("--device", "cpu"), "--device is for --problems FILE, and this is --world synthetic"),
        (("--first", "2"), "--first is for --world tiny"),
        (("--temperature", "1"), "--temperature is for --problems FILE and --world tiny"),
        (("--world", "tiny", "--difficulty", "easy"), "--difficulty is for --world synthetic"),
        (("--world", "tiny", "--step-tokens", "1"), "--step-tokens is for --problems FILE"),
        (("--problems", "nowhere.jsonl"), "--world is for --problems NUMBER"),
        (("--world", "mars"), "not known"),
        (("--world", "tiny", "--problems", "nowhere.jsonl"), "there is no such file"),
        (("--problems", "0"), "--problems 0: there is nothing to compare"),
    ],
)
def test_a_wrong_option_is_one_line(
    run: Run, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    ran = run("compare", *QUICK, "--out", str(tmp_path / "out"), *arguments)
    assert ran.code == 1
    assert message in ran.err
    assert len(ran.err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_file_without_marks_and_a_missing_matplotlib_are_said(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.md"
    page.write_text("no marks")
    ran = run("compare", *QUICK, "--out", str(tmp_path / "out"), "--page", str(page))
    assert ran.code == 1
    assert "strategies:begin" in ran.err
    assert not (tmp_path / "out").exists()  # found out before anything was measured
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    ran = run("compare", *QUICK, "--out", str(tmp_path / "out"))
    assert ran.code == 1
    assert "vprm-search[plots]" in ran.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        '"text"',
        '{"question": "?"}',
        '{"question": "", "answer": "4"}',
        '{"question": "?", "answer": true}',
        '{"question": "?", "answer": "4", "image": 3}',
        '{"question": "?", "answer": "4", "images": [1.5]}',
        '{"question": "?", "answer": "4", "choices": "34"}',
        '{"question": "?", "answer": "4", "choices": ["", "4"]}',
    ],
)
def test_a_bad_line_is_named_before_anything_is_measured(tmp_path: Path, line: str) -> None:
    file = tmp_path / "problems.jsonl"
    file.write_text(f'{{"question": "2 + 2?", "answer": 4}}\n\n{line}\n')
    with pytest.raises(RecordError, match="row 2"):
        read(file)
    file.write_text("\n\n")
    with pytest.raises(RecordError, match="holds no problems"):
        read(file)


def test_the_choices_of_a_line_are_shown_and_kept(tmp_path: Path) -> None:
    file = tmp_path / "problems.jsonl"
    file.write_text('{"question": "How long?", "answer": "B", "choices": ["3 m", "4 m"]}\n')
    (task,) = read(file).load(0, 1).tasks
    assert task.problem == Problem("How long?\n(A) 3 m\n(B) 4 m", choices=("3 m", "4 m"))


@pytest.mark.parametrize("ending", [".tsv", ".parquet"])
def test_a_problem_set_in_another_form_is_the_same_world(ending: str, tmp_path: Path) -> None:
    world = draw(3)
    for name in (f"a{ending}", "b.jsonl"):
        write_problems(tmp_path / name, world, choices=True)
    first, second = read(tmp_path / f"a{ending}"), read(tmp_path / "b.jsonl")
    assert first.load(1, 3).tasks == second.load(1, 3).tasks
    assert first.identity() == second.identity()
    again = copy.deepcopy(first)  # as another process gets it
    assert again.load(0, 2).tasks == first.load(0, 2).tasks
    write_problems(tmp_path / "b.jsonl", draw(3, first=1), choices=True)
    assert read(tmp_path / "b.jsonl").identity() != first.identity()


def test_images_of_a_file_are_never_fetched(tmp_path: Path) -> None:
    file = tmp_path / "problems.jsonl"
    file.write_text('{"question": "?", "answer": "4", "image": "https://example.org/a.png"}\n')
    with pytest.raises(ImageError, match="URL"):
        read(file)


def test_tiny_families_take_turns() -> None:
    ground = TinyProblems(problems=6, first_index=40).load(1, 5)
    wanted = [("tiles-long", 40), ("bars", 40), ("tiles", 41), ("tiles-long", 41)]
    found = [(task.problem.question, task.answer) for task in ground.tasks]
    expected = [generate(family, "validation", index) for family, index in wanted]
    assert found == [(problem.question, problem.answer) for problem in expected]
