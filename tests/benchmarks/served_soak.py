"""A server's memory over many rounds, each with a picture that it has never seen.

    python -m tests.benchmarks.served_soak [--rounds 500] [--out soak.json]

What may grow is what a server keeps on purpose: the pictures it was sent, their tiles (vLLM's cache
in the engine's process), the cache of keys and values. All three are small here, so that they are
full after `FULL_AFTER` rounds: 5 MB of PNGs of 604 kB, 5 MB of tiles of 49 kB, 128 blocks. Then
a round leaves nothing behind. It fails when all processes together hold more than `--most-mb`
more at the end than then: a third of what the tiles of 200 rounds would be.

Counted is what belongs to the processes alone, or is shared among them: anonymous and shared
memory. Pages of files (libraries, weights) are the page cache's; a process's share of them rises
by tens of MB when another program that reads the same files ends.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.benchmarks.engine import picture
from tests.serving.conftest import SERVE
from tests.serving.install_vllm import ensure_environment
from tests.serving.server import PrmServer, free_port
from vprm_search.scoring import VllmScorer
from vprm_search.tiny.weights import weights_path
from vprm_search.types import Problem, ScoreRequest

KEPT_BYTES = 5_000_000
SMALL_CACHES = ("--mm-processor-cache-gb", "0.005", "--num-gpu-blocks-override", "128")
FULL_AFTER = 150
MOST_MB = 3.0
PATHS = (("Step 1: red = 3.", "The answer is 3."), ("Step 1: red = 4.", "The answer is 4."))


def memory_mb(session: int) -> dict[str, float]:
    """Return what each process of a session holds, in MB: its anonymous and its shared memory."""
    held = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            of = int((process / "stat").read_text().rpartition(")")[2].split()[3])
            if of == session or process.name == str(session):
                pages = dict(
                    line.split()[:2]
                    for line in (process / "smaps_rollup").read_text().splitlines()[1:]
                )
                name = f"{(process / 'comm').read_text().strip()} {process.name}"
                held[name] = (int(pages["Pss_Anon:"]) + int(pages["Pss_Shmem:"])) / 1000
        except (OSError, ValueError):  # it has just ended
            continue
    return held


async def soak(server: PrmServer, rounds: int, every: int) -> list[dict[str, Any]]:
    """Score the rounds; return what was held after every so many of them."""
    rows = []
    async with VllmScorer(server.base_url) as scorer:
        for number in range(1, rounds + 1):
            image = picture(number, 448, 448)
            problem = Problem("Which is larger?", (image.digest,))
            found = await scorer.score([ScoreRequest(problem, path, (image,)) for path in PATHS])
            assert all(score.value is not None for result in found for score in result.scores)
            if number % every == 0:
                held = server.post({"version": 1, "describe": True})
                memory = memory_mb(server.pid)
                rows.append(
                    {
                        "rounds": number,
                        "server_mb": sum(memory.values()),
                        "by_process_mb": memory,
                        "images_kept": held["images_kept"],
                        "image_mb_kept": held["image_bytes_kept"] / 1e6,
                        "image_mb_sent": scorer.meter.image_bytes_sent / 1e6,
                    }
                )
                print(json.dumps(rows[-1]), flush=True)
    return rows


def small_server(python: Path, folder: Path) -> PrmServer:
    """Return a server, not yet started, whose caches are soon full."""
    limits = {"VPRM_SEARCH_VLLM_LIMITS": json.dumps({"kept_image_bytes": KEPT_BYTES})}
    options = replace(SERVE, port=free_port(), extra=SMALL_CACHES)
    return PrmServer(weights_path("prm"), python, folder, options, limits)


def growth_mb(rows: Sequence[dict[str, Any]]) -> float:
    """Return what all processes hold more at the end than when the caches were full, in MB."""
    full = next(row for row in rows if row["rounds"] >= FULL_AFTER)
    return float(rows[-1]["server_mb"] - full["server_mb"])


def main(argv: Sequence[str] | None = None) -> None:
    """Read the options, run, and fail if the memory grows."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--most-mb", type=float, default=MOST_MB)
    parser.add_argument("--out", type=Path, default=Path("soak.json"))
    args = parser.parse_args(argv)
    if args.rounds <= FULL_AFTER:
        parser.error(f"--rounds must be more than {FULL_AFTER}, after which the caches are full")
    with tempfile.TemporaryDirectory() as folder:
        server = small_server(ensure_environment(), Path(folder))
        try:
            server.ensure_running()
            rows = asyncio.run(soak(server, args.rounds, 50))
        finally:
            server.stop()
    args.out.write_text(json.dumps(rows, indent=1) + "\n")
    grown, most = growth_mb(rows), max(row["image_mb_kept"] for row in rows)
    print(f"with full caches: {grown:+.1f} MB; at most {most:.1f} MB of pictures kept")
    if grown > args.most_mb or most > KEPT_BYTES / 1e6:
        raise SystemExit(f"the server's memory is not bounded: {grown:.1f} MB more")


if __name__ == "__main__":
    main()
