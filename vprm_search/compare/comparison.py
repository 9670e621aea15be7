"""Measure strategies, selectors and sizes against each other at equal generated tokens.

Every search is kept as soon as it has ended (`compare.records`), and not made again. Best-of-N is
measured first: what its N samples cost on a problem is the budget of every other strategy of that
size on that problem. Its samples are one growing pool (the samples of N are the first of those of
2N), and the selectors of a strategy all choose from the same search, so that differences are
paired.

A *cell* is one strategy at one size on all problems. If more than `max_failed` of its calls failed
it is no result, and the searches in which some failed are made again by the next run.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vprm_search.compare.cell import write_atomically
from vprm_search.compare.entrants import DEFAULT_ENTRANTS, choice_of, entrants_of
from vprm_search.compare.records import MAX_FAILED, RecordFile
from vprm_search.compare.shard import Shard
from vprm_search.compare.worlds import LoadedWorld, World
from vprm_search.errors import ConfigError, ModelChangedError
from vprm_search.graph.session import run_blocking

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What to compare. `choices` replace the selectors that each strategy has by default.

    Args:
        entrants: strategies by name (`compare.entrants.ENTRANTS`).
        sizes: the N of best-of-N and of the strategies of its cost.
        run_seed: makes all draws of the policy.
        batch: problems whose searches advance together; a run that is killed loses those.
        shard: problems that are loaded together, and that one process measures.
        max_failed: the share of its calls, in [0, 1], that may fail in a cell that is a result.
    """

    entrants: tuple[str, ...] = DEFAULT_ENTRANTS
    sizes: tuple[int, ...] = (4, 8, 16, 32, 64)
    choices: tuple[str, ...] = ()
    run_seed: int = 0
    batch: int = 50
    shard: int = 50
    max_failed: float = MAX_FAILED

    def __post_init__(self) -> None:
        """Raise `ConfigError` on values that cannot be measured."""
        entrants_of(self.entrants)
        for choice in self.choices:
            choice_of(choice)
        if not self.sizes or not all(2 <= size <= 256 for size in self.sizes):
            raise ConfigError(f"sizes {list(self.sizes)}: give some, each between 2 and 256")
        if self.batch < 1 or self.shard < 1:
            raise ConfigError(f"batch {self.batch} and shard {self.shard} must be at least 1")
        if not 0 <= self.max_failed <= 1:
            raise ConfigError(f"max_failed is {self.max_failed}; it must lie between 0 and 1")

    @property
    def cells(self) -> list[tuple[str, int]]:
        """What is measured on every problem: strategies by name, and sizes."""
        names = [entrant.name for entrant in entrants_of(self.entrants)]
        return [(name, size) for size in sorted(set(self.sizes)) for name in names]

    def identity(self, world: World) -> dict[str, Any]:
        """Return what all records of one folder have in common."""
        facts = {"world": world.identity(), "run_seed": self.run_seed}
        return dict(json.loads(json.dumps(facts)))

    def shards(self, world: World) -> list[tuple[int, int]]:
        """Return the first problem of every shard and the one after its last."""
        size = world.size
        return [(start, min(start + self.shard, size)) for start in range(0, size, self.shard)]


# --- the folder ----------------------------------------------------------------------------------


def open_folder(comparison: Comparison, world: World, out: Path) -> None:
    """Make the folder of the results, or check that it holds results of the same comparison.

    Raises `ConfigError`, which names what differs, if it holds others.
    """
    wanted = comparison.identity(world)
    known = _read_identity(out)
    if known is None:
        write_atomically(_identity_path(out), json.dumps(wanted, indent=1))
        return
    asked, there = (_flat(facts) for facts in (wanted, known))
    differs = [name for name in asked if there.get(name, _MISSING) != asked[name]]
    if differs:
        lacking = all(name not in there for name in differs)
        why = " (they were measured by a version that did not look at it)" if lacking else ""
        raise ConfigError(
            f"{out} holds results of another comparison: {', '.join(differs)} differ{why}; use "
            "another --out folder, or the settings in its comparison.json"
        )


def _check_models(out: Path, models: Mapping[str, Any]) -> None:
    """Write down which models are served, or raise `ModelChangedError` if there were others."""
    known = _read_identity(out) or {}
    found = json.loads(json.dumps(dict(models)))
    if "models" not in known:
        if found:
            write_atomically(_identity_path(out), json.dumps({**known, "models": found}, indent=1))
    elif known["models"] != found:
        raise ModelChangedError(
            f"{out} was measured with {known['models']}, and now there is {found}; use another "
            "--out folder, or have the former model served"
        )


_MISSING = object()


def _identity_path(out: Path) -> Path:
    return out / "comparison.json"


def _read_identity(out: Path) -> dict[str, Any] | None:
    path = _identity_path(out)
    try:
        return dict(json.loads(path.read_text())) if path.exists() else None
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); use another --out folder") from error


def _flat(facts: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Return nested facts by their dotted names, to tell where two differ."""
    flat: dict[str, Any] = {}
    for name, value in facts.items():
        inside = isinstance(value, Mapping)
        flat |= _flat(value, f"{before}{name}.") if inside else {f"{before}{name}": value}
    return flat


# --- measuring -----------------------------------------------------------------------------------


def measure_shard(
    comparison: Comparison, world: World, out: Path, start: int, stop: int, report: Report
) -> None:
    """Make all searches of a shard that are not recorded yet, and those that must be repeated.

    Raises what the models raise, and `SearchError` when nothing at all comes from them.
    """
    shard = _shard(comparison, world, out, (start, stop), RecordFile(out), report)
    run_blocking(shard.measure())  # one loop for all: clients keep connections between shards


def _shard(
    comparison: Comparison,
    world: World,
    out: Path,
    problems: tuple[int, int],
    records: RecordFile,
    report: Report,
) -> Shard:
    def load() -> LoadedWorld:
        loaded = world.load(*problems)
        _check_models(out, loaded.models)
        return loaded

    return Shard(comparison, range(*problems), load, records, report, world.size)


def run_comparison(
    comparison: Comparison, world: World, out: Path, *, jobs: int = 1, report: Report
) -> None:
    """Make every search that is not in `out` yet; `report` gets a line as each cell ends.

    With `jobs` above 1 the shards are measured by that many processes of one thread each, which
    write their lines to stderr. Raises what the models raise, and `SearchError` when nothing at all
    comes from them; what was measured stays.
    """
    open_folder(comparison, world, out)
    shards = comparison.shards(world)
    if jobs == 1 or len(shards) == 1:
        records = RecordFile(out)
        measured = [_shard(comparison, world, out, part, records, report) for part in shards]
        progress = _Progress(comparison, measured, report)
        for shard in measured:
            shard.report = progress
            run_blocking(shard.measure())
        return
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    workers = min(jobs, len(shards))
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent) as pool:
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
    """Puts the number of cells that are done before every line."""

    def __init__(self, comparison: Comparison, shards: Sequence[Shard], report: Report) -> None:
        reference, *_ = entrants = entrants_of(comparison.entrants)
        sizes = set(comparison.sizes)
        self._all = len(shards) * len(comparison.cells)
        left = sum(
            bool(shard.missing(entrant, size, reference))
            for shard in shards
            for entrant in entrants
            for size in sizes
        )
        self._done = self._all - left
        self._report = report

    def __call__(self, line: str) -> None:
        self._done = min(self._done + 1, self._all)
        self._report(f"[{self._done}/{self._all}] {line}")


def _end_with_parent() -> None:
    """Let this process end when the one that started it does, also by kill -9."""
    parent = multiprocessing.parent_process()
    if parent is not None:

        def watch() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()


def _measure(comparison: Comparison, world: World, out: Path, start: int, stop: int) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"  # before the world loads torch
    measure_shard(comparison, world, out, start, stop, _to_stderr)


def _to_stderr(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
