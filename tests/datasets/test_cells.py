"""What stands in cells: lists, choices, pictures, marks."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vprm_search.datasets.cells import (
    MARK,
    Picture,
    as_list,
    column_choices,
    interleaved,
    lettered_choices,
    picture_bytes,
    pictures_in,
)

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\x00\r\n"), max_size=12)
ITEMS = st.lists(TEXT.filter(lambda text: text.strip() == text and text not in ("nan",)))


@given(ITEMS)
def test_a_list_is_read_as_json_python_or_numpy_wrote_it(items: list[str]) -> None:
    assert as_list(json.dumps(items)) == items
    assert as_list(repr(items)) == items
    assert as_list("[" + " ".join(map(repr, items)) + "]") == items  # numpy's, without commas
    assert as_list(items) == items


@pytest.mark.parametrize(
    ("cell", "items"),
    [
        ("[2014, 2016]", ["2014", "2016"]),
        ("[-1.5, 2]", ["-1.5", "2"]),
        ("['a' 'b']", ["a", "b"]),
        (r"['$\\frac{1}{2}$', 'x']", [r"$\frac{1}{2}$", "x"]),
        ("", []),
        ("nan", []),
        (None, []),
        (float("nan"), []),
    ],
)
def test_lists(cell: object, items: list[str]) -> None:
    assert as_list(cell) == items


@pytest.mark.parametrize("cell", ["a, b", "[__import__('os')]", "[f(x)]", "[[1], [2]", "['a"])
def test_what_is_no_list_is_never_evaluated(cell: str) -> None:
    with pytest.raises(ValueError, match="list"):
        as_list(cell)


def test_choices_in_columns() -> None:
    assert column_choices({"A": "1", "B": 2, "C": "", "question": "x"}) == ("1", "2")
    assert column_choices({"question": "x"}) == ()
    with pytest.raises(ValueError, match="choice B is empty, and choice C is not"):
        column_choices({"A": "1", "B": " ", "C": "3"})


@pytest.mark.parametrize(
    ("text", "choices"),
    [
        ("A. 3; B. 4; C. No correct answer", ("3", "4", "No correct answer")),  # We-Math
        ("A) 3\nB) 4", ("3", "4")),
        ("Point A. lies on B. and C. does not", ()),
        ("(A) and (C) are parallel", ()),
        ("A. alone", ()),
    ],
)
def test_choices_in_a_cell(text: str, choices: tuple[str, ...]) -> None:
    assert lettered_choices(text) == choices


PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 2).decode()


def test_pictures_in_their_forms() -> None:
    def of(value: object) -> list[Picture]:
        return pictures_in(value, 7, "image", references=True)

    assert of(PNG) == [Picture(7, "image", 0)]
    assert of(f"data:image/png;base64,{PNG}") == [Picture(7, "image", 0)]
    assert of(str([PNG, PNG])) == [Picture(7, "image", 0), Picture(7, "image", 1)]
    assert of("12") == of(12) == [Picture(7, "image", 0, index="12")]
    assert of("images/12.png") == [Picture(7, "image", 0, path="images/12.png")]
    assert of("['a.png', 'b.jpg']") == [
        Picture(7, "image", 0, path="a.png"),
        Picture(7, "image", 1, path="b.jpg"),
    ]
    assert of({"bytes": b"\x89PNG", "path": None}) == [Picture(7, "image", 0)]
    assert of({"bytes": None, "path": "a.png"}) == [Picture(7, "image", 0, path="a.png")]
    assert of("") == of(None) == of([]) == of("nan") == []
    assert picture_bytes(str([PNG, PNG]), 1) == PNG
    with pytest.raises(ValueError, match="not float"):
        of(1.5)


@pytest.mark.parametrize(
    ("text", "pictures", "read", "order"),
    [
        ("<image 1> and <image 2>?", 2, f"{MARK} and {MARK}?", (0, 1)),
        ("<image2> or <image1>?", 2, f"{MARK} or {MARK}?", (1, 0)),
        ("<image 1>, again <image 1>", 1, f"{MARK}, again image 1", (0,)),
        ("the ant <image1> and <image7>", 1, "the ant <image1> and <image7>", (0,)),
        ("no mark", 2, "no mark", (0, 1)),
        ("only <image 2> here", 2, f"{MARK}\nonly {MARK} here", (0, 1)),
        (f"see {MARK}", 1, f"see {MARK}", (0,)),
        (f"see {MARK}", 2, f"{MARK}\nsee {MARK}", (0, 1)),
        ("text alone", 0, "text alone", ()),
    ],
)
def test_marks(text: str, pictures: int, read: str, order: tuple[int, ...]) -> None:
    assert interleaved(text, pictures) == (read, order)


@given(
    st.lists(st.sampled_from(["<image 1>", "<image2>", "<image 3>", "a", " b "]), max_size=8),
    st.integers(0, 3),
)
def test_every_picture_has_its_place(parts: list[str], pictures: int) -> None:
    text, order = interleaved("".join(parts), pictures)
    assert sorted(order) == list(range(pictures))
    assert text.count(MARK) in (0, pictures)


def test_more_marks_than_pictures_are_an_error() -> None:
    with pytest.raises(ValueError, match="marks <image>: 2, but pictures: 1"):
        interleaved(f"{MARK} {MARK}", 1)
