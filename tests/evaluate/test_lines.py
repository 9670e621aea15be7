"""Files that only grow: what was cut is dropped, what failed never hides what did not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.evaluate.conftest import run_all, write_set
from vprm_search.errors import RecordError
from vprm_search.evaluate.candidates import CandidateFile
from vprm_search.evaluate.folder import RunFolder
from vprm_search.evaluate.grading import GradeFile
from vprm_search.evaluate.lines import Keyed, KeyedLines, Line
from vprm_search.evaluate.scoring import ScoreFile
from vprm_search.evaluate.stages import Stages

LINES = st.lists(
    st.fixed_dictionaries(
        {
            "row": st.integers(1, 3),
            "index": st.integers(0, 2),
            "text": st.text(max_size=6),
            "error": st.sampled_from(["", "", "lost"]),
        }
    ),
    max_size=12,
)


class Shape(Keyed):
    error: str


def opened(path: Path, run: str = "r") -> KeyedLines:
    return KeyedLines(path, Shape, run, lambda line: bool(line["error"]))


def expected(lines: list[Line]) -> dict[tuple[int, int], Line]:
    """Return by the rule itself what counts: the last line, one that failed only if all did."""
    found: dict[tuple[int, int], Line] = {}
    for line in lines:
        key = line["row"], line["index"]
        if not line["error"] or found.get(key, line)["error"]:
            found[key] = line
    return found


def held(file: KeyedLines) -> dict[tuple[int, int], Line]:
    return {(row, index): {k: v for k, v in line.items() if k not in ("run", "left")}
            for row in (1, 2, 3) for index, line in file.of(row).items()}  # fmt: skip


@settings(max_examples=40)  # each waits for the disk
@given(calls=st.lists(LINES, max_size=3), after=LINES, data=st.data())
def test_whatever_a_crash_leaves_is_whole_calls(
    calls: list[list[Line]], after: list[Line], data: st.DataObject
) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "lines.jsonl"
        path.touch()
        ends = {0: 0}  # of the calls in bytes: how many lines there are by then
        for call in calls:
            opened(path).append(call)
            ends[path.stat().st_size] = list(ends.values())[-1] + len(call)
        whole = path.read_bytes()
        cut = data.draw(st.integers(0, len(whole)))
        path.write_bytes(whole[:cut])
        kept = [line for call in calls for line in call]
        kept = kept[: max(lines for end, lines in ends.items() if end <= cut)]
        file = opened(path)
        assert held(file) == expected(kept)
        assert path.read_bytes() == whole[:cut]  # reading writes nothing
        file.append(after)
        assert held(file) == expected(kept + after)
        again = opened(path)
        assert held(again) == expected(kept + after)
        failed = {key for key, line in expected(kept + after).items() if line["error"]}
        assert again.failures == len(failed)
        assert all(again.has(*key) != (key in failed) for key in held(again))


@settings(max_examples=15)  # each waits for the disk
@given(calls=st.lists(st.tuples(st.integers(0, 2), LINES, st.integers(0, 400)), max_size=5))
def test_who_writes_one_file_side_by_side_reads_the_others_lines(
    calls: list[tuple[int, list[Line], int]],
) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "lines.jsonl"
        path.touch()
        files, kept = [opened(path) for _ in range(3)], list[Line]()
        for writer, call, torn in calls:
            files[writer].append(call)
            kept += call
            assert not call or held(files[writer]) == expected(kept)
            other = Path(folder) / "other.jsonl"  # what another process was killed in the middle of
            opened(other).append([{"row": 1, "index": n, "error": ""} for n in range(4)])
            cut = other.read_bytes()[:torn]
            whole = cut.count(b"\n") == 4
            other.unlink()
            if call and not whole:
                with path.open("ab") as file:
                    file.write(cut)
        for file in files:
            file.append([{"row": 3, "index": 2, "error": ""}])
            kept.append({"row": 3, "index": 2, "error": ""})
            assert held(file) == expected(kept)
        assert held(opened(path)) == expected(kept)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{}\n", "line 2: damaged"),
        (b"no json\n", "line 2: damaged"),
        (b'{"run": "r", "left": 0, "row": "1", "index": 0, "error": ""}\n', "row: Input should be"),
        (b"[" * 100_000 + b"\n", "line 2: damaged"),
        (
            b'{"run": "other", "left": 0, "row": 1, "index": 0, "error": ""}\n',
            "made with other settings",
        ),
    ],
)
def test_a_damaged_or_foreign_line_is_named(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "lines.jsonl"
    good = json.dumps({"run": "r", "left": 0, "row": 1, "index": 0, "error": ""}).encode() + b"\n"
    path.write_bytes(good + line)
    with pytest.raises(RecordError, match=message):
        opened(path)


def test_files_of_one_run_may_be_joined(tmp_path: Path) -> None:
    parts = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for row, part in enumerate(parts, start=1):
        opened(part).append([{"row": row, "index": 0, "error": ""}])
    whole = tmp_path / "whole.jsonl"
    whole.write_bytes(b"".join(part.read_bytes() for part in parts))
    assert sorted(held(opened(whole))) == [(1, 0), (2, 0)]


def test_a_joined_file_that_ends_in_the_middle_of_a_call_loses_only_its_own_last_one(
    tmp_path: Path,
) -> None:
    parts = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for row, part in enumerate(parts, start=1):
        opened(part).append([{"row": row, "index": index, "error": ""} for index in range(3)])
        part.write_bytes(b"".join(part.read_bytes().splitlines(keepends=True)[:2]))
    whole = tmp_path / "whole.jsonl"
    whole.write_bytes(b"".join(part.read_bytes() for part in parts))
    file = opened(whole)
    assert sorted(held(file)) == [(1, 0), (1, 1)]
    file.append([{"row": 2, "index": 0, "error": ""}])
    assert sorted(held(opened(whole))) == [(1, 0), (1, 1), (2, 0)]


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    stages = Stages(write_set(folder / "set.jsonl", 1), RunFolder(folder), 2)
    asyncio.run(run_all(stages))
    return folder


FILES: dict[str, Callable[[Path, RunFolder], object]] = {
    "candidates.jsonl": lambda path, made: CandidateFile(path, made.facts("candidates") or {}),
    "scores-prm.jsonl": lambda path, made: ScoreFile(path, "prm", made.facts("critic prm") or {}),
    "grades-sameness.jsonl": lambda path, made: GradeFile(
        path, "sameness", made.facts("grader sameness") or {}
    ),
}
NO_VALUE = st.sampled_from([[[]], {"a": []}, True, float("nan"), "\0"])  # of no field


@given(name=st.sampled_from(sorted(FILES)), data=st.data())
def test_a_line_that_lacks_a_field_or_has_a_strange_one_is_refused_when_the_file_is_opened(
    whole_run: Path, name: str, data: st.DataObject
) -> None:
    first, second = (whole_run / name).read_text().splitlines(keepends=True)
    line = json.loads(second)
    field = data.draw(st.sampled_from(sorted(set(line) - {"right"})))
    if data.draw(st.booleans()):
        del line[field]
    elif isinstance(line[field], str):
        line[field] = data.draw(st.sampled_from([1, True, [], {}]))
    else:
        line[field] = data.draw(NO_VALUE)
    with TemporaryDirectory() as folder:
        path = Path(folder)
        (path / name).write_text(first + json.dumps(line) + "\n")
        with pytest.raises(RecordError, match=rf"{name}, line 2: (damaged|it was made)"):
            FILES[name](path, RunFolder(whole_run))


def test_a_text_that_is_no_unicode_is_kept_as_far_as_it_is(tmp_path: Path) -> None:
    file = opened(tmp_path / "lines.jsonl")
    file.append([{"row": 1, "index": 0, "error": "HTTP 400: \ud800."}])
    assert opened(file.path).of(1)[0]["error"] == "HTTP 400: ?."


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_named_with_the_file() -> None:
    file = opened(Path("/dev/null"))
    file.path = Path("/dev/full")
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
        file.append([{"row": 1, "index": 0, "error": ""}])
