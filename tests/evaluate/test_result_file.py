"""Result files: columns, rows and texts unchanged, and graded the same by exact matching."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.evaluate.matching_rules import is_right, option_inferred
from tests.evaluate.pools import pooled
from vprm_search.datasets.graders import grader_of
from vprm_search.datasets.known import SetName
from vprm_search.datasets.problem_set import Item, ProblemSet, read_problem_set
from vprm_search.errors import ConfigError, MissingDependencyError, RecordError
from vprm_search.evaluate.result_file import (
    LONGEST_CELL,
    NO_PREDICTION,
    matched_form,
    predictions_of,
    write_result_file,
)

VISION = [
    {"index": n, "image": "", "question": f"Which is {n}?", "answer": answer, "choices": choices,
     "category": "algebra\twith\n\"tabs\""}
    for n, (answer, choices) in enumerate(
        [("B", "['A cat', 'no', '7']"), ("12", "[]"), ("0.5", "[]"), ("C", "['1', '2', '3']"),
         ("NA", "[]")], start=3)
]  # fmt: skip
VISTA = [
    {"index": n, "pid": n, "image": "", "question": "How much?", "answer": answer,
     "question_type": kind, "answer_type": reads, "choices": choices, "answer_option": option,
     "precision": ""}
    for n, (answer, kind, reads, choices, option) in enumerate(
        [("12", "free_form", "integer", "", ""), ("1.5", "free_form", "float", "", ""),
         ("No", "multi_choice", "text", "['Yes', 'No']", "B")])
]  # fmt: skip

LETTERED = [
    {"index": n, "image": "", "question": "Which?", "A": a, "B": b, "C": c, "D": d,
     "answer": answer, "category": "Art", "l2-category": "Art", "split": "validation"}
    for n, (a, b, c, d, answer) in enumerate(
        [("A cat", "no", "7", "12", "B"), ("1.5", "12", "0.5", "3", "D"),
         ("Yes", "No", "", "", "A")]
    )
]  # fmt: skip
DYNAMATH = [
    {"index": n, "image": "", "qid": n, "varid": 1, "question": question, "answer": answer,
     "answer_type": kind, "subject": "algebra", "knowledge_level": "high school"}
    for n, (question, answer, kind) in enumerate(
        [("How much?", "1.5", "float"), ("How many?", "12", "float"), ("Where?", "Up", "text"),
         ("Which? Choices: (A) 7 (B) no (C) 3", "B", "multiple choice")])
]  # fmt: skip
LOGICVISTA = [
    {"index": n, "image": "", "question": "Which?", "answer": answer, "skill": "['inductive']"}
    for n, answer in enumerate(["B", "B, D", "C"])
]  # fmt: skip
SETS = [(VISION, "MathVision"), (VISTA, "MathVista"), (LETTERED, "MMMU_DEV_VAL"),
        (LETTERED, "WeMath"), (DYNAMATH, "DynaMath"), (LOGICVISTA, "LogicVista")]  # fmt: skip


def a_set(folder: Path, rows: list[dict[str, object]], name: str) -> ProblemSet:
    path = folder / f"{name}.tsv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t", quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(rows)
    known: dict[str, SetName] = {"MMMU_DEV_VAL": "mmmu", "WeMath": "wemath"}
    return read_problem_set(path, name=known.get(name))


def read_back(path: Path) -> list[dict[str, str]]:
    csv.field_size_limit(1 << 30)
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


@given(st.lists(st.text(max_size=40), min_size=5, max_size=5))
@settings(max_examples=60, deadline=None)
def test_all_rows_and_columns_but_the_picture_come_back(
    tmp_path_factory: pytest.TempPathFactory, said: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("r")
    problems = a_set(folder, VISION, "MathVision_MINI")
    ids = [item.id for item in problems]
    made = write_result_file(folder / "out", problems, dict(zip(ids, said, strict=True)), model="m")
    assert made.path.name == "m_MathVision_MINI.tsv"
    assert [p.name for p in made.path.parent.iterdir()] == [made.path.name]  # nothing half written
    found = read_back(made.path)
    assert made.rows == len(found) == 5
    for row, known, text in zip(found, VISION, said, strict=True):
        assert list(row) == [*(name for name in known if name != "image"), "prediction"]
        assert all(row[name] == str(known[name]) for name in known if name != "image")
        wanted = text.strip() or NO_PREDICTION
        assert len(row["prediction"]) == len(wanted)
        assert all(a == b or a == "\ufffd" for a, b in zip(row["prediction"], wanted, strict=True))


def test_what_pandas_reads_otherwise_is_said(tmp_path: Path) -> None:
    problems = a_set(tmp_path, VISION, "MathVision_MINI")
    ids = [item.id for item in problems]
    made = write_result_file(tmp_path, problems, {ids[0]: "B", ids[4]: "NA"}, model="m")
    assert len(made.notes) == 2
    assert made.notes[0].startswith("3 rows have no prediction: '?'")
    assert "1 prediction is read as nothing" in made.notes[1]
    numbers = dict(zip(ids, ["1", "2", "3", "4", "5.5"], strict=True))
    (note,) = write_result_file(tmp_path, problems, numbers, model="m").notes
    assert "floating point" in note
    whole = dict.fromkeys(ids, "5")
    assert write_result_file(tmp_path, problems, whole, model="m").notes == ()


def test_a_long_solution_is_an_error_in_xlsx_and_none_in_tsv(tmp_path: Path) -> None:
    pytest.importorskip("xlsxwriter")
    problems = a_set(tmp_path, VISION, "MathVision_MINI")
    said = {problems[1].id: "\U0001d54f" * (LONGEST_CELL // 2 + 1)}  # two units each
    with pytest.raises(RecordError, match=r"row 2, column prediction: 32768 characters.*32767"):
        write_result_file(tmp_path, problems, said, model="m", form="xlsx")
    assert {path.name for path in tmp_path.iterdir()} == {"MathVision_MINI.tsv"}
    made = write_result_file(tmp_path, problems, said, model="m")
    assert read_back(made.path)[1]["prediction"] == said[problems[1].id]


def test_xlsx_holds_the_same_cells_as_text(tmp_path: Path) -> None:
    pytest.importorskip("xlsxwriter")
    openpyxl = pytest.importorskip("openpyxl")
    problems = a_set(tmp_path, VISION, "MathVision_MINI")
    said = {problems[0].id: "=1+2", problems[1].id: "http://a.b", problems[2].id: "a\x00\x0bb"}
    made = write_result_file(tmp_path, problems, said, model="m", form="xlsx")
    sheet = openpyxl.load_workbook(made.path).active
    rows = [[cell.value for cell in row] for row in sheet.iter_rows()]
    assert all(cell.data_type in "sn" and not cell.hyperlink for row in sheet for cell in row)
    assert rows[0] == ["index", "question", "answer", "choices", "category", "prediction"]
    assert [row[-1] for row in rows[1:]] == ["=1+2", "http://a.b", "a\ufffd\ufffdb", "?", "?"]
    assert [row[0] for row in rows[1:]] == [str(row["index"]) for row in VISION]


def test_names_and_ids_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problems = a_set(tmp_path, VISION, "MathVision_MINI")
    for model in ("../m", "a/b", "", ".m", "a\nb"):
        with pytest.raises(ConfigError, match="file's name"):
            write_result_file(tmp_path, problems, {}, model=model)
    with pytest.raises(RecordError, match="'stray', which is not in"):
        write_result_file(tmp_path, problems, {"stray": "B"}, model="m")
    again = a_set(tmp_path, [{**row, "prediction": ""} for row in VISION], "again")
    with pytest.raises(ConfigError, match="'prediction' already"):
        write_result_file(tmp_path, again, {}, model="m")
    monkeypatch.setitem(sys.modules, "xlsxwriter", None)
    with pytest.raises(MissingDependencyError, match="xlsx"):
        write_result_file(tmp_path, problems, {}, model="m", form="xlsx")


def test_other_forms_lose_their_pictures_and_keep_their_lists(tmp_path: Path) -> None:
    path = tmp_path / "set.jsonl"
    rows = [{"index": 1, "question": "Q?", "choices": ["a", "b"], "answer": "A",
             "image": {"path": "x.png"}, "level": 2.0, "note": None}]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    problems = read_problem_set(path, check_images=False)
    (row,) = read_back(write_result_file(tmp_path, problems, {"1": "A"}, model="m").path)
    assert row == {"index": "1", "question": "Q?", "choices": "['a', 'b']", "answer": "A",
                   "level": "2", "note": "", "prediction": "A"}  # fmt: skip


# --- graded the same -----------------------------------------------------------------------------

SAID = ("B", "(B)", "**B**", "no", "b", "A", "7", "12", "12.0", "12 cm", "1/2", ".5", "0.50", "3",
        "C", "B, D", "D and B", "C. 3", "1.5", "3/2", "Yes", "No", "NA", "", "?")  # fmt: skip


@pytest.mark.parametrize(("rows", "name"), SETS)
def test_exact_matching_agrees_with_the_sets_rule(
    tmp_path: Path, rows: list[dict[str, object]], name: str
) -> None:
    problems = a_set(tmp_path, rows, name)
    grader = grader_of(problems.name)
    for text in SAID:
        said = {item.id: matched_form(item, text) for item in problems}
        made = write_result_file(tmp_path / "out", problems, said, model="m")
        for item, row in zip(problems, read_back(made.path), strict=True):
            ours = bool(grader.grade(item, text).right)
            assert is_right(row, problems.name) == ours, (item.answer, text, row["prediction"])


def test_the_rule_is_the_one_that_was_described() -> None:
    choices = dict(zip("ABCD", ("3", "4", "5", "6"), strict=True))
    for text in ("B", "(B)", "**B**", "Answer: \\boxed{B}"):
        assert option_inferred(text, choices) == "B", text
    assert option_inferred("Step 1: A triangle is cut. Answer: \\boxed{B}", choices) is None
    assert option_inferred("Answer: b", choices) is None


def test_predictions_are_what_a_selector_takes(tmp_path: Path) -> None:
    problems = a_set(tmp_path, VISION, "MathVision")
    pools = [pooled("ab", name=item.id, scores={"orm": [0.1, 0.9]}) for item in problems[:2]]
    raw = predictions_of(pools, problems, "orm", 2, raw=True)
    assert raw == {p.id: p.candidates[1].text for p in pools}
    assert predictions_of(pools, problems, "orm", 1)[pools[1].id] == "a"
    assert predictions_of([pooled("", name=problems[0].id)], problems, "orm", 1) == {}
    with pytest.raises(RecordError, match="problem stray is not in"):
        predictions_of([pooled("a", name="stray")], problems, "pass@1", 1)


@pytest.mark.slow
@pytest.mark.skipif("VLMEVALKIT" not in os.environ, reason="VLMEVALKIT names no checkout")
@pytest.mark.parametrize("form", ["tsv", "xlsx"])
def test_vlmevalkit_itself_agrees(tmp_path: Path, shared_data: Path, form: str) -> None:
    """VLMEVALKIT=CHECKOUT; VLMEVALKIT_PYTHON runs it (pandas, openpyxl, xlsxwriter there)."""
    sets = [*(a_set(tmp_path, rows, name) for rows, name in SETS),
            read_problem_set(shared_data / "samples" / "mathvision_vlmevalkit_form.tsv",
                             check_images=False)]  # fmt: skip
    out, ours, files = tmp_path / "out", {}, []
    for problems in sets:
        grader = grader_of(problems.name)
        for place, shift in enumerate(range(0, len(SAID), 4)):
            texts = {item.id: _said(item, n + shift) for n, item in enumerate(problems)}
            said = {item.id: matched_form(item, texts[item.id]) for item in problems}
            made = write_result_file(out, problems, said, model=f"m{place}", form=form)  # type: ignore[arg-type]
            files.append(str(made.path))
            ours[made.path.name] = {
                item.id: bool(grader.grade(item, texts[item.id]).right) for item in problems
            }
    python = os.environ.get("VLMEVALKIT_PYTHON", sys.executable)
    script = Path(__file__).with_name("vlmevalkit_grades.py")
    done = subprocess.run(
        [python, str(script), os.environ["VLMEVALKIT"], *files],
        capture_output=True, text=True, check=True, timeout=300,
    )  # fmt: skip
    theirs = json.loads(done.stdout)
    assert {name: set(rows) for name, rows in theirs.items()} == {
        n: set(r) for n, r in ours.items()
    }
    assert not [(name, row, right) for name, rows in ours.items() for row, right in rows.items()
                if theirs[name][row] != right]  # fmt: skip
    rights = [right for rows in ours.values() for right in rows.values()]
    assert any(rights)
    assert not all(rights)


def _said(item: Item, number: int) -> str:
    """Return a right answer, or one of many; but for one that VLMEvalKit calls right by mistake.

    It evaluates "a", finds its own variable of that name, which holds the right number, and so
    takes the answer "A" for the right one wherever a number is asked for (seen at e8e78f0).
    """
    right = item.letters or item.answer
    said = right if number % 2 else SAID[number % len(SAID)]
    return said if item.letters or said != "A" else "7"
