"""Measure all shards of a comparison, in parallel processes if asked to."""

from __future__ import annotations

import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from vprm_search.compare.cell import cell_path
from vprm_search.compare.compare import Comparison, Report, measure_shard, open_folder
from vprm_search.compare.entrants import entrants_of
from vprm_search.compare.problems import World


def run_comparison(
    comparison: Comparison, world: World, out: Path, *, jobs: int = 1, report: Report
) -> None:
    """Measure every cell that is not in `out` yet; `report` gets a line as each one ends.

    With `jobs` above 1 the shards are measured by that many processes of one thread each, which
    write their lines to stderr. Raises what the models raise; what was measured stays.
    """
    open_folder(comparison, world, out)
    shards = comparison.shards(world)
    progress = _Progress(comparison, out, shards, report)
    if jobs == 1 or len(shards) == 1:
        for start, stop in shards:
            measure_shard(comparison, world, out, start, stop, progress)
        return
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    with ProcessPoolExecutor(min(jobs, len(shards)), mp_context=context) as pool:
        waiting = [
            pool.submit(_measure, comparison, world, out, start, stop) for start, stop in shards
        ]
        try:
            for future in as_completed(waiting):
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


class _Progress:
    """Puts the number of measured cells before every line."""

    def __init__(
        self, comparison: Comparison, out: Path, shards: list[tuple[int, int]], report: Report
    ) -> None:
        names = [entrant.name for entrant in entrants_of(comparison.entrants)]
        self._paths = [
            cell_path(out, start, stop, name, size)
            for start, stop in shards
            for name in names
            for size in sorted(set(comparison.sizes))
        ]
        self._report = report

    def __call__(self, line: str) -> None:
        done = sum(path.exists() for path in self._paths)
        self._report(f"[{done}/{len(self._paths)}] {line}")


def _measure(comparison: Comparison, world: World, out: Path, start: int, stop: int) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"  # before the world loads torch
    progress = _Progress(comparison, out, comparison.shards(world), _to_stderr)
    measure_shard(comparison, world, out, start, stop, progress)


def _to_stderr(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
