"""`vprm-search datasets …`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from examples.tiny_models.problem_files import choices_for, draw, write_problems
from tests.cli.conftest import Run

WORLD = draw(6)


@pytest.fixture
def world(tmp_path: Path) -> Path:
    write_problems(tmp_path / "world.tsv", WORLD, choices=True)
    return tmp_path / "world.tsv"


def test_inspect_tells_what_was_understood(run: Run, world: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    ran = run("datasets", "inspect", str(world), "--html", str(page))
    assert ran.code == 0
    assert "problems: 6" in ran.out
    assert "answer types: choice: 6" in ran.out
    assert WORLD[0].question in ran.out
    assert re.search(rf"^│ \(A\) {choices_for(WORLD[0])[0]} +│$", ran.out, re.MULTILINE)
    html = page.read_text()
    assert html.count("<img") == 3
    assert "<script" not in html
    assert "default-src 'none'" in html
    told = json.loads(run("datasets", "inspect", str(world), "--json").out)
    assert told["choices"] == {"4": 6}
    assert len(told["examples"]) == 3


def test_a_page_shows_hostile_text_as_text(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"question": "<script>alert(1)</script>", "answer": "<b>"}) + "\n")
    page = tmp_path / "page.html"
    assert run("datasets", "inspect", str(file), "--html", str(page)).code == 0
    assert "<script" not in page.read_text()
    assert "&lt;script&gt;" in page.read_text()


@pytest.mark.parametrize(("count", "shown"), [(1, "0"), (2, "01"), (3, "012"), (4, "013")])
def test_examples_are_the_first_the_last_and_one_between(
    run: Run, tmp_path: Path, count: int, shown: str
) -> None:
    file = tmp_path / "a.jsonl"
    rows = [{"id": f"a#{n}", "question": "q", "answer": "1"} for n in range(count)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = json.loads(run("datasets", "inspect", str(file), "--json").out)
    assert [item["id"] for item in told["examples"]] == [f"a#{n}" for n in shown]
    assert told["repeated ids"] == 0
    file.write_text(file.read_text() * 2)
    assert json.loads(run("datasets", "inspect", str(file), "--json").out)["repeated ids"] == count


def test_inspect_counts_missing_pictures(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"question": "q", "answer": "1", "image": "a.png"}) + "\n")
    ran = run("datasets", "inspect", str(file), "--html", str(tmp_path / "page.html"))
    assert ran.code == 0
    assert "missing pictures: 1" in ran.out
    assert "cannot be read" in (tmp_path / "page.html").read_text()


def test_grade(run: Run, world: Path, tmp_path: Path) -> None:
    said = tmp_path / "said.jsonl"
    letters = ["ABCD"[choices_for(p).index(p.answer)] for p in WORLD]
    rows = [
        {"index": n, "prediction": f"So.\n\nAnswer: {right}"} for n, right in enumerate(letters)
    ]
    rows[0]["prediction"] = f"The answer is {WORLD[0].answer}."  # the text of the choice
    rows[1]["prediction"] = "no idea\n\nat all"
    said.write_text("".join(json.dumps(row) + "\n" for row in rows[:5]))
    told = json.loads(run("datasets", "grade", str(world), str(said), "--json").out)
    assert told["without a prediction"] == 1
    assert told["scores"]["sameness"]["accuracy"] == pytest.approx(4 / 6)
    named = run("datasets", "grade", str(world), str(said), "--set", "mathvision")
    assert "mathvision  accuracy 66.7 %" in named.out
    assert "tiles: " in named.out


def test_grade_refuses_strays(run: Run, world: Path, tmp_path: Path) -> None:
    said = tmp_path / "said.jsonl"
    said.write_text('{"index": 77, "prediction": "A"}\n')
    assert "'77' is no problem of" in run("datasets", "grade", str(world), str(said)).err
    for ids, place in (('"x": 1', "row 1: there is no id"), ('"index": 1', "row 2: '1' has a pre")):
        said.write_text(f'{{{ids}, "prediction": "A"}}\n' * 2)
        assert place in run("datasets", "grade", str(world), str(said)).err
    said.write_text("")
    assert "holds no predictions" in run("datasets", "grade", str(world), str(said)).err
    said.write_text('{"index": 1}\n')
    assert "no column 'prediction'" in run("datasets", "grade", str(world), str(said)).err
    bad = run("datasets", "grade", str(world), str(said), "--record", "x.jsonl")
    assert "--record is for --judge" in bad.err


def test_predictions_of_a_repeated_id_are_of_its_problems_in_turn(run: Run, tmp_path: Path) -> None:
    file, said = tmp_path / "set.jsonl", tmp_path / "said.jsonl"
    rows = [{"id": 7, "question": f"{n}?", "answer": n} for n in "12"]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    said.write_text("".join(json.dumps({"id": 7, "prediction": n}) + "\n" for n in "12"))
    told = json.loads(run("datasets", "grade", str(file), str(said), "--json").out)
    assert (told["without a prediction"], told["scores"]["sameness"]["accuracy"]) == (0, 1.0)


def test_text_sets_are_graded_with_the_papers_rows_beside(run: Run, tmp_path: Path) -> None:
    file, said = tmp_path / "test.jsonl", tmp_path / "said.jsonl"
    file.write_text(
        "".join(json.dumps({"question": f"{n}?", "answer": f"So.\n#### {n}"}) + "\n" for n in "123")
    )
    said.write_text("".join(json.dumps({"id": n, "prediction": "#### 2"}) + "\n" for n in (1, 2)))
    told = json.loads(run("datasets", "grade", str(file), str(said), "--json").out)
    assert told["scores"]["gsm8k"]["accuracy"] == pytest.approx(1 / 3)
    assert told["without a prediction"] == 1
    assert told["paper"]["InternVL2.5-8B"] == [81.9, 82.9]
    shown = run("datasets", "grade", str(file), str(said)).out
    assert "gsm8k  accuracy 33.3 %" in shown
    assert "  InternVL2.5-8B: 81.9 %, 82.9 %" in shown
    assert "paper" not in run("datasets", "grade", str(file), str(said), "--set", "mathvista").out
