"""How long scoring takes: one forward per step, one per candidate, and all in one pass.

    python -m tests.benchmarks.scoring [--models tiny,100m] [--image 896x448] [--shape bon]

Prints seconds for N candidates of S steps of one problem with one image, the ratios to ours and
the largest difference of a score. The two references are what VisualPRM's published code does: the
image is encoded in every call, and every call starts from nothing. In their favour they compute the
head at the positions they read only. Ours starts cold too: nothing is kept between repeats.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import InternVLForConditionalGeneration

from tests.scoring.random_internvl import Size, write_checkpoint
from vprm_search.images import normalise_image
from vprm_search.scoring import TransformersScorer
from vprm_search.scoring.pixels import PreprocessConfig, pixel_values
from vprm_search.types import ImageData, Problem, ScoreRequest

SIZES = {
    "tiny": Size(
        hidden=128,
        layers=6,
        intermediate=384,
        vision_hidden=96,
        vision_heads=3,
        tile=64,
        patch=8,
        max_positions=8192,
    ),
    "100m": Size(
        hidden=768,
        layers=12,
        heads=12,
        kv_heads=4,
        intermediate=2048,
        vision_hidden=384,
        vision_layers=12,
        vision_heads=6,
        tile=448,
        patch=14,
        vocab=16_384,
        max_positions=8192,
    ),
}
VOCABULARY = "the base height area bar red blue so is = + - * 3 7 12 x y and of we compute"
Scores = list[list[float]]


@dataclass(frozen=True)
class Job:
    """What is scored, as requests and ready-made pixels."""

    requests: list[ScoreRequest]
    pixels: torch.Tensor
    tokens: list[Any]


def text(draw: np.random.Generator, tokenizer: Any, tokens: int) -> str:
    """Return a random sentence of about `tokens` tokens."""
    words = [str(draw.choice(VOCABULARY.split()))]
    while len(tokenizer(" ".join(words))["input_ids"]) < tokens:
        words.append(str(draw.choice(VOCABULARY.split())))
    return " ".join(words)


def make_job(scorer: TransformersScorer, args: argparse.Namespace) -> Job:
    """Draw a problem with N candidate solutions of S steps."""
    draw = np.random.default_rng(0)
    width, height = (int(side) for side in args.image.split("x"))
    pixels = draw.integers(0, 256, (height, width, 3), dtype=np.uint8)
    image: ImageData = normalise_image(Image.fromarray(pixels))
    tokenizer = scorer.checkpoint.tokenizer
    question = text(draw, tokenizer, args.question_tokens)
    problem = Problem(question, (image.digest,))
    step = lambda: text(draw, tokenizer, int(draw.integers(30, 41)))  # noqa: E731
    stems = [[step() for _ in range(args.steps - 1)] for _ in range(2)]
    paths = []
    for n in range(args.candidates):
        stem = stems[n % 2] if args.shape == "beam" else [step() for _ in range(args.steps - 1)]
        paths.append((*stem, step()))
    requests = [ScoreRequest(problem, path, (image,)) for path in paths]
    values = torch.from_numpy(pixel_values(image, scorer.checkpoint.preprocess))
    count = len(values) * scorer.checkpoint.tokens_per_tile
    build = scorer.checkpoint.builder.build
    prompts = [build(question, path, [count]) for path in paths]
    return Job(requests, values, prompts)


@torch.inference_mode()
def one_per_step(model: Any, words: Sequence[int], job: Job) -> Scores:
    """Score every step of every candidate in a forward pass of its own."""
    out = []
    for prompt in job.tokens:
        scores = []
        for read in prompt.read_positions:
            ids = torch.tensor([prompt.ids[: read + 1]])
            logits = model(input_ids=ids, pixel_values=job.pixels, logits_to_keep=1).logits[0, -1]
            scores.append(float(logits[list(words)].softmax(-1)[0]))
        out.append(scores)
    return out


@torch.inference_mode()
def one_per_candidate(model: Any, words: Sequence[int], job: Job) -> Scores:
    """Score every candidate in one forward pass."""
    out = []
    for prompt in job.tokens:
        ids, reads = torch.tensor([prompt.ids]), torch.tensor(prompt.read_positions)
        logits = model(input_ids=ids, pixel_values=job.pixels, logits_to_keep=reads).logits[0]
        out.append(logits[:, list(words)].softmax(-1)[:, 0].tolist())
    return out


def ours(scorer: TransformersScorer, job: Job) -> Scores:
    """Score all candidates at once."""
    results = scorer.score_sync(job.requests)
    return [[s.value for s in r.scores if s.value is not None] for r in results]


def measure(work: Callable[[], Scores], repeats: int) -> tuple[float, Scores]:
    """Return the median seconds of `repeats` runs after one that warms up, and the scores."""
    scores, seconds = work() if repeats > 1 else [], []
    for _ in range(repeats):
        started = time.perf_counter()
        scores = work()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds), scores


def difference(left: Scores, right: Scores) -> float:
    """Return the largest absolute difference."""
    return float(np.abs(np.array(left) - np.array(right)).max())


def run(name: str, args: argparse.Namespace, directory: Path) -> None:
    """Measure one model and print its table."""
    size = SIZES[name]
    rule = PreprocessConfig(tile_size=size.tile, max_tiles=args.max_tiles)
    write_checkpoint(directory, size, preprocess=rule)
    loaded = TransformersScorer.from_pretrained(directory, device="cpu")
    scorer = TransformersScorer(loaded.checkpoint, image_cache_tokens=0, prefix_cache_bytes=0)
    plain = InternVLForConditionalGeneration.from_pretrained(
        directory, attn_implementation="sdpa"
    ).eval()
    job = make_job(scorer, args)
    words = (scorer.checkpoint.builder.plus_id, scorer.checkpoint.builder.minus_id)
    if name == "tiny":
        args = argparse.Namespace(**{**vars(args), "reference_repeats": args.repeats})
    fast, mine = measure(lambda: ours(scorer, job), args.repeats)
    candidate, middle = measure(lambda: one_per_candidate(plain, words, job), args.repeats)
    step, slow = measure(lambda: one_per_step(plain, words, job), args.reference_repeats)
    millions = sum(p.numel() for p in plain.parameters()) / 1e6
    scorer.meter.tokens_computed = scorer.meter.tokens_requested = 0
    ours(scorer, job)
    meter = scorer.meter
    print(
        f"\n{name}: {millions:.1f} M parameters, float32, {torch.get_num_threads()} threads, "
        f"N={args.candidates} x S={args.steps} ({args.shape}), image {args.image} = "
        f"{len(job.pixels)} tiles, {len(job.pixels) * scorer.checkpoint.tokens_per_tile} tokens\n"
        f"  tokens computed {meter.tokens_computed}, in one pass per candidate "
        f"{meter.tokens_requested}, in one pass per step "
        f"{sum(read + 1 for p in job.tokens for read in p.read_positions)}"
    )
    print(f"  {'':22}{'seconds':>10}{'ratio':>8}{'max |difference|':>19}")
    for label, seconds, scores in (
        ("one forward per step", step, slow),
        ("one per candidate", candidate, middle),
        ("ours, one pass", fast, mine),
    ):
        ratio, gap = seconds / fast, difference(scores, mine)
        print(f"  {label:22}{seconds:10.3f}{ratio:8.1f}{gap:19.1e}")
    flat = [value for scores in mine for value in scores]
    print(f"  scores from {min(flat):.3f} to {max(flat):.3f}", flush=True)


def main() -> None:
    """Read the options and measure."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", default="tiny,100m")
    parser.add_argument("--image", default="896x448", help="width x height in pixels")
    parser.add_argument("--max-tiles", type=int, default=12)
    parser.add_argument("--shape", choices=["bon", "beam"], default="bon")
    parser.add_argument("--candidates", type=int, default=8)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--question-tokens", type=int, default=80)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--reference-repeats", type=int, default=1, help="of the slowest, 100m")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for name in args.models.split(","):
        with tempfile.TemporaryDirectory() as directory:
            run(name, args, Path(directory))


if __name__ == "__main__":
    main()
