"""Which failures are repeated, how long a client waits, and how a reply is read."""

from __future__ import annotations

import json
import random
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vprm_search.scoring import VllmOptions
from vprm_search.scoring.reasons import is_permanent
from vprm_search.scoring.vllm.failures import (
    RequestFailed,
    failed_reply,
    failed_transport,
    pause_s,
    retry_after,
)
from vprm_search.scoring.vllm.reply import MissingImages, PluginScores, scores_reader

AGAIN = {408, 409, 425, 429, *range(500, 600)}


@given(st.integers(300, 599))
def test_only_failures_that_may_pass_are_repeated(status: int) -> None:
    failure = failed_reply(status, "text", httpx.Headers())
    assert failure.again == (status in AGAIN)
    assert failure.gone == (status in (502, 503, 504))
    assert not is_permanent(failure.reason)


@pytest.mark.parametrize(
    ("error", "gone"),
    [
        (httpx.ConnectError("refused"), True),
        (httpx.ReadError("reset"), True),
        (httpx.RemoteProtocolError("cut"), True),
        (httpx.ConnectTimeout(""), True),
        (httpx.ReadTimeout(""), False),
        (TimeoutError(), False),
        (ConnectionResetError(), True),
    ],
)
def test_a_broken_connection_is_repeated_and_a_lost_server_waited_for(
    error: Exception, gone: bool
) -> None:
    failure = failed_transport(error)
    assert (failure.again, failure.gone, failure.status) == (True, gone, 0)


@given(st.floats(0, 1e6))
def test_retry_after_in_seconds_and_milliseconds(seconds: float) -> None:
    assert retry_after(httpx.Headers({"Retry-After": repr(seconds)})) == seconds
    both = httpx.Headers({"retry-after": "9", "retry-after-ms": repr(seconds)})
    assert retry_after(both) == pytest.approx(seconds / 1000)


@given(st.integers(-100_000, 100_000))
def test_retry_after_as_a_date(seconds: int) -> None:
    moment = datetime.now(UTC) + timedelta(seconds=seconds)
    found = retry_after(httpx.Headers({"retry-after": format_datetime(moment, usegmt=True)}))
    assert found is not None
    assert found == pytest.approx(max(0, seconds), abs=5)


@given(st.text(st.characters(codec="ascii", exclude_categories=["Cc"])))
def test_any_other_retry_after_is_no_wait_and_no_error(text: str) -> None:
    found = retry_after(httpx.Headers({"retry-after": text}))
    assert found is None or found >= 0


@given(st.integers(1, 2000), st.integers(0, 2**32), st.none() | st.floats(0, 1e9))
def test_pauses_are_bounded_and_drawn_from_the_seed(
    attempt: int, seed: int, asked: float | None
) -> None:
    options = VllmOptions()
    failure = RequestFailed("server_error", "x", again=True, wait_s=asked)
    first, second = (pause_s(failure, attempt, options, random.Random(seed)) for _ in "ab")
    assert first == second
    if asked is not None:
        assert first == min(asked, options.longest_retry_after_s)
    else:
        full = min(options.longest_wait_s, options.first_wait_s * 2 ** min(attempt - 1, 60))
        assert full / 2 <= first <= full


# --- replies -----------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
GOOD = {
    "version": 1,
    "scores": [[0.5, None], [1]],
    "prefix_tokens": 3,
    "step_tokens": [[4, 5], [4]],
    "identity": "m",
}
FIELDS = st.sampled_from([*GOOD, "failures", "missing_images"])
READ = scores_reader([["a", "b"], ["a"]], ["sha256-1", "sha256-2"])


def reply(data: Any) -> bytes:
    return json.dumps({"request_id": "r", "data": data}).encode()


def test_a_good_reply_is_read() -> None:
    assert READ(reply(GOOD)) == PluginScores(((0.5, None), (1,)), 3, ((4, 5), (4,)), "m", {})
    failures = {**GOOD, "failures": {"1": "too_long: 9 tokens", "0": "sudden"}}
    found = READ(reply(failures))
    assert isinstance(found, PluginScores)
    assert found.failures == {1: "too_long: 9 tokens", 0: "bad_input: sudden"}
    missing = {"version": 1, "missing_images": ["sha256-2"]}
    assert READ(reply(missing)) == MissingImages(("sha256-2",))


@given(st.dictionaries(FIELDS, JSON, min_size=1, max_size=3))
def test_a_changed_reply_is_read_strictly_or_refused(changes: dict[str, Any]) -> None:
    found: PluginScores | MissingImages | None = None
    with suppress(RequestFailed):
        found = READ(reply({**GOOD, **changes}))
    if found is None:
        return
    if isinstance(found, MissingImages):
        assert found.digests
        assert set(found.digests) <= {"sha256-1", "sha256-2"}
        return
    assert [len(row) for row in found.scores] == [2, 1]
    assert [len(row) for row in found.step_tokens] == [2, 1]
    values = [value for row in found.scores for value in row if value is not None]
    assert all(type(value) in (int, float) and 0 <= value <= 1 for value in values)


@given(st.binary(max_size=80) | st.text(max_size=80).map(str.encode))
def test_bytes_that_are_no_reply_are_refused(body: bytes) -> None:
    with pytest.raises(RequestFailed, match="bad_reply"):
        READ(body)


@given(st.integers(0, 200), st.data())
def test_a_cut_reply_is_refused(cut: int, data: st.DataObject) -> None:
    body = reply(GOOD)
    with pytest.raises(RequestFailed, match="bad_reply"):
        READ(body[: min(cut, len(body) - 1)])


def test_a_deep_reply_is_refused() -> None:
    with pytest.raises(RequestFailed, match="bad_reply"):
        READ(b"[" * 200_000)
