"""No step is scored twice, no score is served to the wrong request, no damage becomes a score."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.scoring.random_internvl import write_checkpoint
from vprm_search.errors import ConfigError, RecordError
from vprm_search.scoring import (
    CachedScorer,
    FileScoreStore,
    MemoryScoreStore,
    TransformersScorer,
    step_keys,
)
from vprm_search.scoring.score_cache import StoredScore
from vprm_search.testing import ScriptedScorer
from vprm_search.types import Counts, Problem, ScoreRequest, ScoreResult, StepScore


def by_length(request: ScoreRequest) -> float:
    """P is made of the text."""
    return 1 / (1 + len(request.problem.question) + sum(map(len, request.steps)))


def scorer(identity: str = "text-length-1") -> ScriptedScorer:
    return ScriptedScorer(by_length, identity=identity)


def ask(*steps: str, question: str = "q", images: tuple[str, ...] = ()) -> ScoreRequest:
    return ScoreRequest(Problem(question, images), steps)


steps = st.lists(st.sampled_from(["a", "bb", "", "c\n"]), max_size=4).map(tuple)
requests = st.builds(
    lambda path, question: ask(*path, question=question), steps, st.sampled_from(["q", "other"])
)


@given(rounds=st.lists(st.lists(requests, max_size=5), max_size=5))
async def test_a_cache_changes_no_result(rounds: list[list[ScoreRequest]]) -> None:
    cache, plain = CachedScorer(scorer()), scorer()
    for batch in rounds:
        assert await cache.score(batch) == await plain.score(batch)
    asked = [step_keys("m", request)[-1] for request in cache.inner.asked if request.steps]
    assert len(asked) == len(set(asked))  # no path twice


async def test_equal_requests_and_remembered_ones_cost_nothing() -> None:
    class Costly(ScriptedScorer):
        async def score(self, requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
            cost = Counts(tokens_sent=5, tokens_computed=3, images_encoded=1, forward_passes=1.0)
            return [replace(result, cost=cost) for result in await super().score(requests)]

    cache = CachedScorer(Costly(by_length))
    results = await cache.score([ask("a"), ask("bb"), ask("a")])
    assert [result.cost.tokens_computed for result in results] == [3, 3, 0]
    assert [r.cost.tokens_sent for r in await cache.score([ask("a"), ask("a")])] == [0, 0]


async def test_a_beam_search_asks_for_new_steps_only() -> None:
    cache = CachedScorer(scorer())
    beam: list[tuple[str, ...]] = [()]
    for depth in range(5):
        children = [(*path, f"step {depth} {n}") for path in beam for n in range(3)]
        await cache.score([ask(*path) for path in children])
        beam = children[:2]
    new = len(cache.inner.asked)
    assert cache.meter.misses == 3 + 6 * 4
    await cache.score([ask(*path) for path in beam])  # the final selection
    assert len(cache.inner.asked) == new
    assert cache.meter.misses == 3 + 6 * 4


async def test_the_model_computes_nothing_for_known_steps(tmp_path: Path) -> None:
    inner = TransformersScorer.from_pretrained(write_checkpoint(tmp_path, seed=3))
    cache = CachedScorer(inner, FileScoreStore(tmp_path / "scores"))
    paths = [ask("x = 1", "y = 2", "z"), ask("x = 1", "y = 3"), ask("x = 1", "y = 2", "z")]
    first = await cache.score(paths)
    tokens, passes = inner.meter.tokens_computed, inner.meter.forward_passes
    assert (tokens > 0, passes) == (True, 1)
    assert await cache.score([*paths, ask("x = 1")]) == [
        *first,
        ScoreResult(first[0].scores[:1], first[0].prefix_tokens, first[0].step_tokens[:1]),
    ]
    resumed = CachedScorer(
        TransformersScorer.from_pretrained(tmp_path), FileScoreStore(tmp_path / "scores")
    )
    assert await resumed.score(paths) == first
    assert resumed.inner.meter.tokens_computed == 0
    assert inner.meter.tokens_computed == tokens


async def test_another_model_layout_or_precision_shares_nothing(tmp_path: Path) -> None:
    from vprm_search.scoring import PrmLayout

    one = write_checkpoint(tmp_path / "one", seed=3)
    two = write_checkpoint(tmp_path / "two", seed=4)
    identities = {
        TransformersScorer.from_pretrained(one).identity,
        TransformersScorer.from_pretrained(two).identity,
        TransformersScorer.from_pretrained(one, dtype="bfloat16").identity,
        TransformersScorer.from_pretrained(one, layout=PrmLayout(system_prompt="x")).identity,
    }
    assert len(identities) == 4
    again = TransformersScorer.from_pretrained(one)
    assert again.identity in identities


async def test_only_final_failures_are_remembered() -> None:
    reasons = {"long": "too_long: 9 of 8", "nan": "not_finite: x", "oom": "out_of_memory: x"}

    class Failing(ScriptedScorer):
        async def score(self, requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
            return [
                ScoreResult.failed(len(r.steps), reasons[r.steps[-1]])
                if r.steps[-1] in reasons
                else result
                for r, result in zip(requests, await super().score(requests), strict=True)
            ]

    cache = CachedScorer(Failing(by_length))
    for _ in range(3):
        for last in reasons:
            (result,) = await cache.score([ask("a", last)])
            assert result == ScoreResult.failed(2, reasons[last])
    asked = [request.steps[-1] for request in cache.inner.asked]
    assert asked == ["long", "nan", "oom", "nan", "oom", "nan", "oom"]
    (longer, shorter) = await cache.score([ask("a", "long", "b"), ask("a")])
    assert longer == ScoreResult.failed(3, reasons["long"])  # its prefix can never be scored
    assert shorter.scores == (StepScore(1 / 3),)


async def test_a_tiny_memory_forgets_but_stays_right() -> None:
    cache, plain = CachedScorer(scorer(), MemoryScoreStore(2)), scorer()
    paths = [ask("a", "b", "c"), ask("a", "d"), ask("e"), ask("a", "b", "c", "d", "e")]
    for _ in range(3):
        assert await cache.score(paths) == await plain.score(paths)
    assert len(cache.store) == 2


def test_a_scorer_without_identity_is_refused() -> None:
    with pytest.raises(ConfigError, match="identity"):
        CachedScorer(scorer(""))
    assert CachedScorer(scorer(""), identity="mine").identity == "mine"


texts = st.text(max_size=4)
any_request = st.builds(
    lambda q, system, images, path: ScoreRequest(Problem(q, tuple(images), system), tuple(path)),
    texts,
    texts,
    st.lists(texts, max_size=2),
    st.lists(texts, min_size=1, max_size=3),
)


@given(texts, any_request, texts, any_request)
@settings(max_examples=200)
def test_keys_are_injective(one: str, left: ScoreRequest, other: str, right: ScoreRequest) -> None:
    same = (one, left) == (other, right)
    assert (step_keys(one, left)[-1] == step_keys(other, right)[-1]) == same


def test_keys_do_not_move_with_the_borders_between_texts() -> None:
    joined = [
        ScoreRequest(Problem("ab", ("c",), "d"), ("e", "f")),
        ScoreRequest(Problem("a", ("bc",), "d"), ("e", "f")),
        ScoreRequest(Problem("ab", ("c", "d"), ""), ("e", "f")),
        ScoreRequest(Problem("ab", ("c",), "d"), ("ef", "")),
        ScoreRequest(Problem("ab", ("c",), "d"), ("", "ef")),
        ScoreRequest(Problem("ab", (), "cd"), ("e", "f")),
        ScoreRequest(Problem("ab", ("c",), "d"), ("ef",)),
    ]
    assert len({step_keys("m", request)[-1] for request in joined}) == len(joined)
    assert step_keys("m", ask("a", "b"))[0] == step_keys("m", ask("a"))[0]


# --- the file ------------------------------------------------------------------------------------

ENTRIES = {f"{n:064x}": StoredScore(n / 7, "", n, n + 1) for n in range(3)}
ENTRIES["f" * 64] = StoredScore(None, "too_long: 9 of 8", 0, 0)
ENTRIES["e" * 64] = StoredScore(1, "", 3, 1)
V01 = Path(__file__).parents[1] / "corpus" / "v0.1" / "scores" / "scores.jsonl"


def written(path: Path) -> FileScoreStore:
    store = FileScoreStore(path)
    for key, entry in ENTRIES.items():
        store.put(key, entry)
    return store


def test_a_file_gives_back_what_it_was_given(tmp_path: Path) -> None:
    written(tmp_path / "scores").close()
    store = FileScoreStore(tmp_path / "scores")
    assert {key: store.get(key) for key in ENTRIES} == ENTRIES
    assert len(store) == len(ENTRIES)
    assert store.get("0") is None
    assert stat.S_IMODE(os.stat(tmp_path / "scores").st_mode) == 0o600
    store.put("e" * 64, StoredScore(0.5, "", 3, 1))
    assert store.get("e" * 64) == StoredScore(0.5, "", 3, 1)


@given(place=st.integers(0, 1 << 20), bit=st.integers(0, 7), cut=st.booleans())
@settings(max_examples=150)
def test_damage_is_a_miss_or_a_typed_error_never_another_score(
    tmp_path_factory: pytest.TempPathFactory, place: int, bit: int, cut: bool
) -> None:
    path = tmp_path_factory.mktemp("damage") / "scores"
    store = written(path)
    store._db.execute("PRAGMA journal_mode = DELETE")  # all of it in one file
    store.close()
    whole = path.read_bytes()
    at = place % len(whole)
    flipped = whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :]
    path.write_bytes(whole[:at] if cut else flipped)
    with contextlib.suppress(RecordError):
        store = FileScoreStore(path)
        for key in ENTRIES:
            with contextlib.suppress(RecordError):
                assert store.get(key) in (None, ENTRIES[key])


@pytest.mark.parametrize(
    "content",
    [b"SQLite format 3\0" + b"x" * 4000, b"\x00\x01", b"my diary\n", b'{"scores": []}'],
)
def test_a_file_of_another_kind_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "scores"
    path.write_bytes(content)
    with pytest.raises(RecordError, match="give another path, or move the file away"):
        FileScoreStore(path)
    assert path.read_bytes() == content
    assert not (tmp_path / "scores.v0.1.jsonl").exists()


def test_another_programs_and_a_later_versions_database_are_refused(tmp_path: Path) -> None:
    for name, script in (
        ("other", "CREATE TABLE notes (text)"),
        (
            "later",
            "PRAGMA application_id = 0x7670726d; PRAGMA user_version = 2; CREATE TABLE s (x)",
        ),
    ):
        with sqlite3.connect(tmp_path / name) as db:
            db.executescript(script)
        db.close()
    with pytest.raises(RecordError, match="another program"):
        FileScoreStore(tmp_path / "other")
    with pytest.raises(RecordError, match="schema 2 of a later version"):
        FileScoreStore(tmp_path / "later")


def test_a_folder_that_is_not_there_is_a_typed_error(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="cannot be used"):
        FileScoreStore(tmp_path / "nowhere" / "scores")


def test_a_file_of_version_0_1_is_taken_over_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "scores"
    lines = V01.read_bytes()
    path.write_bytes(lines + b"0123456789abcdef [damaged\n" + lines[:40])
    old = path.read_bytes()
    store = FileScoreStore(path)
    expected = {row[0]: StoredScore(*row[1:]) for row in map(_json_of, lines.splitlines())}
    assert {key: store.get(key) for key in expected} == expected
    assert len(store) == len(expected)
    assert (tmp_path / "scores.v0.1.jsonl").read_bytes() == old
    store.put("k", StoredScore(0.5, "", 1, 1))
    store.close()
    assert len(FileScoreStore(path)) == len(expected) + 1
    assert {file.name.removesuffix("-wal").removesuffix("-shm") for file in tmp_path.iterdir()} == {
        "scores",
        "scores.v0.1.jsonl",
    }


def _json_of(line: bytes) -> list[Any]:
    return json.loads(line.split(b" ", 1)[1])


def test_a_file_does_not_grow_without_bound(tmp_path: Path) -> None:
    path = tmp_path / "scores"
    store = FileScoreStore(path, max_entries=5)
    for n in range(30):
        store.put(f"{n}", StoredScore(0.5, "", n, n))
        store.put(f"{n}", StoredScore(0.5, "", n, n))
    assert len(store) == 5
    assert [store.get(f"{n}") is not None for n in range(24, 30)] == [False, *[True] * 5]


WRITE = """
import sys
from vprm_search.scoring.score_cache import FileScoreStore, StoredScore
store = FileScoreStore(sys.argv[1])
for n in range(100):
    store.put(f"{sys.argv[2]}-{n}", StoredScore(n / 100, "", n, n))
    store.put(f"shared-{n}", StoredScore(n / 100, "", n, n))
    assert store.get(f"shared-{n}") == StoredScore(n / 100, "", n, n)
"""


@pytest.mark.parametrize("before", [b"", V01.read_bytes()])
def test_several_processes_may_share_a_file(tmp_path: Path, before: bytes) -> None:
    path = tmp_path / "scores"
    path.write_bytes(before)
    others = [subprocess.Popen([sys.executable, "-c", WRITE, str(path), str(n)]) for n in range(3)]
    assert [other.wait(120) for other in others] == [0, 0, 0]
    assert len(FileScoreStore(path)) == 400 + before.count(b"\n")


def test_a_store_goes_on_in_a_forked_process(tmp_path: Path) -> None:
    store = written(tmp_path / "scores")
    child = os.fork()
    if not child:
        store.put("child", StoredScore(0.25, "", 1, 1))
        os._exit(0 if store.get("f" * 64) == ENTRIES["f" * 64] else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert store.get("child") == StoredScore(0.25, "", 1, 1)


def test_bounds_are_checked() -> None:
    with pytest.raises(ConfigError, match="max_entries is 0"):
        MemoryScoreStore(0)
    with pytest.raises(ConfigError, match="max_entries is 0"):
        FileScoreStore("scores", 0)
