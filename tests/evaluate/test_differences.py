"""Where two runs differ: every problem once, each kind, and a page on which text stays text."""

from __future__ import annotations

import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.evaluate.pools import pooled
from vprm_search.datasets.problem_set import ProblemSet, read_problem_set
from vprm_search.errors import RecordError
from vprm_search.evaluate.differences import KINDS, compared, markdown, page
from vprm_search.evaluate.pool import PooledProblem

EVIL = '<img src=x onerror=alert(1)> </pre><script>alert("2")</script> | & \u202e'


def run(answers: str) -> list[PooledProblem]:
    return [pooled(letter, name=f"p{n}") if letter != "0" else pooled("", name=f"p{n}")
            for n, letter in enumerate(answers)]  # fmt: skip


def differ(first: list[PooledProblem], second: list[PooledProblem]):  # type: ignore[no-untyped-def]
    return compared(first, second, selectors=("pass@1", "pass@1"), sizes=(1, 1))


@given(st.lists(st.tuples(st.sampled_from("abc0"), st.sampled_from("abc0")), min_size=1))
@settings(max_examples=60, deadline=None)
def test_every_problem_is_the_same_or_of_one_kind(pairs: list[tuple[str, str]]) -> None:
    first, second = ("".join(side) for side in zip(*pairs, strict=True))
    found = differ(run(first), run(second))
    told = {one.id: one.kind for one in found.differences}
    assert len(told) == len(found.differences)
    assert [KINDS.index(one.kind) for one in found.differences] == sorted(
        KINDS.index(one.kind) for one in found.differences
    )
    for number, (one, other) in enumerate(pairs):
        kind = told.get(f"p{number}")
        if one == other:
            assert kind is None
        elif "a" in (one, other):
            assert kind == KINDS[0 if one == "a" else 1]
        else:
            assert kind == KINDS[2]
    assert found.gain["mean"] == pytest.approx(found.accuracy[1] - found.accuracy[0])
    back = differ(run(second), run(first))
    assert back.gain["mean"] == pytest.approx(-found.gain["mean"])
    assert json.loads(json.dumps(found.to_json())) == found.to_json()
    assert markdown(found, ("one", "two")).count("\n| p") == len(told) + 1


def test_runs_without_a_common_problem_are_told_how_many_each_has() -> None:
    said = "in common with N = 4 and 2 candidates: 2 in the first, 0 in the second"
    with pytest.raises(RecordError, match=said):
        compared(run("aa"), [], selectors=("pass@1", "pass@1"), sizes=(4, 2))


def test_problems_of_one_run_alone_are_counted() -> None:
    found = differ(run("aab"), run("ab")[:1])
    assert (found.problems, found.apart) == (1, 2)
    with pytest.raises(RecordError, match="no problem in common"):
        differ(run("a"), [replace(run("a")[0], id="other")])


def test_text_of_runs_stays_in_its_cell() -> None:
    first, second = run("ab"), run("ba")
    first[0] = replace(first[0], candidates=(replace(first[0].candidates[0], answer=EVIL),))
    text = markdown(differ(first, second), (EVIL, "two"))
    assert "<img" not in text
    assert "<script" not in text


class Tags(HTMLParser):
    """The tags of a page with their attributes, and all its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert not any(name.startswith("on") for name, _ in attrs)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def problems(tmp_path: Path) -> ProblemSet:
    from PIL import Image

    Image.new("RGB", (8, 8), "red").save(tmp_path / "red.png")
    rows = [{"id": f"p{n}", "question": f"{EVIL} <image>", "answer": "a", "image": "red.png"}
            for n in range(3)]  # fmt: skip
    path = tmp_path / "set.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_problem_set(path)


def test_the_page_shows_pictures_and_both_solutions_as_text(
    problems: ProblemSet, tmp_path: Path
) -> None:
    first, second = run("aab"), run("bac")
    evil = replace(first[0].candidates[0], text=EVIL, answer=EVIL)
    first[0] = replace(first[0], candidates=(evil,))
    made = page(differ(first, second), problems, (EVIL, "two"))
    read = Tags(made)
    assert "script" not in read.tags
    assert read.tags.count("article") == 2  # p0 and p2
    assert len(read.sources) == read.tags.count("img") == 2
    assert all(source.startswith("data:image/png;base64,") for source in read.sources)
    assert 'alert("2")' in read.text
    assert "Step 1: so it is b." in read.text
    assert "\u202e" not in made
    assert "shown are 1 of 2" in page(differ(first, second), problems, ("1", "2"), limit=1)
    (tmp_path / "red.png").unlink()
    assert "red.png" in page(differ(first, second), problems, ("1", "2"))
