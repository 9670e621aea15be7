"""Which failures are repeated, how long is waited, and what may be said about them."""

from __future__ import annotations

import asyncio
import email.utils
import time
from typing import Any

import httpx
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.runnables import RunnableLambda
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from vprm_search.chat.calls import BoundedCalls, RetryRules
from vprm_search.chat.failures import explain, is_retryable, retry_after, secrets_of

REQUEST = httpx.Request("POST", "http://127.0.0.1/v1")


def http_error(status: int, **headers: str) -> Exception:
    response = httpx.Response(status, headers=headers, request=REQUEST)
    return httpx.HTTPStatusError("failed", request=REQUEST, response=response)


def openai_error(status: int, code: str | None = None) -> Exception:
    response = httpx.Response(status, request=REQUEST)
    return openai.APIStatusError("failed", response=response, body={"code": code})


@given(st.integers(100, 599))
def test_status_decides(status: int) -> None:
    expected = status in (408, 409, 425, 429) or status >= 500
    assert is_retryable(http_error(status)) is expected


@pytest.mark.parametrize("status", [400, 401, 403, 404, 408, 409, 422, 429, 500, 503])
def test_openai_errors(status: int) -> None:
    assert is_retryable(openai_error(status)) is (status in (408, 409, 429, 500, 503))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (TimeoutError(), True),
        (ConnectionResetError(), True),
        (ConnectionRefusedError(), True),
        (httpx.ReadTimeout("x"), True),
        (httpx.ConnectError("x"), True),
        (httpx.RemoteProtocolError("x"), True),
        (openai.APIConnectionError(request=REQUEST), True),
        (openai.APITimeoutError(request=REQUEST), True),
        (openai_error(429, "insufficient_quota"), False),
        (ValueError("x"), False),
        (RuntimeError("x"), False),
        (FileNotFoundError("x"), False),
        (KeyError("x"), False),
    ],
    ids=repr,
)
def test_other_errors(error: Exception, expected: bool) -> None:
    assert is_retryable(error) is expected


def test_the_cause_counts_when_the_error_says_nothing() -> None:
    try:
        try:
            raise http_error(503)
        except httpx.HTTPError as cause:
            raise RuntimeError("wrapped") from cause
    except RuntimeError as error:
        wrapped = error
    assert is_retryable(wrapped)


def test_a_cancellation_is_never_a_failure_to_repeat() -> None:
    """Not even one that comes while a timeout is handled."""

    async def attempt() -> None:
        attempts.append(1)
        try:
            raise TimeoutError
        except TimeoutError:
            await asyncio.Event().wait()

    async def main() -> None:
        task = asyncio.create_task(
            BoundedCalls(RetryRules(first_wait_s=0, max_attempts=2), 1)(attempt)
        )
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task], timeout=10)
        assert task.cancelled()

    attempts: list[int] = []
    asyncio.run(main())
    assert len(attempts) == 1


@given(st.integers(0, 100_000))
def test_retry_after_in_numbers(value: int) -> None:
    assert retry_after(http_error(429, **{"retry-after": str(value)})) == value
    assert retry_after(http_error(429, **{"Retry-After-Ms": str(value)})) == value / 1000


def test_retry_after_as_a_date() -> None:
    later = email.utils.formatdate(time.time() + 30, usegmt=True)
    wait = retry_after(http_error(503, **{"retry-after": later}))
    assert wait is not None
    assert 25 < wait <= 31
    past = email.utils.formatdate(time.time() - 30, usegmt=True)
    assert retry_after(http_error(503, **{"retry-after": past})) == 0


@pytest.mark.parametrize("value", ["", "soon", "-3", "nan", "inf", "1e99"])
def test_nonsense_in_retry_after_is_ignored(value: str) -> None:
    assert retry_after(http_error(429, **{"retry-after": value})) is None
    assert retry_after(ValueError()) is None


def run(answers: list[Any], jitter: float = 1.0, **rules: Any) -> Any:
    """Call with scripted answers; return the outcome and the pauses that were made."""
    todo = iter(answers)
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def attempt() -> Any:
        answer = next(todo)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    async def noted_sleep(seconds: float) -> None:
        pauses.append(seconds)
        await sleep(0)

    async def main() -> Any:
        return await BoundedCalls(RetryRules(**rules), 1)(attempt, jitter=jitter)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncio, "sleep", noted_sleep)
        return asyncio.run(main()), pauses


def test_pauses_double_up_to_a_limit() -> None:
    outcome, pauses = run([http_error(500)] * 5 + ["ok"], max_attempts=6, longest_wait_s=3)
    assert (outcome.value, outcome.error, outcome.attempts) == ("ok", None, 6)
    assert pauses == [0.5, 1, 2, 3, 3]


def test_a_servers_wish_is_obeyed() -> None:
    outcome, pauses = run([http_error(429, **{"retry-after": "7"}), "ok"])
    assert (outcome.value, pauses) == ("ok", [7.0])


def test_a_wish_beyond_the_deadline_ends_the_call_at_once() -> None:
    outcome, pauses = run([http_error(429, **{"retry-after": "400"}), "ok"], deadline_s=300)
    assert (outcome.value, outcome.attempts, pauses) == (None, 1, [])


@given(st.integers(1, 6))
def test_attempts_are_limited(limit: int) -> None:
    outcome, pauses = run([http_error(503)] * 10, max_attempts=limit, first_wait_s=0)
    assert (outcome.attempts, len(pauses)) == (limit, limit - 1)
    assert outcome.error is not None


def test_jitter_shortens_pauses_by_up_to_a_half() -> None:
    for jitter, expected in ((0.0, [0.25, 0.5]), (0.5, [0.375, 0.75]), (1.0, [0.5, 1.0])):
        _, pauses = run([http_error(500)] * 2 + ["ok"], jitter=jitter)
        assert pauses == expected


@pytest.mark.parametrize("calls", [1, 3])
def test_at_most_so_many_calls_at_a_time_in_each_event_loop(calls: int) -> None:
    running, most = 0, 0

    async def attempt() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1

    async def main() -> None:
        await asyncio.gather(*(bounded(attempt) for _ in range(10)))

    bounded = BoundedCalls(RetryRules(), calls)
    for _ in range(2):  # in another event loop the slots are new
        asyncio.run(main())
    assert (running, most) == (0, calls)


def test_failures_for_good_are_not_repeated() -> None:
    outcome, pauses = run([http_error(401), "ok"])
    assert (outcome.attempts, pauses) == (1, [])


# --- what may be said ----------------------------------------------------------------------------

KEY = "vprm-canary-key-0123456789"


@pytest.mark.parametrize(
    "text",
    [
        "Incorrect API key provided: sk-abcDEF123456789.",
        "Authorization: Bearer abcdefgh12345678",
        "http://user:hunter22@127.0.0.1/v1 refused",
        "https://x.org/v1?key=AIzaSyD-1234567890abcdefghij failed",
        f"my key is {KEY}!",
    ],
)
def test_secrets_do_not_reach_texts(text: str) -> None:
    said = explain(ValueError(text), [KEY])
    for secret in ("abcDEF123456789", "abcdefgh12345678", "hunter22", "AIzaSyD", KEY):
        assert secret not in said
    assert "[secret]" in said


def test_ordinary_texts_are_kept_on_one_line_and_short() -> None:
    assert explain(ValueError("a\n b")) == "ValueError: a b"
    assert len(explain(ValueError("x" * 5000))) < 320
    assert explain(TimeoutError()) == "TimeoutError: no reply within the time limit"


def test_a_models_secret_fields_are_known() -> None:
    model = ChatOpenAI(model="m", api_key=SecretStr(KEY), base_url="http://127.0.0.1/v1")
    assert secrets_of(model) == (KEY,)


@pytest.mark.parametrize(("own", "of_run", "most"), [(4, 2, 2), (2, 9, 2), (4, None, 4), (4, 0, 1)])
async def test_the_concurrency_of_a_runs_config_holds(
    own: int, of_run: int | None, most: int
) -> None:
    running, seen = 0, 0

    async def attempt() -> None:
        nonlocal running, seen
        running += 1
        seen = max(seen, running)
        await asyncio.sleep(0.001)
        running -= 1

    bounded = BoundedCalls(RetryRules(), own)

    async def run(_: Any) -> None:
        await asyncio.gather(*(bounded(attempt) for _ in range(12)))

    config: Any = {} if of_run is None else {"max_concurrency": of_run}
    await RunnableLambda(lambda _: None, afunc=run).ainvoke(None, config)
    assert seen == most
