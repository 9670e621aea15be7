"""Which failures are repeated, how long a client waits, and how a reply is read."""

from __future__ import annotations

import json
import random
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tenacity import AsyncRetrying, Future, RetryCallState

from vprm_search.scoring import VllmOptions
from vprm_search.scoring.reasons import is_permanent
from vprm_search.scoring.vllm.contract import ScoresReply
from vprm_search.scoring.vllm.plugin_route import scores_reader
from vprm_search.scoring.vllm.round import ImagesMissing
from vprm_search.scoring.vllm.transport import Pause, RequestFailed, failed_reply, failed_transport

AGAIN = {408, 409, 425, 429, *range(500, 600)}


@given(st.integers(300, 599))
def test_only_failures_that_may_pass_are_repeated(status: int) -> None:
    failure = failed_reply(httpx.Response(status), "text")
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


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [({"Retry-After": "7"}, 7), ({"retry-after": "9", "retry-after-ms": "250"}, 0.25), ({}, None)],
)
def test_a_reply_tells_how_long_to_wait(headers: dict[str, str], seconds: float | None) -> None:
    failure = failed_reply(httpx.Response(503, headers=headers), "busy")
    assert failure.wait_s == seconds
    assert failure.gone == ("Retry-After" not in httpx.Headers(headers))


@given(st.integers(1, 900), st.integers(0, 2**32), st.none() | st.floats(0, 1e9))
def test_pauses_are_bounded_and_drawn_from_the_seed(
    attempt: int, seed: int, asked: float | None
) -> None:
    options = VllmOptions()
    state = RetryCallState(AsyncRetrying(), None, (), {})
    state.attempt_number = attempt
    state.outcome = Future(attempt)
    state.outcome.set_exception(RequestFailed("server_error", "x", again=True, wait_s=asked))
    first, second = (Pause(options, random.Random(seed))(state) for _ in "ab")
    assert first == second
    if asked is not None:
        assert first == min(asked, options.longest_retry_after_s)
    else:
        full = min(options.longest_wait_s, options.first_wait_s * 2 ** (attempt - 1))
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
    found = READ(reply(GOOD))
    assert (found.scores, found.prefix_tokens, found.identity) == ([[0.5, None], [1]], 3, "m")
    assert (found.step_tokens, found.failures) == ([[4, 5], [4]], {})
    failures = {"1": "too_long: 9 tokens", "0": "sudden"}
    assert READ(reply({**GOOD, "failures": failures})).failures == failures
    with pytest.raises(ImagesMissing) as missing:
        READ(reply({"version": 1, "missing_images": ["sha256-2"]}))
    assert missing.value.digests == ["sha256-2"]


@given(st.dictionaries(FIELDS, JSON, min_size=1, max_size=3))
def test_a_changed_reply_is_read_strictly_or_refused(changes: dict[str, Any]) -> None:
    found: ScoresReply | None = None
    missing: set[str] = set()
    try:
        found = READ(reply({**GOOD, **changes}))
    except ImagesMissing as error:
        missing = set(error.digests)
    except RequestFailed:
        pass
    assert missing <= {"sha256-1", "sha256-2"}
    if found is None:
        return
    assert [len(row) for row in found.scores] == [2, 1]
    assert [len(row) for row in found.step_tokens] == [2, 1]
    assert set(found.failures) <= {"0", "1"}
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
