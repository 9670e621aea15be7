"""A server's memory over many rounds, each with a picture that it has never seen.

    python -m tests.benchmarks.served_soak [--rounds 500] [--out soak.json]

Starts a real server (installing its environment first, see `tests/serving`) with small caches of
pictures, so that they are full early: 20 MB of PNGs, 50 MB of tiles. Then it scores `--rounds`
rounds through `VllmScorer`, and says from time to time what the server holds: proportional set size
of all its processes, and its pictures. It fails when the second half adds
more than `--most-mb` to the first.
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

KEPT_BYTES = 20_000_000
TILES_GB = "0.05"
PATHS = (("Step 1: red = 3.", "The answer is 3."), ("Step 1: red = 4.", "The answer is 4."))


def memory_mb(session: int) -> dict[str, float]:
    """Return the proportional set size of all processes of a session, in MB, by its kind."""
    total = dict.fromkeys(("Pss", "Pss_Anon", "Pss_Shmem", "Pss_File"), 0.0)
    for process in Path("/proc").glob("[0-9]*"):
        try:
            of = int((process / "stat").read_text().rpartition(")")[2].split()[3])
            if of == session or process.name == str(session):
                pages = (process / "smaps_rollup").read_text().splitlines()
                for name, value in (line.split()[:2] for line in pages[1:]):
                    if (kind := name.removesuffix(":")) in total:
                        total[kind] += int(value) / 1000
        except (OSError, ValueError):  # it has just ended
            continue
    return total


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
                rows.append(
                    {
                        "rounds": number,
                        "server_mb": (memory := memory_mb(server.pid))["Pss"],
                        "anonymous_mb": memory["Pss_Anon"],
                        "shared_mb": memory["Pss_Shmem"],
                        "images_kept": held["images_kept"],
                        "image_mb_kept": held["image_bytes_kept"] / 1e6,
                        "image_mb_sent": scorer.meter.image_bytes_sent / 1e6,
                    }
                )
                print(json.dumps(rows[-1]), flush=True)
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Read the options, run, and fail if the memory grows."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--most-mb", type=float, default=30.0)
    parser.add_argument("--out", type=Path, default=Path("soak.json"))
    args = parser.parse_args(argv)
    limits = {"VPRM_SEARCH_VLLM_LIMITS": json.dumps({"kept_image_bytes": KEPT_BYTES})}
    extra = ("--mm-processor-cache-gb", TILES_GB)
    with tempfile.TemporaryDirectory() as folder:
        options = replace(SERVE, port=free_port(), extra=extra)
        python = ensure_environment()
        server = PrmServer(weights_path("prm"), python, Path(folder), options, limits)
        try:
            server.ensure_running()
            rows = asyncio.run(soak(server, args.rounds, max(1, args.rounds // 20)))
        finally:
            server.stop()
    args.out.write_text(json.dumps(rows, indent=1) + "\n")
    half = len(rows) // 2
    grown = max(r["server_mb"] for r in rows[half:]) - max(r["server_mb"] for r in rows[:half])
    most = max(row["image_mb_kept"] for row in rows)
    print(f"second half: {grown:+.1f} MB; at most {most:.1f} MB of pictures kept")
    if grown > args.most_mb or most > KEPT_BYTES / 1e6:
        raise SystemExit(f"the server's memory is not bounded: {grown:.1f} MB more")


if __name__ == "__main__":
    main()
