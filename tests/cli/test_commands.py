"""The commands do what they say, on the packaged models."""

from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.conftest import Asked, Run
from vprm_search.cli.options import chat_model
from vprm_search.tiny.chat_model import _loaded as tiny_sampler
from vprm_search.tree import SearchTree

BEAM = ("--strategy", "beam", "--width", "2", "--expand", "2", "--temperature", "1.0")


def test_solve_prints_the_tree_and_writes_page_and_picture(
    run: Run, asked: Asked, tmp_path: Path
) -> None:
    page, picture = tmp_path / "search.html", tmp_path / "search.png"
    ran = run("solve", *asked.arguments, *BEAM, "--html", str(page), "--png", str(picture))
    assert ran.code in (0, 3)
    assert asked.problem.question in ran.out
    assert "Answer: " in ran.out
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    with Image.open(io.BytesIO(picture.read_bytes())) as drawn:
        assert drawn.format == "PNG"


def test_solve_as_json_gives_a_tree_that_can_be_read_back(run: Run, asked: Asked) -> None:
    first = run("solve", *asked.arguments, *BEAM, "--json", "--seed", "4")
    second = run("solve", *asked.arguments, *BEAM, "--json", "--seed", "4")
    data = json.loads(first.out)
    tree = SearchTree.from_json(data["tree"])
    tree.check()
    assert data["result"]["node"] in tree
    assert json.loads(second.out)["tree"] == data["tree"]
    other = run("solve", *asked.arguments, *BEAM, "--json", "--seed", "5")
    assert json.loads(other.out)["tree"] != data["tree"]


def test_without_a_scorer_the_most_frequent_answer_counts(run: Run, asked: Asked) -> None:
    alone = ("solve", *asked.arguments, "--scorer", "none", "--n", "6", "--json")
    ran = run(*alone)
    assert ran.code == 0, ran.err
    data = json.loads(ran.out)
    tree = SearchTree.from_json(data["tree"])
    answers = Counter(record.answer for record in tree.finished() if record.answer is not None)
    assert answers[data["result"]["answer"]] == max(answers.values())
    assert {record.score for record in tree} == {None}
    assert "no score" not in run(*alone[:-1]).out
    refused = run(*alone, "--calibration", "map.json")
    assert refused.code == 1
    assert "--scorer none gives none" in refused.err


def test_best_of_n_with_a_budget_ends_with_what_it_has(run: Run, asked: Asked) -> None:
    ran = run(
        "solve",
        *asked.arguments,
        *("--strategy", "best-of-n", "--n", "6", "--max-candidates", "3"),
        *("--selector", "best-score", "--json"),
    )
    data = json.loads(ran.out)
    assert data["result"]["usage"]["candidates"] == 3
    assert "candidates 3 of 3" in data["result"]["ended_by"]


def test_no_answer_is_3_and_says_why(run: Run, asked: Asked) -> None:
    # port 9 of this machine: nobody listens, so every call to the policy fails
    server = ("--policy", "openai:none", "--base-url", "http://127.0.0.1:9/v1")
    question = ("--question", asked.problem.question)  # without a picture
    ran = run("solve", *question, *server, "--strategy", "best-of-n", "--n", "1")
    assert ran.code == 3
    assert "Answer: none" in ran.out
    (warned,) = (line for line in ran.err.splitlines() if line.startswith("warning: "))
    assert "1 of 1 candidates failed" in warned
    assert "check that the server runs and its address" in warned
    assert "token limit" not in warned


def test_score_finds_the_wrong_step_worse_than_the_right_one(
    run: Run, asked: Asked, tmp_path: Path
) -> None:
    solution = tmp_path / "solution.txt"
    values = dict(zip(asked.problem.names, asked.problem.values, strict=True))
    first = asked.problem.operands[0]
    firsts = []
    for value in (values[first], values[first] % 9 + 1):
        steps = [f"Step 1: {first} = {value}.", "Step 2: x"]
        solution.write_text("\n\n".join(steps))
        ran = run("score", *asked.arguments, "--solution", str(solution), "--json")
        assert ran.code == 0
        data = json.loads(ran.out)
        assert [row["step"] for row in data["steps"]] == [
            f"Step 1: {first} = {value}.",
            "Step 2: x",
        ]
        firsts.append(data["steps"][0]["score"])
        scores = [row["score"] for row in data["steps"]]
        assert data["path_scores"]["mean"] == pytest.approx(sum(scores) / 2)
        assert data["path_scores"]["min"] == min(scores)
    assert firsts[0] > firsts[1]


def test_score_reads_stdin_and_prints_a_table(
    run: Run, asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = asked.problem.solution + "\n\n[red]\x1b[31mStep 99\u202e"

    class Stdin:
        buffer = io.BytesIO(text.encode())

    monkeypatch.setattr("sys.stdin", Stdin)
    ran = run("score", *asked.arguments, "--solution", "-")
    assert ran.code == 0
    assert asked.problem.steps[0] in ran.out
    assert "[red][31mStep 99" in ran.out
    assert "\x1b" not in ran.out
    assert "path score" in ran.out


def test_an_empty_solution_is_1(run: Run, asked: Asked, tmp_path: Path) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text(" \n\n ")
    ran = run("score", *asked.arguments, "--solution", str(empty))
    assert ran.code == 1
    assert "no steps" in ran.err


def test_a_solution_that_does_not_fit_the_model_is_3_and_says_why(
    run: Run, asked: Asked, tmp_path: Path
) -> None:
    long = tmp_path / "long.txt"
    long.write_text("\n\n".join("word " * 900 for _ in range(8)))
    ran = run("score", *asked.arguments, "--solution", str(long), "--json")
    assert ran.code == 3
    data = json.loads(ran.out)
    assert all(row["score"] is None and "too_long" in row["reason"] for row in data["steps"])


@pytest.mark.slow
def test_demo_prints_every_method_and_one_search(run: Run, tmp_path: Path) -> None:
    ran = run("demo", "--problems", "6", "--out", str(tmp_path / "out"))
    assert ran.code == 0
    for method in ("pass@1", "self-consistency@8", "best-of-8", "weighted vote@8", "AutoSearch"):
        assert method in ran.out
    assert "Answer: " in ran.out
    assert (tmp_path / "out" / "search.html").is_file()
    assert (tmp_path / "out" / "search.png").is_file()


def test_the_tiny_policy_is_read_before_it_is_asked() -> None:
    before = tiny_sampler.cache_info()
    chat_model("tiny", None, 0.7)
    after = tiny_sampler.cache_info()
    assert after.hits + after.misses == before.hits + before.misses + 1
