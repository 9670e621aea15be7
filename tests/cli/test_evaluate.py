"""`vprm-search evaluate` on our own world, written as VLMEvalKit has its sets."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from examples.tiny_models.problem_files import draw, write_problems
from tests.cli.conftest import Run


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("world") / "tiny.tsv"
    write_problems(file, draw(6))
    return file


def test_from_a_file_to_a_report_and_on_without_models(
    run: Run, world: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    given = ("evaluate", str(world), "--out", str(out))
    ran = run(*given, "--n", "3", "--orm", "tiny")
    assert ran.code == 0, ran.err
    results = json.loads((out / "results.json").read_text())
    assert "prompt plain, candidate 0 drawn as the others" in ran.out
    assert (out / "results.png").read_bytes().startswith(b"\x89PNG")
    rows = {(row["selector"], row["size"]): row["expected"]["mean"] for row in results["rows"]}
    grades = [json.loads(line) for line in (out / "grades-sameness.jsonl").open()]
    assert rows["pass@1", 1] == pytest.approx(sum(g["right"] for g in grades) / 18)
    assert rows["oracle", 3] >= max(rows["prm:mean", 3], rows["orm", 3], rows["majority", 3])
    program = """
import sys
for name in ("torch", "transformers"):
    sys.modules[name] = None  # as if it were not installed
from vprm_search.cli import main
main(sys.argv[1:])
"""
    before = (out / "results.json").read_bytes()
    again = subprocess.run(
        [
            sys.executable,
            "-c",
            program,
            *given,
            "--stage",
            "grade",
            "--stage",
            "select",
            "--result-file",
            "prm:mean",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert again.returncode == 0, again.stderr
    assert (out / "results.json").read_bytes() == before
    with (out / "tiny-prm-mean-N3_tiny.tsv").open(newline="") as file:
        columns, *lines = csv.reader(file, delimiter="\t")
    assert columns == ["index", "question", "answer", "category", "prediction"]
    assert len(lines) == 6


def test_one_stage_alone_and_exit_codes(run: Run, world: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    given = ("evaluate", str(world), "--out", out, "--limit", "2")
    assert run(*given, "--stage", "score").code == 1  # there are no candidates
    ran = run(*given, "--n", "2", "--stage", "generate")
    assert (ran.code, sorted(p.name for p in (tmp_path / "out").iterdir())) == (
        0,
        ["candidates.jsonl", "lock", "manifest.json"],
    )
    assert f"done: generate; next: --stage score, in {out}" in ran.err
    ran = run(*given, "--stage", "select")
    assert ran.code == 1
    assert "run --stage grade" in ran.err
    ran = run(*given, "--stage", "grade", "--stage", "score")
    assert f"done: score, grade; next: --stage select, in {out}" in ran.err
    for name, value in (("--temperature", "1"), ("--preset", "paper"), ("--seed", "3")):
        ran = run(*given, "--stage", "grade", name, value)  # none of them can be
        assert (ran.code, "was made with other settings" in ran.err) == (1, True)
    ran = run(*given, "--stage", "score", "--policy", "openai:mine")
    assert (ran.code, "not 'openai:mine'" in ran.err) == (1, True)
    ran = run(*given, "--n", "2", "--stage", "generate", "--temperature", "1")
    assert ran.code == 1
    assert "temperature 0.7, not 1.0" in ran.err
    ran = run(*given, "--n", "4", "--stage", "grade", "--stage", "select")
    assert (ran.code, "no problem has N = 4 candidates" in ran.err) == (1, True)
    assert run(*given, "--stage", "grade", "--stage", "select").code == 0
    assert run(*given, "--prompt", "nowhere.txt").code == 1
    assert run(*given, "--stage", "cook").code == 2
    assert run(*given, "--likelihood").code == 1
    assert run(*given, "--preset", "vlmevalkit").code == 1  # top_p, and another prompt
    assert run(*given, "--stage", "search", "--strategy", "chess").code == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--policy", "nope"), "chat model 'nope' is not known"),
        (("--scorer", "/nowhere"), "/nowhere is no directory"),
        (("--orm", "nowhere"), "nowhere is no directory"),
        (("--judge", "nope"), "chat model 'nope' is not known"),
        (("--answer-judge", "nope"), "chat model 'nope' is not known"),
        (("--grader", "nope"), "--grader 'nope': one of mathvista"),
        (("--strategy", "nope"), "no strategy nope"),
        (("--strategy", "beam"), "needs --n 4 at least, for it to have a budget; got 2"),
        (("--result-file", "orm"), "--result-file 'orm': one of pass@1, "),
        (("--baseline", "nowhere"), "nowhere: there are no candidates"),
        (("--base-url", "http://127.0.0.1:9"), "--base-url is for --policy openai:MODEL"),
        (("--judge-base-url", "http://127.0.0.1:9"), "--judge-base-url is for the judges"),
        (("--scorer-tokenizer", "nowhere"), "--scorer-tokenizer is for --scorer vllm:URL"),
        (("--raw",), "--raw is for --result-file"),
    ],
)
def test_what_is_named_wrongly_is_said_before_anything_is_made(
    run: Run, world: Path, tmp_path: Path, given: tuple[str, ...], message: str
) -> None:
    out = tmp_path / "out"
    ran = run("evaluate", str(world), "--out", str(out), "--n", "2", *given)
    assert (ran.code, len(ran.err.strip().splitlines())) == (1, 1)
    assert message in ran.err
    assert {path.name for path in out.glob("*")} <= {"lock"}  # so the right name may come next


def test_compare_and_evaluate_have_folders_of_their_own(
    run: Run, world: Path, tmp_path: Path
) -> None:
    out = str(tmp_path / "out")
    compare = ("compare", "--world", "synthetic", "--problems", "2", "--n", "4", "--out", out)
    assert run(*compare, "--strategy", "best-of-n").code == 0
    before = (tmp_path / "out" / "results.json").read_bytes()
    evaluate = ("evaluate", str(world), "--out", out, "--n", "1", "--stage", "generate")
    ran = run(*evaluate)
    assert (ran.code, "the searches of vprm-search compare" in ran.err) == (1, True)
    assert (tmp_path / "out" / "results.json").read_bytes() == before
    other = str(tmp_path / "other")
    assert run(*evaluate[:3], other, *evaluate[4:]).code == 0
    ran = run(*compare[:-1], other)
    assert (ran.code, "has a run of vprm-search evaluate" in ran.err) == (1, True)
    (tmp_path / "file").touch()
    for command in (
        (*evaluate[:3], str(tmp_path / "file")),
        (*compare[:-1], str(tmp_path / "file")),
    ):
        ran = run(*command)
        assert (ran.code, "is no folder; give another --out folder" in ran.err) == (1, True)


@pytest.mark.slow
def test_a_bigger_policy_alone_is_a_line(run: Run, world: Path, tmp_path: Path) -> None:
    other = tmp_path / "colder"
    given = ("evaluate", str(world), "--limit", "3", "--n", "2")
    assert run(*given, "--out", str(other), "--temperature", "0.1").code == 0
    ran = run(*given, "--out", str(tmp_path / "out"), "--baseline", str(other))
    assert ran.code == 0, ran.err
    (line,) = json.loads((tmp_path / "out" / "results.json").read_text())["baselines"]
    assert line["name"] == "colder"
    page = tmp_path / "page.html"
    ran = run("evaluate", "diff", str(other), str(tmp_path / "out"), "--html", str(page), "--json")
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    assert (found["problems"], found["apart"]) == (3, 0)  # of the set where the first run had it
    assert page.read_text().startswith("<!")
    ran = run("evaluate", "diff", str(other), str(other), "--select", "prm:mean", "--select", "orm")
    assert (ran.code, "no selector 'orm'" in ran.err) == (1, True)
    assert run("evaluate", "diff", str(tmp_path / "nowhere"), str(other)).code == 1
