"""Whatever a server does to requests, no candidate is lost, mis-ordered or given a wrong score."""

from __future__ import annotations

import asyncio
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.scoring.vllm_double import expected_of, faulty, listen, picture, request, serving, stop
from vprm_search.errors import ScorerError
from vprm_search.scoring import VllmOptions, VllmScorer
from vprm_search.scoring.reasons import BAD_REPLY, NO_SERVER, REFUSED, SERVER_ERROR
from vprm_search.testing import Fault
from vprm_search.types import ScoreRequest, ScoreResult

QUICK = VllmOptions(
    first_wait_s=0.0, poll_s=0.01, startup_wait_s=0.3, timeout_s=5.0, max_reply_bytes=1_000_000
)
IMAGES = (picture("one"), picture("two"))

SPOILT = (
    "html",
    "nan",
    "infinity",
    "overflow",
    "out_of_range",
    "text_score",
    "fewer_paths",
    "fewer_steps",
    "no_data",
    "no_identity",
    "gzip",
    "stranger_image",
)
PASSING: list[str | Fault] = [
    *(Fault("status", status=status) for status in (408, 409, 425, 429, 500, 502, 503, 504)),
    Fault("status", status=429, retry_after=0),
    Fault("status", status=503, retry_after="Sun, 06 Nov 1994 08:49:37 GMT"),
    Fault("reset"),
    Fault("reset", reaches=True),
    Fault("truncated"),
    Fault("malformed"),
    *SPOILT,
    "forget_images",
]
LASTING = [*PASSING, "redirect", "huge", "version", Fault("status", status=404)]

STEPS = st.lists(st.sampled_from("abc"), min_size=1, max_size=4)
REQUESTS = st.lists(
    st.builds(
        lambda question, steps, count: request(question, steps, *IMAGES[:count]),
        st.sampled_from(["first?", "second?", "third?"]),
        STEPS,
        st.integers(0, 2),
    ),
    min_size=1,
    max_size=12,
)


def right(asked: list[ScoreRequest], results: list[ScoreResult]) -> bool:
    return [[s.value for s in r.scores] for r in results] == [expected_of(one) for one in asked]


@pytest.mark.slow
@given(REQUESTS, st.lists(st.sampled_from(PASSING), max_size=5), st.booleans(), st.booleans())
@settings(max_examples=40)
def test_faults_that_pass_change_nothing(
    asked: list[ScoreRequest], faults: list[str | Fault], caches: bool, twice: bool
) -> None:
    async def run() -> None:
        options = QUICK.model_copy(update={"max_attempts": 6})  # one request may get them all
        with faulty(caches=caches) as server:
            async with VllmScorer(server.url, options=options) as scorer:
                if twice:
                    assert right(asked, await scorer.score(asked))
                server.faults.extend(faults)
                assert right(asked, await scorer.score(asked))

    asyncio.run(run())


@pytest.mark.slow
@given(
    st.lists(REQUESTS, min_size=1, max_size=3),
    st.lists(st.sampled_from(LASTING), max_size=30),
    st.booleans(),
)
@settings(max_examples=40)
def test_faults_without_end_cost_scores_but_never_give_wrong_ones(
    rounds: list[list[ScoreRequest]], faults: list[str | Fault], caches: bool
) -> None:
    async def run() -> None:
        options = QUICK.model_copy(update={"max_attempts": 2})
        with faulty(caches=caches) as server:
            async with VllmScorer(server.url, options=options) as scorer:
                server.faults.extend(faults)
                for asked in rounds:
                    for one, result in zip(asked, await scorer.score(asked), strict=True):
                        assert len(result.scores) == len(one.steps) == len(result.step_tokens)
                        for score, value in zip(result.scores, expected_of(one), strict=True):
                            assert score.value == value or (score.value is None and score.reason)

    asyncio.run(run())


REASONS: list[tuple[str | Fault, str]] = [
    *((Fault("status", status=status), SERVER_ERROR) for status in (408, 429, 500, 503)),
    *((Fault("status", status=status), REFUSED) for status in (404, 403, 418)),
    (Fault("reset"), NO_SERVER),
    (Fault("truncated"), NO_SERVER),
    (Fault("malformed"), BAD_REPLY),
    *((kind, BAD_REPLY) for kind in (*SPOILT, "huge", "version")),
]


@pytest.mark.parametrize(("fault", "word"), REASONS, ids=lambda value: str(value)[:40])
async def test_a_fault_that_stays_is_a_reason_in_the_place_of_the_score(
    fault: str | Fault, word: str
) -> None:
    asked = [request("q?", ["a", "b"]), request("q?", ["a", "c"]), request("other?", ["a"])]
    options = QUICK.model_copy(update={"max_attempts": 2})
    with faulty() as server:
        async with VllmScorer(server.url, options=options) as scorer:
            server.faults.extend([fault] * 100)
            results = await scorer.score(asked)
            reasons = {score.reason.split(":")[0] for r in results for score in r.scores}
            assert reasons == {word}
            assert [len(r.scores) for r in results] == [2, 2, 1]
            server.faults.clear()
            assert right(asked, await scorer.score(asked))  # a failure is never remembered


async def test_a_path_the_server_refuses_does_not_take_the_others_with_it() -> None:
    asked = [request("q?", [f"step {n}"]) for n in range(9)]
    asked += [request("q?", ["fine", "poison", "more"]), request("q?", ["fine"])]
    for status in (400, 413, 422, 500):
        with serving() as server:
            server.refuses = lambda data, status=status: (
                status if any("poison" in path for path in data["paths"]) else None
            )
            async with VllmScorer(server.url, options=QUICK) as scorer:
                results = await scorer.score(asked)
            poisoned = results.pop(9)
            others = [one for one in asked if "poison" not in one.steps]
            assert right(others, results)
            assert [s.value for s in poisoned.scores] == [None, None, None]
            assert "refused here" in poisoned.scores[0].reason
            assert len(server.asked) <= 5 + 2 * 4 + 4


async def test_a_redirect_is_never_followed() -> None:
    image = picture("private")
    with faulty() as server:
        async with VllmScorer(server.url, options=QUICK) as scorer:
            server.faults.append("redirect")
            (result,) = await scorer.score([request("q?", ["a"], image)])
        assert result.scores[0].reason.startswith(REFUSED)
        assert server.redirected == 0


async def test_the_server_is_left_alone_as_long_as_it_asks() -> None:
    started = time.monotonic()
    with faulty() as server:
        async with VllmScorer(server.url, options=QUICK) as scorer:
            server.faults.append(Fault("status", status=429, retry_after=0.3))
            assert right([request("q?", ["a"])], await scorer.score([request("q?", ["a"])]))
        assert server.times[0] - started >= 0.3


async def test_a_wait_beyond_the_deadline_is_not_begun() -> None:
    options = QUICK.model_copy(update={"deadline_s": 20.0})
    with faulty() as server:
        async with VllmScorer(server.url, options=options) as scorer:
            server.faults.append(Fault("status", status=429, retry_after=60))
            started = time.monotonic()
            (result,) = await scorer.score([request("q?", ["a"])])
        assert time.monotonic() - started < 15
    assert "429" in result.scores[0].reason


@pytest.mark.parametrize("fault", [Fault("hang"), Fault("slow", seconds=0.2)])
async def test_a_reply_that_does_not_come_ends_with_the_attempt(fault: Fault) -> None:
    options = QUICK.model_copy(update={"timeout_s": 0.3, "max_attempts": 2})
    asked = [request("q?", ["a"]), request("slow?", ["b"])]
    with faulty() as server:
        async with VllmScorer(server.url, options=options) as scorer:
            server.faults.append(fault)
            assert right(asked, await scorer.score(asked))
            server.faults.extend([fault] * 4)
            results = await scorer.score(asked)
    assert all(r.scores[0].reason.startswith(NO_SERVER) for r in results)


async def test_the_deadline_ends_everything_and_keeps_what_is_known() -> None:
    options = QUICK.model_copy(update={"deadline_s": 1.0, "timeout_s": 60.0})
    with serving() as server:
        async with VllmScorer(server.url, options=options) as scorer:
            server.refuses = lambda data: (
                server.closing.wait(30) and None if data["question"] == "stuck?" else None
            )
            asked = [request("stuck?", ["a"]), request("quick?", ["a", "b"])]
            stuck, quick = await scorer.score(asked)
    assert stuck.scores[0].reason == f"{NO_SERVER}: no score within deadline_s=1"
    assert right(asked[1:], [quick])


async def test_cancellation_leaves_nothing_behind() -> None:
    with faulty() as server:
        async with VllmScorer(server.url, options=QUICK) as scorer:
            before = asyncio.all_tasks()
            server.faults.extend([Fault("hang", reaches=True)] * 5)
            image = picture("cancelled")
            asked = [request(f"{n}?", ["a"], image) for n in range(5)]
            task = asyncio.create_task(scorer.score(asked))
            await asyncio.to_thread(server.asked_for.wait, 30)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert asyncio.all_tasks() == before
            server.faults.clear()
            assert right(asked, await scorer.score(asked))


# --- a server that goes away -------------------------------------------------------------------


async def test_a_restarted_server_is_waited_for_and_gets_its_images_again() -> None:
    images = [picture(f"picture {n}") for n in range(8)]
    asked = [request(f"{n}?", ["a", "b"], image) for n, image in enumerate(images)]
    with serving() as server:
        listener, thread = listen(server)
        async with VllmScorer(server.url, options=QUICK) as scorer:
            assert right(asked, await scorer.score(asked))
            await asyncio.to_thread(stop, listener, thread)
            task = asyncio.create_task(scorer.score(asked))
            await asyncio.sleep(0.3)
            assert not task.done()
            server.forget()
            server.unhealthy = 5  # up, but still loading
            listener, thread = listen(server, port=listener.server_port)
            assert right(asked, await task)
            assert scorer.meter.images_resent == 8
            assert scorer.meter.server_waits <= 3  # all requests wait together
        await asyncio.to_thread(stop, listener, thread)


async def test_a_server_that_stays_away_costs_scores_not_the_search() -> None:
    options = QUICK.model_copy(update={"restart_wait_s": 0.3})
    asked = [request(f"{n}?", ["a"]) for n in range(5)]
    with serving() as server:
        listener, thread = listen(server)
        async with VllmScorer(server.url, options=options) as scorer:
            assert right(asked, await scorer.score(asked))
            await asyncio.to_thread(stop, listener, thread)
            results = await scorer.score(asked)
    assert {r.scores[0].reason.split(":")[0] for r in results} == {NO_SERVER}
    assert "not healthy after 0.3 s" in results[0].scores[0].reason


async def test_a_server_that_was_never_there_is_an_error() -> None:
    with serving() as server:
        address = server.url
    with pytest.raises(ScorerError, match="vprm-search serve"):
        await VllmScorer(address, options=QUICK).score([request("q?", ["a"])])


async def test_a_server_that_is_still_starting_is_given_its_time() -> None:
    options = QUICK.model_copy(update={"startup_wait_s": 20.0})
    with serving() as server:
        listener, thread = listen(server)
        stop(listener, thread)
        scorer = VllmScorer(server.url, options=options)
        task = asyncio.create_task(scorer.score([request("q?", ["a"])]))
        await asyncio.sleep(0.2)
        listener, thread = listen(server, port=listener.server_port)
        assert right([request("q?", ["a"])], await task)
        await scorer.aclose()
        await asyncio.to_thread(stop, listener, thread)
