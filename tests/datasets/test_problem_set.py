"""Sets in every format: the same problems, whatever they were written in."""

from __future__ import annotations

import base64
import csv
import json
import tracemalloc
from pathlib import Path

import pyarrow
import pytest

from examples.tiny_models.problem_files import choices_for, draw, png_of, write_problems
from vprm_search.datasets.problem_set import ProblemSet, read_problem_set
from vprm_search.errors import ImageError, InputError, RecordError
from vprm_search.images.normalise import normalise_image
from vprm_search.tiny.world import render

WORLD = draw(9)


@pytest.mark.parametrize("choices", [False, True])
@pytest.mark.parametrize("ending", [".tsv", ".jsonl", ".parquet"])
def test_the_world_is_read_back_from_every_format(
    ending: str, choices: bool, tmp_path: Path
) -> None:
    path = tmp_path / f"world{ending}"
    write_problems(path, WORLD, choices=choices)
    found = read_problem_set(path)
    assert len(found) == len(WORLD)
    for read, problem in zip(found, WORLD, strict=True):
        loaded = found.load(read)
        assert loaded.images == (normalise_image(render(problem)),)
        assert loaded.problem.images == (loaded.images[0].digest,)
        assert read.question.startswith(problem.question)
        assert read.category == problem.family
        if choices:
            assert read.choices == choices_for(problem)
            assert read.choices["ABCD".index(read.letters)] == problem.answer
            assert f"\n({read.letters}) {problem.answer}" in read.question
        else:
            assert (read.answer, read.answer_type) == (problem.answer, "integer")
            assert read.choices == ()


def test_rows_are_read_again_in_any_order(tmp_path: Path) -> None:
    for ending in (".tsv", ".jsonl", ".parquet"):
        write_problems(tmp_path / f"world{ending}", WORLD)
        found = read_problem_set(tmp_path / f"world{ending}")
        for place in (5, 2, 8, 0, 1):
            assert found.row(found[place])["question"] == WORLD[place].question
            assert found.load(found[place]).images == (normalise_image(render(WORLD[place])),)


def test_an_arrow_folder_as_datasets_saves_it(tmp_path: Path) -> None:
    schema = pyarrow.schema([("problem", pyarrow.string()), ("answer", pyarrow.string())])
    for number in range(2):
        rows = [{"problem": f"{number}+{n}?", "answer": str(number + n)} for n in range(3)]
        table = pyarrow.Table.from_pylist(rows, schema)
        target = tmp_path / f"data-0000{number}-of-00002.arrow"
        with pyarrow.OSFile(str(target), "wb") as sink:
            new = pyarrow.ipc.new_stream if number == 0 else pyarrow.ipc.new_file
            with new(sink, schema) as writer:
                writer.write_table(table)
    (tmp_path / "state.json").write_text("{}")
    found = read_problem_set(tmp_path)
    assert [item.answer for item in found] == ["0", "1", "2", "1", "2", "3"]
    assert found.row(found[4])["problem"] == "1+1?"


# --- TSV as VLMEvalKit has it --------------------------------------------------------------------


def tsv(path: Path, rows: list[dict[str, str]], name: str = "set.tsv") -> Path:
    file = path / name
    with file.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.DictWriter(opened, list(rows[0]), delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return file


def base64_of(place: int) -> str:
    return base64.b64encode(png_of(WORLD[place])).decode()


def row(index: int, image: str, **others: str) -> dict[str, str]:
    return {"index": str(index), "image": image, "question": f"q{index}", "answer": "1", **others}


def test_references_lists_and_rows_without_a_picture(tmp_path: Path) -> None:
    both = str([base64_of(0), base64_of(1)])
    file = tsv(
        tmp_path,
        [
            row(3, base64_of(0)),
            row(4, "3"),
            {**row(5, both), "question": "<image 2> before <image 1>"},
            row(6, ""),
        ],
    )
    found = read_problem_set(file)
    first, again, two, none = found
    assert found.load(first).images == found.load(again).images
    ordered = tuple(normalise_image(render(WORLD[n])) for n in (1, 0))
    assert found.load(two).images == ordered
    assert two.question == "<image> before <image>"
    assert found.load(none).images == ()


def test_a_cell_with_line_breaks_quotes_and_tabs(tmp_path: Path) -> None:
    said = 'one\n"two"\tthree\r\nfour'
    file = tsv(tmp_path, [{**row(1, ""), "question": said}, row(2, "")])
    found = read_problem_set(file)
    assert [item.question for item in found] == [said, "q2"]
    assert found.row(found[1])["question"] == "q2"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": "99"}, "row 2, column image: '99' is neither a picture nor the index of a row"),
        ({"question": " "}, "row 2, column question: it is empty"),
        (
            {"question": "<image> <image>"},
            "row 2, column question: marks <image>: 2, but pictures: 0",
        ),
        ({"A": "", "B": "x"}, "row 2, column A…: choice A is empty, and choice B is not"),
    ],
)
def test_an_error_names_file_row_and_column(
    change: dict[str, str], message: str, tmp_path: Path
) -> None:
    plain = {**row(1, ""), "A": "", "B": ""}
    file = tsv(tmp_path, [plain, {**plain, "index": "2", **change}])
    with pytest.raises(RecordError) as caught:
        read_problem_set(file)
    assert str(caught.value).startswith(str(file))
    assert message in str(caught.value)


def test_a_list_of_choices_that_is_none(tmp_path: Path) -> None:
    file = tsv(tmp_path, [{**row(1, ""), "choices": "[open('x')]"}])
    with pytest.raises(RecordError, match="row 1, column choices: not a"):
        read_problem_set(file)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tsv", "index\tquestion\n1\n", "row 1: cells: 1, but columns: 2"),
        ("a.tsv", "question\tanswer\n", "holds no problems"),
        ("a.jsonl", '{"question": 1}\n[1]\n', "row 2: expected a JSON object, got list"),
        ("a.jsonl", "{\n", "row 1: not JSON"),
        ("a.json", '{"a": 1}', "expected a list of objects"),
        ("a.json", "[1]", "row 1: expected a JSON object"),
        ("a.txt", "", "not a kind of file that is read"),
        ("a.parquet", "PAR", "damaged"),
    ],
)
def test_damaged_files(name: str, content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(RecordError, match=message):
        read_problem_set(tmp_path / name)


def test_text_that_is_not_utf_8(tmp_path: Path) -> None:
    file = tmp_path / "a.tsv"
    file.write_bytes(b"question\tanswer\nwhat\xff\t1\n")
    with pytest.raises(RecordError, match="line 2: byte 20 of the file is not UTF-8"):
        read_problem_set(file)


# --- pictures in files ---------------------------------------------------------------------------


def lines(path: Path, *rows: dict[str, object]) -> Path:
    file = path / "set.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return file


def test_pictures_that_are_missing_are_told_before_anything_runs(tmp_path: Path) -> None:
    asked = {"question": "q", "answer": "1", "image": ["images/a.png", "images/b.png"]}
    file = lines(tmp_path, {"question": "q", "answer": "1"}, asked)
    with pytest.raises(
        ImageError, match=r"pictures that are not under .*: 2, the first in row 2, column image: im"
    ):
        read_problem_set(file)
    assert len(read_problem_set(file, check_images=False).missing) == 2
    with pytest.raises(ImageError, match="no such folder of pictures"):
        read_problem_set(file, image_root=tmp_path / "nowhere")
    root = tmp_path / "elsewhere" / "images"
    root.mkdir(parents=True)
    for name, problem in (("a.png", WORLD[0]), ("b.png", WORLD[1])):
        (root / name).write_bytes(png_of(problem))
    found = read_problem_set(file, image_root=root.parent)
    assert len(found.load(found[1]).images) == 2


@pytest.mark.parametrize("path", ["http://example.org/a.png", "//host/a.png"])
def test_nothing_is_fetched(path: str, tmp_path: Path) -> None:
    file = lines(tmp_path, {"question": "q", "answer": "1", "image": path})
    with pytest.raises(ImageError, match=r"row 1, column image: .*looks like a URL"):
        read_problem_set(file)


def test_a_picture_outside_the_root_is_refused(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "a.png").write_bytes(png_of(WORLD[0]))
    file = lines(tmp_path, {"question": "q", "answer": "1", "image": "../a.png"})
    found = read_problem_set(file, image_root=tmp_path / "root")
    with pytest.raises(ImageError, match=r"row 1, column image .*outside the image root"):
        found.load(found[0])


def test_a_broken_picture_names_its_row(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    file = lines(tmp_path, {"question": "q", "answer": "1", "image": "a.png"})
    found = read_problem_set(file)
    with pytest.raises(ImageError, match=r"row 1, column image \(a.png\): .*not a readable"):
        found.load(found[0])


# --- the official forms --------------------------------------------------------------------------


def only(path: Path, **told: object) -> ProblemSet:
    return read_problem_set(lines(path, told), check_images=False)


def test_we_math_and_dynamath_have_groups(tmp_path: Path) -> None:
    math = only(
        tmp_path,
        ID="3stpes_1", key="3steps_multi", question="How long?", answer="B",
        option="A. 3; B. 4; C. 5; D. No correct answer", image_path="1.png",
    )  # fmt: skip
    assert math.name == "wemath"
    assert (math[0].group, math[0].variant, math[0].letters) == ("3stpes_1", "3steps_multi", "B")
    assert math[0].choices == ("3", "4", "5", "No correct answer")
    dyna = only(tmp_path, qid=4, varid=2, question="q", answer="1.5", answer_type="float")
    assert (dyna.name, dyna[0].group, dyna[0].variant) == ("dynamath", "4", "2")


def test_mathvista_publishes_texts_and_mmmu_lists(tmp_path: Path) -> None:
    vista = only(
        tmp_path, pid="1", question="q", answer="no", choices=["yes", "no"], unit=None,
        answer_type="text", question_type="multi_choice", precision=None,
    )  # fmt: skip
    assert (vista.name, vista[0].letters, vista[0].answer_type) == ("mathvista", "B", "choice")
    mmmu = only(tmp_path, id="validation_Chemistry_30", question="q", answer=["$MgS$", "MgS"])
    assert (mmmu.name, mmmu[0].answer, mmmu[0].also) == ("mmmu", "$MgS$", ("MgS",))
    assert mmmu[0].category == "Chemistry"


def test_a_short_answer_of_mmmu_may_be_a_letter(tmp_path: Path) -> None:
    asked = only(tmp_path, id="validation_Art_1", question="Which base?", answer="C", options="[]")
    assert (asked[0].letters, asked[0].answer_type) == ("", "text")


@pytest.mark.parametrize("answer", ["B, D", "B and D", "b and d", "D & B", "(B) (D)", "B;D."])
def test_logicvista_may_ask_for_several_letters(tmp_path: Path, answer: str) -> None:
    asked = only(tmp_path, imagename="v1_1.png", skill=["a"], question="q", answer=answer)
    assert (asked.name, asked[0].letters, asked[0].answer_type) == ("logicvista", "BD", "choices")


def test_an_object_of_objects_is_read_by_id(tmp_path: Path) -> None:
    file = tmp_path / "testmini.json"
    file.write_text(json.dumps({"7": {"question": "q", "answer": None}}))
    found = read_problem_set(file)
    assert (found[0].id, found[0].answer_type) == ("7", "none")


def test_a_repeated_id_is_kept_and_told_apart(tmp_path: Path) -> None:
    asked = {"id": "x", "question": "q", "answer": "1"}
    assert [i.id for i in read_problem_set(lines(tmp_path, asked, asked))] == ["x", "x#2"]


def test_pictures_stay_in_the_file(tmp_path: Path) -> None:
    size = 60_000  # characters of a picture; 18 MB of pictures in the file
    picture = base64.b64encode(b"\x89PNG" + bytes(size * 3 // 4)).decode()
    file = tsv(tmp_path, [row(n, picture) for n in range(300)])
    tracemalloc.start()
    found = read_problem_set(file)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found) == 300
    assert peak < 3_000_000


@pytest.mark.parametrize("ending", [".tsv", ".jsonl", ".parquet"])
def test_endings_may_be_in_capitals(ending: str, tmp_path: Path) -> None:
    write_problems(tmp_path / f"world{ending}", WORLD[:2])
    shouted = (tmp_path / f"world{ending}").rename(tmp_path / f"WORLD{ending.upper()}")
    found = read_problem_set(shouted)
    assert [item.answer for item in found] == [problem.answer for problem in WORLD[:2]]
    assert len(found.load(found[1]).images) == 1


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_json_that_is_nested_without_end_is_an_error(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text('{"question": ' + "[" * 200_000)
    with pytest.raises(RecordError, match="not JSON"):
        read_problem_set(tmp_path / name)


def test_an_answer_type_error_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_problem_set(tmp_path / "nowhere.tsv")
