"""What an asynchronous iterator yields, for synchronous callers, as it comes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator
from contextvars import ContextVar

import pytest

from vprm_search.graph.blocking import iterate_blocking, run_blocking

SET: ContextVar[str] = ContextVar("SET", default="")


async def numbers(upto: int, closed: list[bool], pause_s: float = 0.0) -> AsyncGenerator[int]:
    try:
        for number in range(upto):
            yield number
            await asyncio.sleep(pause_s)
    finally:
        closed.append(True)


def test_everything_comes_in_order_and_the_iterator_is_closed() -> None:
    closed: list[bool] = []
    assert list(iterate_blocking(numbers(50, closed))) == list(range(50))
    assert closed == [True]


def test_an_item_comes_before_the_next_one_is_there() -> None:
    closed: list[bool] = []
    items = iterate_blocking(numbers(2, closed, pause_s=60.0))
    assert next(items) == 0  # and not in a minute
    items.close()
    ended = threading.Event()
    for _ in range(1000):
        if closed:
            break
        ended.wait(0.005)
    assert closed == [True]


async def test_it_works_where_a_loop_runs_and_sees_the_callers_context() -> None:
    async def told() -> AsyncGenerator[str]:
        yield SET.get()

    SET.set("mine")
    assert list(iterate_blocking(told())) == ["mine"]


def test_within_the_loop_that_all_share_everything_comes_at_the_end() -> None:
    async def inside() -> list[int]:
        return list(iterate_blocking(numbers(3, [])))

    assert run_blocking(inside()) == [0, 1, 2]


def test_what_it_raises_is_raised_and_the_loop_lives_on() -> None:
    async def broken(error: BaseException) -> AsyncGenerator[int]:
        yield 1
        raise error

    for error in (ValueError("no"), KeyboardInterrupt(), SystemExit(3)):
        items = iterate_blocking(broken(error))
        assert next(items) == 1
        with pytest.raises(type(error)):
            next(items)
    assert list(iterate_blocking(numbers(2, []))) == [0, 1]
