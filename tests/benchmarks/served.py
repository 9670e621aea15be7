"""A vLLM server beside the in-process engine: the same jobs, the same checkpoint, one run.

    python -m tests.benchmarks.served [--size 100m] [--out served.json]

Starts a real server (installing its environment first, see `tests/serving`), scores one round of
whole solutions and a beam search of ten rounds through `VllmScorer`, and the same in this process
with nothing kept between rounds and with keys and values kept. Seconds are processor seconds, of
this process or of all the server's, since other work may share the machine; one thread each, but
for the server's own helpers. Tokens are the server's counters (prompt tokens less cached ones)
over what an ideal scorer computes, each distinct token once.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from tests.benchmarks.engine import Beam, distinct_tokens, picture
from tests.benchmarks.scoring import SIZES
from tests.scoring.random_internvl import write_checkpoint
from tests.serving.install_vllm import ensure_environment
from tests.serving.server import PrmServer, free_port
from vprm_search.cli.vllm_server import ServeOptions
from vprm_search.scoring import (
    PreprocessConfig,
    TransformersScorer,
    VllmOptions,
    VllmScorer,
)
from vprm_search.scoring.engine.checkpoint import load_checkpoint
from vprm_search.types import ImageData, ScoreRequest

Rounds = list[list[ScoreRequest]]
_TICK = os.sysconf("SC_CLK_TCK")


def jobs(image: ImageData, rounds: int) -> dict[str, Rounds]:
    """Return the jobs by name: the requests of every round."""
    samples = Beam(5, image, 8, 1)
    for _ in range(7):
        samples.next_round()
    beam = Beam(6, image, 4, 2)
    return {
        "one round": [samples.next_round()],
        "search": [beam.next_round() for _ in range(rounds)],
    }


def session_seconds(leader: int) -> float:
    """Return the processor seconds so far of a process and of all in its session."""
    total = 0
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        if int(entry.name) == leader or int(fields[3]) == leader:
            total += int(fields[11]) + int(fields[12])
    return total / _TICK


def in_process(scorer: TransformersScorer, rounds: Rounds) -> dict[str, Any]:
    """Score the rounds in this process."""
    wall, work, before = time.perf_counter(), time.process_time(), scorer.meter.tokens_computed
    scores = [[s.value for r in scorer.score_sync(asked) for s in r.scores] for asked in rounds]
    return {
        "processor_s": time.process_time() - work,
        "wall_s": time.perf_counter() - wall,
        "tokens_computed": scorer.meter.tokens_computed - before,
        "scores": scores,
    }


def served(server: PrmServer, rounds: Rounds) -> dict[str, Any]:
    """Score the rounds on the server, one request each."""

    async def ask() -> list[list[float | None]]:
        async with VllmScorer(server.base_url, options=VllmOptions(timeout_s=600)) as scorer:
            found = [await scorer.score(asked) for asked in rounds]
            counts["requests"] = scorer.meter.requests
            counts["paths_reasked"] = scorer.meter.paths_reasked
            return [[s.value for r in results for s in r.scores] for results in found]

    counts: dict[str, int] = {}
    before, spent = server.metrics(), session_seconds(server.pid)
    wall, work = time.perf_counter(), time.process_time()
    scores = asyncio.run(ask())
    server.wait_until_idle()
    after = server.metrics()
    prompt, cached = (
        int(after[name] - before[name])
        for name in ("prompt_tokens_total", "prompt_tokens_cached_total")
    )
    return {
        "processor_s": session_seconds(server.pid) - spent,
        "client_processor_s": time.process_time() - work,
        "wall_s": time.perf_counter() - wall,
        "prompt_tokens": prompt,
        "tokens_computed": prompt - cached,
        **counts,
        "scores": scores,
    }


def furthest(found: dict[str, Any], right: dict[str, Any]) -> float:
    """Return the largest difference of two scores."""
    mine, theirs = (chain.from_iterable(one["scores"]) for one in (found, right))
    return max(abs(a - b) for a, b in zip(mine, theirs, strict=True))


def measure(size: str, rounds: int, folder: Path) -> dict[str, Any]:
    """Return the figures of both jobs on one random model."""
    python = ensure_environment()
    shape = replace(SIZES[size], max_positions=8192)
    rule = PreprocessConfig(tile_size=shape.tile, max_tiles=12)
    directory = write_checkpoint(folder / "checkpoint", shape, preprocess=rule)
    checkpoint = load_checkpoint(directory, device="cpu")
    image, other = picture(0, 2 * shape.tile, shape.tile), picture(1, shape.tile, shape.tile)
    options = ServeOptions(
        enforce_eager=True, dtype="float32", max_images=2, max_model_len=8192, port=free_port()
    )
    server = PrmServer(directory, python, folder, options)
    out: dict[str, Any] = {"size": size, "rounds": rounds}
    try:
        server.ensure_running()
        served(server, jobs(other, 1)["search"])  # warms it up
        for name, asked in jobs(image, rounds).items():
            print(f"{name}: on the server ...", flush=True)
            by_server = served(server, asked)
            row = out[name] = {"served": by_server}
            for label, kept in (("per round", 0), ("kept", 2 << 30)):
                print(f"{name}: in process, {label} ...", flush=True)
                scorer = TransformersScorer(
                    checkpoint,
                    image_cache_tokens=0 if not kept else 65_536,
                    prefix_cache_bytes=kept,
                )
                row[label] = in_process(scorer, asked)
            requests = [request for one in asked for request in one]
            tokens = scorer.meter.tiles_encoded * checkpoint.tokens_per_tile
            ideal = row["tokens_ideal"] = distinct_tokens(checkpoint, requests, tokens)
            row["image_tokens"] = tokens
            row["largest_difference"] = furthest(by_server, row["kept"])
            for label in ("served", "per round", "kept"):
                row[label]["over_ideal"] = row[label]["tokens_computed"] / ideal
                del row[label]["scores"]
            print(json.dumps(row, indent=1), flush=True)
    finally:
        server.stop()
    return out


def main(argv: Sequence[str] | None = None) -> None:
    """Read the options and measure."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=list(SIZES), default="100m")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("served.json"))
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(args.size, args.rounds, Path(folder))
    args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
