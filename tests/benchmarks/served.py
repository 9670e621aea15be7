"""A vLLM server beside the in-process engine: the same jobs, the same checkpoint, one run.

    python -m tests.benchmarks.served [--size 100m] [--blocks 128,64,32] [--out served.json]

Starts a real server (installing its environment first, see `tests/serving`) for each size of a
block of vLLM's cache, scores one round of whole solutions and a beam search of ten rounds through
`VllmScorer`, and the same in this process with nothing kept between rounds and with keys and values
kept. Seconds are processor seconds, of
this process or of all the server's, since other work may share the machine; one thread each, but
for the server's own helpers. Tokens are the server's counters (prompt tokens less cached ones)
over what an ideal scorer computes, each distinct token once. `--count` starts nothing and counts
what blocks of these sizes leave to compute.
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

from tests.benchmarks.engine import NARROW, Beam, distinct_tokens, picture
from tests.benchmarks.scoring import SIZES
from tests.scoring.random_internvl import write_checkpoint
from tests.serving.install_vllm import ensure_environment
from tests.serving.server import PrmServer, free_port
from vprm_search.cli.vllm_server import CPU_BLOCK_TOKENS, ServeOptions
from vprm_search.scoring import (
    PreprocessConfig,
    TransformersScorer,
    VllmOptions,
    VllmScorer,
)
from vprm_search.scoring.engine.checkpoint import PrmCheckpoint, load_checkpoint
from vprm_search.scoring.pixels import tile_grid
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


def counted_tokens(checkpoint: PrmCheckpoint, rounds: Rounds, tokens: int, block: int) -> int:
    """Return what a cache of whole blocks leaves to compute: no server, the tokens are counted.

    A path reads the blocks that an earlier one began with, but never its own last token.
    """
    seen: set[tuple[int, ...]] = set()
    total = 0
    for asked in rounds:
        question = asked[0].problem.question
        for steps in dict.fromkeys(request.steps for request in asked):
            ids = checkpoint.builder.build(question, steps, [tokens]).scored_ids
            known = 0
            while known + block < len(ids) and ids[: known + block] in seen:
                known += block
            total += len(ids) - known
            seen.update(ids[:end] for end in range(block, len(ids) + 1, block))
    return total


def count(size: str, rounds: int, blocks: Sequence[int], folder: Path) -> None:
    """Print the tokens over the ideal by counting; widths do not matter, so the model is narrow."""
    shape = replace(NARROW, tile=SIZES[size].tile, patch=SIZES[size].patch, vocab=SIZES[size].vocab)
    rule = PreprocessConfig(tile_size=shape.tile, max_tiles=12)
    checkpoint = load_checkpoint(write_checkpoint(folder, shape, preprocess=rule), device="cpu")
    columns, rows = tile_grid(2 * shape.tile, shape.tile, rule)
    tokens = (columns * rows + 1) * checkpoint.tokens_per_tile  # and the thumbnail
    for name, asked in jobs(picture(0, 2 * shape.tile, shape.tile), rounds).items():
        ideal = distinct_tokens(checkpoint, [r for one in asked for r in one], tokens)
        for block in blocks:
            found = counted_tokens(checkpoint, asked, tokens, block)
            print(f"{name}, blocks of {block}: {found} tokens, {found / ideal:.2f} of the ideal")


def on_servers(
    directory: Path, folder: Path, blocks: Sequence[int], warm: Rounds, work: dict[str, Rounds]
) -> dict[str, dict[str, Any]]:
    """Return the figures of each job by the server's block size."""
    python, found = ensure_environment(), {name: dict[str, Any]() for name in work}
    for block in blocks:
        options = ServeOptions(
            enforce_eager=True,
            dtype="float32",
            max_images=2,
            max_model_len=8192,
            port=free_port(),
            extra=("--block-size", str(block)),
        )
        server = PrmServer(directory, python, folder, options)
        try:
            server.ensure_running()
            served(server, warm)
            for name, asked in work.items():
                print(f"{name}: on the server, blocks of {block} ...", flush=True)
                found[name][f"served, blocks of {block}"] = served(server, asked)
        finally:
            server.stop()
    return found


def measure(size: str, rounds: int, blocks: Sequence[int], folder: Path) -> dict[str, Any]:
    """Return the figures of both jobs on one random model."""
    shape = replace(SIZES[size], max_positions=8192)
    rule = PreprocessConfig(tile_size=shape.tile, max_tiles=12)
    directory = write_checkpoint(folder / "checkpoint", shape, preprocess=rule)
    checkpoint = load_checkpoint(directory, device="cpu")
    image, other = picture(0, 2 * shape.tile, shape.tile), picture(1, shape.tile, shape.tile)
    work = jobs(image, rounds)
    out: dict[str, Any] = {"size": size, "rounds": rounds}
    out |= on_servers(directory, folder, blocks, jobs(other, 1)["search"], work)
    for name, asked in work.items():
        row = out[name]
        for label, kept in (("per round", 0), ("kept", 2 << 30)):
            print(f"{name}: in process, {label} ...", flush=True)
            scorer = TransformersScorer(
                checkpoint, image_cache_tokens=65_536 if kept else 0, prefix_cache_bytes=kept
            )
            row[label] = in_process(scorer, asked)
        requests = [request for one in asked for request in one]
        tokens = scorer.meter.tiles_encoded * checkpoint.tokens_per_tile
        ideal = distinct_tokens(checkpoint, requests, tokens)
        for label in list(row):
            row[label]["over_ideal"] = row[label]["tokens_computed"] / ideal
            row[label]["largest_difference"] = furthest(row[label], row["kept"])
        for label in list(row):
            del row[label]["scores"]
        row["image_tokens"], row["tokens_ideal"] = tokens, ideal
        print(json.dumps(row, indent=1), flush=True)
    return out


def main(argv: Sequence[str] | None = None) -> None:
    """Read the options and measure."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=list(SIZES), default="100m")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--blocks", default=str(CPU_BLOCK_TOKENS), help="tokens, with commas")
    parser.add_argument("--count", action="store_true", help="count tokens; start no server")
    parser.add_argument("--out", type=Path, default=Path("served.json"))
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        blocks = [int(block) for block in args.blocks.split(",")]
        if args.count:
            count(args.size, args.rounds, blocks, Path(folder))
            return
        found = measure(args.size, args.rounds, blocks, Path(folder))
    args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
