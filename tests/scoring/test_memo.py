"""No step is scored twice, no score is served to the wrong request, no damage becomes a score."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.scoring.random_internvl import write_checkpoint
from vprm_search.errors import ConfigError
from vprm_search.scoring import (
    CachedScorer,
    FileScoreStore,
    MemoryScoreStore,
    TransformersScorer,
    step_keys,
)
from vprm_search.scoring.score_cache import MemoEntry
from vprm_search.types import Counts, Problem, ScoreRequest, ScoreResult, StepScore


class TextLengthScorer:
    """A user's own scorer: P is made of the text; it counts what it was asked."""

    identity = "text-length-1"

    def __init__(self, reasons: dict[str, str] | None = None) -> None:
        self.reasons = reasons or {}
        self.asked: list[ScoreRequest] = []

    async def score(self, requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
        self.asked.extend(requests)
        return [self._score(request) for request in requests]

    def _score(self, request: ScoreRequest) -> ScoreResult:
        reason = self.reasons.get(request.steps[-1] if request.steps else "")
        if reason:
            return ScoreResult.failed(len(request.steps), reason)
        seen = len(request.problem.question)
        scores = []
        for step in request.steps:
            seen += len(step)
            scores.append(StepScore(1 / (1 + seen)))
        prefix_tokens = 7 if scores else 0
        return ScoreResult(tuple(scores), prefix_tokens, tuple(len(step) for step in request.steps))


def ask(*steps: str, question: str = "q", images: tuple[str, ...] = ()) -> ScoreRequest:
    return ScoreRequest(Problem(question, images), steps)


steps = st.lists(st.sampled_from(["a", "bb", "", "c\n"]), max_size=4).map(tuple)
requests = st.builds(
    lambda path, question: ask(*path, question=question), steps, st.sampled_from(["q", "other"])
)


@given(rounds=st.lists(st.lists(requests, max_size=5), max_size=5))
async def test_a_memo_changes_no_result(rounds: list[list[ScoreRequest]]) -> None:
    memo, plain = CachedScorer(TextLengthScorer()), TextLengthScorer()
    for batch in rounds:
        assert await memo.score(batch) == await plain.score(batch)
    asked = [step_keys("m", request)[-1] for request in memo.inner.asked if request.steps]
    assert len(asked) == len(set(asked))  # no path twice


async def test_equal_requests_and_remembered_ones_cost_nothing() -> None:
    class Costly(TextLengthScorer):
        async def score(self, requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
            cost = Counts(tokens_sent=5, tokens_computed=3, images_encoded=1, forward_passes=1.0)
            return [replace(result, cost=cost) for result in await super().score(requests)]

    memo = CachedScorer(Costly())
    results = await memo.score([ask("a"), ask("bb"), ask("a")])
    assert [result.cost.tokens_computed for result in results] == [3, 3, 0]
    assert [r.cost.tokens_sent for r in await memo.score([ask("a"), ask("a")])] == [0, 0]


async def test_a_beam_search_asks_for_new_steps_only() -> None:
    memo = CachedScorer(TextLengthScorer())
    beam: list[tuple[str, ...]] = [()]
    for depth in range(5):
        children = [(*path, f"step {depth} {n}") for path in beam for n in range(3)]
        await memo.score([ask(*path) for path in children])
        beam = children[:2]
    new = len(memo.inner.asked)
    assert memo.meter.misses == 3 + 6 * 4
    await memo.score([ask(*path) for path in beam])  # the final selection
    assert len(memo.inner.asked) == new
    assert memo.meter.misses == 3 + 6 * 4


async def test_the_model_computes_nothing_for_known_steps(tmp_path: Path) -> None:
    inner = TransformersScorer.from_pretrained(write_checkpoint(tmp_path, seed=3))
    memo = CachedScorer(inner, FileScoreStore(tmp_path / "scores"))
    paths = [ask("x = 1", "y = 2", "z"), ask("x = 1", "y = 3"), ask("x = 1", "y = 2", "z")]
    first = await memo.score(paths)
    tokens, passes = inner.meter.tokens_computed, inner.meter.forward_passes
    assert (tokens > 0, passes) == (True, 1)
    assert await memo.score([*paths, ask("x = 1")]) == [
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
    memo = CachedScorer(TextLengthScorer(reasons))
    for _ in range(3):
        for last in reasons:
            (result,) = await memo.score([ask("a", last)])
            assert result == ScoreResult.failed(2, reasons[last])
    asked = [request.steps[-1] for request in memo.inner.asked]
    assert asked == ["long", "nan", "oom", "nan", "oom", "nan", "oom"]
    (longer, shorter) = await memo.score([ask("a", "long", "b"), ask("a")])
    assert longer == ScoreResult.failed(3, reasons["long"])  # its prefix can never be scored
    assert shorter.scores == (StepScore(1 / 3),)


async def test_a_tiny_memory_forgets_but_stays_right() -> None:
    memo, plain = CachedScorer(TextLengthScorer(), MemoryScoreStore(2)), TextLengthScorer()
    paths = [ask("a", "b", "c"), ask("a", "d"), ask("e"), ask("a", "b", "c", "d", "e")]
    for _ in range(3):
        assert await memo.score(paths) == await plain.score(paths)
    assert len(memo.store) == 2


def test_a_scorer_without_identity_is_refused() -> None:
    class Nameless(TextLengthScorer):
        identity = ""

    with pytest.raises(ConfigError, match="identity"):
        CachedScorer(Nameless())
    assert CachedScorer(Nameless(), identity="mine").identity == "mine"


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

ENTRIES = {f"{n:064x}": MemoEntry(n / 7, "", n, n + 1) for n in range(3)}
ENTRIES["f" * 64] = MemoEntry(None, "too_long: 9 of 8", 0, 0)


def written(path: Path) -> FileScoreStore:
    store = FileScoreStore(path)
    for key, entry in ENTRIES.items():
        store.put(key, entry)
    return store


def test_a_file_gives_back_what_it_was_given(tmp_path: Path) -> None:
    written(tmp_path / "scores")
    store = FileScoreStore(tmp_path / "scores")
    assert {key: store.get(key) for key in ENTRIES} == ENTRIES
    assert stat.S_IMODE(os.stat(tmp_path / "scores").st_mode) == 0o600


def test_every_flipped_bit_and_every_cut_is_a_miss(tmp_path: Path) -> None:
    path = tmp_path / "scores"
    written(path)
    whole = path.read_bytes()
    for at in range(len(whole)):
        for damaged in (
            whole[:at],
            whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :],
        ):
            path.write_bytes(damaged)
            store = FileScoreStore(path)
            found = {key: entry for key in ENTRIES if (entry := store.get(key)) is not None}
            assert found.items() <= ENTRIES.items()
            assert len(store) == len(found)  # nothing under a key that was never written


def test_a_file_cut_in_mid_line_can_be_continued(tmp_path: Path) -> None:
    path = tmp_path / "scores"
    written(path)
    path.write_bytes(path.read_bytes()[:-5])
    store = FileScoreStore(path)
    assert store.get("f" * 64) is None
    store.put("f" * 64, ENTRIES["f" * 64])
    assert FileScoreStore(path).get("f" * 64) == ENTRIES["f" * 64]


def test_a_file_does_not_grow_without_bound(tmp_path: Path) -> None:
    path = tmp_path / "scores"
    store = FileScoreStore(path, max_entries=5)
    for n in range(30):
        store.put(f"{n}", MemoEntry(0.5, "", n, n))
        store.put(f"{n}", MemoEntry(0.5, "", n, n))
    assert path.read_bytes().count(b"\n") == 30
    again = FileScoreStore(path, max_entries=5)
    assert path.read_bytes().count(b"\n") == 5
    assert [again.get(f"{n}") is not None for n in range(24, 30)] == [False, *[True] * 5]


def test_two_processes_may_share_a_file(tmp_path: Path) -> None:
    one, two = FileScoreStore(tmp_path / "scores"), FileScoreStore(tmp_path / "scores")
    for n in range(20):
        (one if n % 2 else two).put(f"{n}", MemoEntry(0.25, "", n, n))
    assert len(FileScoreStore(tmp_path / "scores")) == 20


@pytest.mark.parametrize("value", ["NaN", "2", "-1", '"x"'])
def test_a_well_formed_line_with_a_senseless_score_is_a_miss(tmp_path: Path, value: str) -> None:
    from vprm_search.scoring.score_cache import _checksum

    text = f'["k", {value}, "", 1, 1]'
    (tmp_path / "scores").write_text(f"{_checksum(text)} {text}\n")
    assert FileScoreStore(tmp_path / "scores").get("k") is None


def test_bounds_are_checked() -> None:
    with pytest.raises(ConfigError, match="max_entries is 0"):
        MemoryScoreStore(0)
