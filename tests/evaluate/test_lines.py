"""Files that only grow: what was cut is dropped, what failed never hides what did not."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vprm_search.errors import RecordError
from vprm_search.evaluate.lines import KeyedLines, Line

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


def opened(path: Path, run: str = "r") -> KeyedLines:
    return KeyedLines(path, run, lambda line: bool(line["error"]))


def expected(lines: list[Line]) -> dict[tuple[int, int], Line]:
    """Return by the rule itself what counts: the last line, one that failed only if all did."""
    found: dict[tuple[int, int], Line] = {}
    for line in lines:
        key = line["row"], line["index"]
        if not line["error"] or found.get(key, line)["error"]:
            found[key] = line
    return found


def held(file: KeyedLines) -> dict[tuple[int, int], Line]:
    return {(row, index): {k: v for k, v in line.items() if k != "run"}
            for row in (1, 2, 3) for index, line in file.of(row).items()}  # fmt: skip


@settings(max_examples=40)  # each waits for the disk
@given(before=LINES, after=LINES, data=st.data())
def test_whatever_a_crash_leaves_is_whole_lines(
    before: list[Line], after: list[Line], data: st.DataObject
) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "lines.jsonl"
        opened(path).append(before)
        whole = path.read_bytes() if before else b""
        cut = data.draw(st.integers(0, len(whole)))
        path.write_bytes(whole[:cut])
        kept = before[: whole[:cut].count(b"\n")]
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


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{}\n", "line 2: damaged"),
        (b"no json\n", "line 2: damaged"),
        (b'{"run": "r", "row": "1", "index": 0, "error": ""}\n', "row and index must be"),
        (b'{"run": "other", "row": 1, "index": 0, "error": ""}\n', "made with other settings"),
    ],
)
def test_a_damaged_or_foreign_line_is_named(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "lines.jsonl"
    good = json.dumps({"run": "r", "row": 1, "index": 0, "error": ""}).encode() + b"\n"
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
