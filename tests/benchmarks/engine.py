"""What the in-process engine spends: tokens against the ideal, seconds, and many searches at once.

    python -m tests.benchmarks.engine [--parts tokens,seconds,throughput] [--out FILE]

`tokens` counts over a whole beam search (N = 16, depth 10, a 13-tile picture; a narrow random
model, since widths do not matter for counting). `seconds` compares with the published methods on a
model of 100 M parameters (`tests/benchmarks/gpu.py` does the same at the 8B shape on a GPU).
`throughput` runs 1 to 64 searches at once on a narrow model, with one forward pass for all that
wait and with every call alone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tests.benchmarks import gpu
from tests.scoring.random_internvl import Size, write_checkpoint
from vprm_search.images import normalise_image
from vprm_search.scoring import PreprocessConfig, TransformersScorer
from vprm_search.scoring.engine.checkpoint import PrmCheckpoint, load_checkpoint
from vprm_search.scoring.engine.token_tree import TokenPath, build_tree
from vprm_search.types import ImageData, Problem, ScoreRequest, ScoreResult

WORDS = tuple("base height area bar red blue so is = + - * 3 7 12 x y and of we".split())  # noqa: SIM905
NARROW = Size(tile=448, max_positions=16_384)


def picture(seed: int, width: int, height: int) -> ImageData:
    """Return a picture of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return normalise_image(Image.fromarray(pixels))


class Beam:
    """A made-up beam search: steps and survivors are drawn."""

    def __init__(self, seed: int, image: ImageData, width: int, expand: int) -> None:
        self._draw = random.Random(seed)
        self._image = image
        self._problem = Problem(self._text(60), (image.digest,))
        self._kept: list[tuple[str, ...]] = [()]
        self._width, self._expand = width, expand

    def _text(self, words: int) -> str:
        return " ".join(self._draw.choice(WORDS) for _ in range(words))

    def next_round(self) -> list[ScoreRequest]:
        """Return the candidates of the next round."""
        each = self._expand if self._kept != [()] else self._width * self._expand
        grown = [
            (*path, self._text(self._draw.randint(24, 32)))
            for path in self._kept
            for _ in range(each)
        ]
        self._kept = self._draw.sample(grown, min(self._width, len(grown)))
        return [ScoreRequest(self._problem, path, (self._image,)) for path in grown]

    def selection(self) -> list[ScoreRequest]:
        """Return the paths that are left, as a final selection asks for them."""
        return [ScoreRequest(self._problem, path, (self._image,)) for path in self._kept]


def distinct_tokens(checkpoint: PrmCheckpoint, asked: Sequence[ScoreRequest], image: int) -> int:
    """Return what an ideal scorer computes: every token with another past once."""
    build = checkpoint.builder.build
    prompts = [build(r.problem.question, r.steps, [image]) for r in asked]
    return build_tree([TokenPath("", prompt.scored_ids) for prompt in prompts]).size


# --- 1: tokens ------------------------------------------------------------------------------------


def tokens(folder: Path) -> dict[str, Any]:
    """Count over a whole search with a 13-tile picture."""
    rule = PreprocessConfig(tile_size=448, max_tiles=12)
    checkpoint = load_checkpoint(write_checkpoint(folder, NARROW, preprocess=rule), device="cpu")
    image = picture(0, 1792, 1344)
    out: dict[str, Any] = {}
    for name, kept in (("kept", 2 << 30), ("per_round", 0)):
        scorer = TransformersScorer(checkpoint, prefix_cache_bytes=kept)
        beam = Beam(1, image, 4, 4)
        asked: list[ScoreRequest] = []
        for _ in range(10):
            requests = beam.next_round()
            asked += requests
            scorer.score_sync(requests)
        scorer.score_sync(beam.selection())
        tiles = scorer.meter.tiles_encoded
        ideal = distinct_tokens(checkpoint, asked, tiles * checkpoint.tokens_per_tile)
        meter = scorer.meter
        out[name] = {
            "tiles": tiles,
            "images_encoded": meter.images_encoded,
            "candidates": len(asked),
            "forward_passes": meter.forward_passes,
            "tokens_ideal": ideal,
            "tokens_computed": meter.tokens_computed,
            "over_ideal": meter.tokens_computed / ideal,
            "one_pass_per_path_over_ideal": meter.tokens_requested / ideal,
        }
    return out


# --- 3: many searches -----------------------------------------------------------------------------


async def _search(
    scorer: TransformersScorer, seed: int, image: ImageData, rounds: int, policy_s: float
) -> tuple[list[float], list[ScoreResult]]:
    """Run one search with a policy that takes a while; return the seconds of its rounds."""
    beam, draw, seconds = Beam(seed, image, 2, 2), random.Random(seed), []
    results: list[ScoreResult] = []
    for _ in range(rounds):
        await asyncio.sleep(policy_s * draw.uniform(0.5, 1.5))
        started = time.perf_counter()
        results = await scorer.score(beam.next_round())
        seconds.append(time.perf_counter() - started)
    return seconds, results


def throughput(folder: Path, levels: Sequence[int], rounds: int) -> dict[str, Any]:
    """Run 1 to 64 searches at once, with calls merged and with every call alone."""
    size = Size(tile=56, max_positions=8192)
    checkpoint = load_checkpoint(write_checkpoint(folder, size), device="cpu")
    images = [picture(seed, 112, 112) for seed in range(max(levels))]
    out: dict[str, Any] = {"rounds": rounds, "processor_seconds": True}
    for level in levels:
        row = out[str(level)] = {}
        for name, window_ms in (("merged", 3.0), ("alone", 0.0)):
            scorer = TransformersScorer(checkpoint, window_ms=window_ms)

            async def everyone(scorer: TransformersScorer = scorer, level: int = level) -> Any:
                searches = (_search(scorer, n, images[n], rounds, 0.02) for n in range(level))
                return await asyncio.gather(*searches)

            started, worked = time.perf_counter(), time.process_time()
            found = asyncio.run(everyone())
            wall, work = time.perf_counter() - started, time.process_time() - worked
            each = sorted(second for seconds, _ in found for second in seconds)
            row[name] = {
                "rounds_per_second": level * rounds / wall,
                "rounds_per_processor_second": level * rounds / work,
                "p50_s": statistics.median(each),
                "p95_s": each[min(len(each) - 1, int(0.95 * len(each)))],
                "forward_passes": scorer.meter.forward_passes,
            }
        print(level, json.dumps(row), flush=True)
    return out


def main(argv: Sequence[str] | None = None) -> None:
    """Read the options and measure."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--parts", default="tokens,seconds,throughput")
    parser.add_argument("--out", type=Path, default=Path("engine.json"))
    parser.add_argument("--levels", default="1,2,4,8,16,32,64")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--size", default="100m", help="the model of `seconds`")
    parser.add_argument("--repeats", type=int, default=1, help="of `seconds`")
    args = parser.parse_args(argv)
    parts = args.parts.split(",")
    found: dict[str, Any] = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    with tempfile.TemporaryDirectory() as folder:
        if "tokens" in parts:
            found["tokens"] = tokens(Path(folder) / "tokens")
            print(json.dumps(found["tokens"], indent=1), flush=True)
        if "throughput" in parts:
            levels = [int(level) for level in args.levels.split(",")]
            found["throughput"] = throughput(Path(folder) / "many", levels, args.rounds)
        if "seconds" in parts:
            table = Path(folder) / "seconds.json"
            where = ["--out", str(table), "--size", args.size, "--device", "cpu"]
            rest = ["--expand", "2", "--repeats", str(args.repeats), "--limit-s", "3600"]
            gpu.main([*where, *rest])
            found["seconds"] = json.loads(table.read_text())
    args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
