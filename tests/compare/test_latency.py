"""Virtual time, and what the real runner does on it."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.benchmarks.latency import barriers_of_samples, measure, step_seconds, timed_run
from tests.benchmarks.virtual_time import run_virtual
from vprm_search.compare.worlds import WORLDS, SyntheticWorld
from vprm_search.search import DVTS, BeamSearch, BestOfN

WORLD = SyntheticWorld(replace(WORLDS["hard"], depth=5))


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=8))
@settings(max_examples=30, deadline=None)
def test_sleeps_take_virtual_time_only(seconds: list[float]) -> None:
    async def one_after_the_other() -> None:
        for wait in seconds:
            await asyncio.sleep(wait)

    async def together() -> list[int]:
        ended: list[int] = []

        async def one(number: int, wait: float) -> None:
            await asyncio.sleep(wait)
            ended.append(number)

        await asyncio.gather(*(one(*item) for item in enumerate(seconds)))
        return ended

    assert run_virtual(one_after_the_other())[1] == pytest.approx(sum(seconds), abs=1e-6)
    ended, took = run_virtual(together())
    assert took == pytest.approx(max(seconds), abs=1e-6)
    assert [seconds[number] for number in ended] == sorted(seconds)


def test_a_timeout_goes_off_at_its_time() -> None:
    async def waits() -> float:
        began = asyncio.get_running_loop().time()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.sleep(500), 20)
        return asyncio.get_running_loop().time() - began

    assert run_virtual(waits())[0] == pytest.approx(20)


def test_a_thread_still_wakes_the_loop() -> None:
    assert run_virtual(asyncio.to_thread(lambda: 7))[0] == 7


def test_in_lockstep_a_level_takes_as_long_as_its_slowest_step() -> None:
    beam = BeamSearch(width=2, expand=3, stop=None, refill=0)
    (run,), took = timed_run(WORLD, beam, range(1), lockstep=True)
    slowest = [
        max(step_seconds(r.seed, run.tree.depth(r.id)) for r in run.tree.round_nodes(level))
        for level in range(1, run.tree.rounds + 1)
    ]
    assert took == pytest.approx(sum(slowest))


def test_best_of_n_takes_as_long_as_its_slowest_sample() -> None:
    (run,), took = timed_run(WORLD, BestOfN(n=8), range(1), lockstep=True)
    samples = run.tree.children(run.tree.root_id)
    times = [sum(step_seconds(s.seed, number) for number in range(1, 6)) for s in samples]
    assert took == pytest.approx(max(times))
    assert barriers_of_samples(run, 5) >= took


@pytest.mark.parametrize("subtrees", [1, 4, 8])
def test_without_barriers_the_tree_is_the_same_and_no_later(subtrees: int) -> None:
    dvts = DVTS(subtrees=subtrees, expand=3, stop=None, refill=0)
    (held,), level = timed_run(WORLD, dvts, range(2, 3), lockstep=True)
    (free,), barrier_free = timed_run(WORLD, dvts, range(2, 3), lockstep=False)
    assert held.tree.dumps() == free.tree.dumps()
    assert barrier_free <= level + 0.1  # replies of 2 ms apart are taken together


def test_problems_do_not_wait_for_one_another() -> None:
    beam = BeamSearch(width=2, expand=3, stop=None, refill=0)
    alone = [timed_run(WORLD, beam, range(n, n + 1), lockstep=False)[1] for n in range(4)]
    _, together = timed_run(WORLD, beam, range(4), lockstep=False)
    assert together == pytest.approx(max(alone))


def test_the_benchmark_reports_what_it_ran() -> None:
    rows = measure(8, 2, 0.0, 0.6)
    assert [row["runs"] for row in rows] == [2, 2, 1]
    assert rows[1]["same_trees"]
    for row in rows:
        assert row["level_synchronous"] >= row["barrier_free"] - 0.1 > 0
