"""Concurrent callers share forward passes; their failures and cancellations stay their own."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.scoring.random_internvl import write_checkpoint
from tests.scoring.test_oracle import PICTURES, as_request
from vprm_search.scoring import TransformersScorer
from vprm_search.scoring.engine.call_queue import CallQueue
from vprm_search.scoring.engine.checkpoint import PrmCheckpoint, load_checkpoint
from vprm_search.types import ScoreRequest

WAIT = 30


class Work:
    """Doubles numbers when it is let; -1 fails, and takes down what is computed with it."""

    def __init__(self) -> None:
        self.turns: list[list[int]] = []
        self.started = threading.Event()
        self.go = threading.Event()

    def __call__(self, numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
        self.turns.append(list(numbers))
        self.started.set()
        assert self.go.wait(WAIT)
        if -1 in numbers:
            raise ValueError("minus one")
        yield from ((index, 2 * number) for index, number in enumerate(numbers))


def busy(window_s: float) -> tuple[CallQueue[int, int], Work, Future[int]]:
    """Return a queue whose worker is held up by a first call."""
    work = Work()
    queue = CallQueue(work, window_s)
    first = queue.submit(0)
    assert work.started.wait(WAIT)
    return queue, work, first


def test_calls_that_arrive_meanwhile_are_computed_together() -> None:
    queue, work, first = busy(60.0)
    later = [queue.submit(n) for n in range(1, 6)]
    work.go.set()
    assert [call.result(WAIT) for call in (first, *later)] == [0, 2, 4, 6, 8, 10]
    assert work.turns == [[0], [1, 2, 3, 4, 5]]


def test_without_a_window_every_call_is_computed_alone() -> None:
    queue, work, _ = busy(0.0)
    later = [queue.submit(n) for n in range(1, 4)]
    work.go.set()
    assert [call.result(WAIT) for call in later] == [2, 4, 6]
    assert work.turns == [[0], [1], [2], [3]]


def test_a_lone_caller_starts_at_once() -> None:
    work = Work()
    work.go.set()
    queue = CallQueue(work, 3600.0)  # whoever waits for the window waits an hour
    for n in range(4):
        assert queue.submit(n).result(WAIT) == 2 * n


def test_callers_in_step_are_waited_for_until_they_are_all_there() -> None:
    queue, work, _ = busy(3600.0)
    together = [queue.submit(n) for n in (1, 2)]
    work.go.set()
    assert [call.result(WAIT) for call in together] == [2, 4]
    third = queue.submit(3)  # waits for a second caller, since the last turn had two
    fourth = queue.submit(4)
    assert [third.result(WAIT), fourth.result(WAIT)] == [6, 8]
    assert work.turns == [[0], [1, 2], [3, 4]]


def test_one_who_does_not_come_back_is_not_waited_for_twice() -> None:
    queue, work, _ = busy(0.01)
    together = [queue.submit(n) for n in (1, 2)]
    work.go.set()
    assert [call.result(WAIT) for call in together] == [2, 4]
    assert queue.submit(3).result(WAIT) == 6
    assert queue._served == 1


def test_a_failure_reaches_its_own_caller_only() -> None:
    queue, work, _ = busy(0.01)
    good, bad, other = queue.submit(1), queue.submit(-1), queue.submit(2)
    work.go.set()
    assert (good.result(WAIT), other.result(WAIT)) == (2, 4)
    with pytest.raises(ValueError, match="minus one"):
        bad.result(WAIT)
    assert queue.submit(-1).exception(WAIT) is not None  # alone, too
    assert queue.submit(5).result(WAIT) == 10  # and the worker lives


def test_a_cancelled_call_is_left_out_and_harms_nobody() -> None:
    queue, work, first = busy(60.0)
    good, gone = queue.submit(1), queue.submit(7)
    assert gone.cancel()
    assert not first.cancel()  # it runs already
    work.go.set()
    assert (first.result(WAIT), good.result(WAIT)) == (0, 2)
    assert work.turns == [[0], [1]]


# --- the scorer -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model"), seed=3)


@pytest.fixture
def checkpoint(path: Path) -> PrmCheckpoint:
    return load_checkpoint(path)


def ask(number: int) -> ScoreRequest:
    return as_request(f"What is {number}?", PICTURES[number % 3 :][:1], ("x = 1", f"x = {number}"))


class Gate:
    """Holds the first forward pass until it is opened."""

    def __init__(self, scorer: TransformersScorer) -> None:
        self.reached = threading.Event()
        self.open = threading.Event()
        scorer.checkpoint.language_model.norm.register_forward_pre_hook(self._pass)

    def _pass(self, module: torch.nn.Module, args: object) -> None:
        self.reached.set()
        assert self.open.wait(WAIT)


def close(left: float | None, right: float | None) -> bool:
    return left == pytest.approx(right, abs=1e-5)


def in_threads(tasks: Sequence[Callable[[], object]]) -> None:
    threads = [threading.Thread(target=task) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
        assert not thread.is_alive()


def test_searches_in_threads_and_event_loops_share_a_pass(checkpoint: PrmCheckpoint) -> None:
    alone = TransformersScorer(checkpoint, prefix_cache_bytes=0)
    wanted = [alone.score_sync([ask(n)])[0] for n in range(7)]
    scorer = TransformersScorer(checkpoint)
    gate = Gate(scorer)
    found: dict[int, object] = {}
    held = threading.Thread(target=lambda: found.update({0: scorer.score_sync([ask(0)])[0]}))
    held.start()
    assert gate.reached.wait(WAIT)

    def synchronous(n: int) -> None:
        found[n] = scorer.score_sync([ask(n)])[0]

    def looped(first: int) -> None:
        async def both() -> None:
            replies = await asyncio.gather(*(scorer.score([ask(n)]) for n in (first, first + 1)))
            found.update({first + k: reply[0] for k, reply in enumerate(replies)})

        asyncio.run(both())

    def release() -> None:
        while len(scorer._queue._waiting) < 6:
            threading.Event().wait(0.001)
        gate.open.set()

    in_threads(
        [
            *(partial(synchronous, n) for n in (1, 2)),
            *(partial(looped, n) for n in (3, 5)),
            release,
        ]
    )
    held.join(WAIT)
    assert scorer.meter.forward_passes == 2  # the first alone, the six others together
    for number, result in enumerate(wanted):
        got = found[number]
        assert all(
            close(a.value, b.value)
            for a, b in zip(got.scores, result.scores, strict=True)  # type: ignore[attr-defined]
        )
        share = got.cost.forward_passes  # type: ignore[attr-defined]
        assert share == pytest.approx(1 if number == 0 else 1 / 6)


async def test_a_cancelled_search_does_not_harm_the_others(checkpoint: PrmCheckpoint) -> None:
    scorer = TransformersScorer(checkpoint)
    gate = Gate(scorer)
    first = asyncio.create_task(scorer.score([ask(0)]))
    await asyncio.to_thread(gate.reached.wait, WAIT)
    second, third = (asyncio.create_task(scorer.score([ask(n)])) for n in (1, 2))
    await asyncio.sleep(0)
    first.cancel()
    second.cancel()
    await asyncio.wait([second])  # the event loop has to deliver it before the queue is read
    gate.open.set()
    assert (await third)[0].scores[1].value is not None
    assert first.cancelled() or (await asyncio.wait([first]))[0]
    assert scorer.meter.requests == 2  # the one that ran, and the third
    again = await scorer.score([ask(0)])
    assert again[0].cost.tokens_computed == 0  # what the cancelled call computed is not lost


async def test_passes_of_an_abandoned_search_are_not_made(checkpoint: PrmCheckpoint) -> None:
    """A process whose time is up does not stay until all is scored; others lose nothing."""
    scorer = TransformersScorer(checkpoint, max_batch_tokens=1)  # a pass for every path
    gate = Gate(scorer)
    long = asyncio.create_task(scorer.score([ask(number) for number in range(5)]))
    await asyncio.to_thread(gate.reached.wait, WAIT)
    long.cancel()
    await asyncio.wait([long], timeout=WAIT)
    assert long.cancelled()
    waiting = asyncio.create_task(scorer.score([ask(9)]))
    await asyncio.sleep(0)
    gate.open.set()
    assert (await waiting)[0].scores[1].value is not None
    assert scorer.meter.forward_passes <= 2  # the one under way, and the other search's


async def test_a_call_that_fails_in_the_model_fails_alone(checkpoint: PrmCheckpoint) -> None:
    scorer = TransformersScorer(checkpoint)
    gate = Gate(scorer)
    word = scorer.checkpoint.tokenizer.convert_tokens_to_ids("Z")

    def broken(module: torch.nn.Module, args: tuple[torch.Tensor]) -> None:
        if (args[0] == word).any():
            raise RuntimeError("a kernel failed")

    scorer.checkpoint.model.get_input_embeddings().register_forward_pre_hook(broken)
    first = asyncio.create_task(scorer.score([ask(0)]))
    await asyncio.to_thread(gate.reached.wait, WAIT)
    good = asyncio.create_task(scorer.score([ask(1)]))
    bad = asyncio.create_task(scorer.score([as_request("Z", (), ("Z",))]))
    await asyncio.sleep(0)
    gate.open.set()
    assert (await good)[0].scores[1].value is not None
    assert (await first)[0].scores[1].value is not None
    with pytest.raises(RuntimeError, match="a kernel failed"):
        await bad


def test_a_forked_child_has_a_worker_of_its_own() -> None:
    queue: CallQueue[int, int] = CallQueue(
        lambda asked: ((i, request + 1) for i, request in enumerate(asked)), 0.001
    )
    assert queue.submit(1).result(10) == 2
    child = os.fork()
    if child == 0:
        try:
            os._exit(queue.submit(40).result(10))
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 41
    assert queue.submit(2).result(10) == 3
