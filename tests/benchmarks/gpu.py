"""The scoring engine at the shape of VisualPRM-8B, on a GPU, in one command:

    python -m tests.benchmarks.gpu --out FILE

Weights are random and made on the device; nothing is loaded and nothing is fetched. Needs torch and
transformers. Writes its figures as JSON after every part, and stops starting parts when the time is
up. `--size tiny` runs the same on a CPU in seconds.

Two jobs, each scored by four methods: the published one (a forward pass per step), its second
version (one per candidate), ours without memory between rounds, and ours with keys and values kept.
The published methods are forward passes over the steps of single candidates, all about equally
long: such a pass is measured for every number of steps, and their seconds are summed over the job.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path as File
from typing import Any

import torch
from torch import Tensor

from tests.benchmarks import bare_model as bare
from tests.benchmarks.token_search import Path, TokenWorld, distinct_tokens, visible_pairs
from vprm_search.scoring.engine.forward import PathJob, ScoringMeter, TokenBatcher, TreeForward
from vprm_search.scoring.engine.prefix_cache import PrefixCache
from vprm_search.scoring.engine.token_tree import TokenPath

GROUP = "image"


class Bench:
    """One model on one device, and the clock."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.started = time.perf_counter()
        self.device = torch.device(args.device)
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.shape = bare.SHAPES[args.size]
        self.found: dict[str, Any] = {"about": self._about(), "skipped": []}

    def _about(self) -> dict[str, Any]:
        import transformers

        cuda = self.device.type == "cuda"
        return {
            "device": torch.cuda.get_device_name() if cuda else platform.processor() or "cpu",
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "dtype": str(self.dtype),
            "size": self.args.size,
            "image_tokens": self.shape.image_tokens,
            "threads": torch.get_num_threads(),
        }

    def seconds(self, work: Callable[[], Any], repeats: int = 1) -> tuple[float, Any]:
        """Return the median seconds of `repeats` runs, and the last result.

        On a CPU these are seconds of the processor, since other work may share it.
        """
        clock = time.perf_counter if self.device.type == "cuda" else time.process_time
        taken, result = [], None
        for _ in range(repeats):
            self.wait()
            start = clock()
            result = work()
            self.wait()
            taken.append(clock() - start)
        return statistics.median(taken), result

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def part(self, name: str, work: Callable[[], dict[str, Any]]) -> None:
        """Run one part of the measurement if there is time, and write what is known."""
        spent = time.perf_counter() - self.started
        if spent > self.args.limit_s:
            self.found["skipped"].append(name)
        else:
            try:
                self.found[name] = work()
            except Exception as error:  # the other parts are worth having
                self.found[name] = {"error": f"{type(error).__name__}: {error}"[:500]}
        self.found["seconds_in_all"] = time.perf_counter() - self.started
        File(self.args.out).write_text(json.dumps(self.found, indent=1) + "\n")
        print(name, json.dumps(self.found.get(name, "skipped")), flush=True)

    # --- the methods -------------------------------------------------------------------------

    def load(self) -> dict[str, Any]:
        """Make the model and the image."""
        seconds, self.model = self.seconds(lambda: bare.build(self.shape, self.device, self.dtype))
        draw = torch.Generator().manual_seed(1)
        side = self.shape.tile
        pixels = torch.randn(self.shape.tiles, 3, side, side, generator=draw)
        self.pixels = pixels.to(self.device, self.dtype)
        self.checkpoint = bare.BareCheckpoint(self.model, self.device)
        weights = sum(p.numel() for p in self.model.parameters())
        with torch.inference_mode():
            bare.image_features(self.model, self.pixels)  # warms up
            encoding, _ = self.seconds(
                lambda: bare.image_features(self.model, self.pixels), self.args.repeats
            )
        return {"parameters": weights, "seconds": seconds, "image_seconds": encoding}

    def peak(self) -> dict[str, Any]:
        """Measure the fastest matrix product of this device in this dtype."""
        side = 8192 if self.device.type == "cuda" else 768
        a, b = (torch.randn(side, side, device=self.device, dtype=self.dtype) for _ in range(2))
        best = min(self.seconds(lambda: a @ b)[0] for _ in range(12))
        return {"flops": 2.0 * side**3 / best, "side": side}

    def ours(self, attention: str, kept_bytes: int) -> Ours:
        return Ours(self, attention, kept_bytes)

    def published(self, path: Path) -> tuple[list[float], float, list[float]]:
        """Measure forward passes over the first 1, 2, … steps of a candidate, the image in each.

        Returns their seconds, the seconds of one pass that reads all steps, and the scores.
        """
        bare.use_attention(self.model, tree=False)
        each, scores = [], []
        for read in path.reads:
            ids = path.ids[: read + 1]
            seconds, found = self.seconds(
                lambda i=ids, r=read: bare.one_pass(self.model, i, [r], self.pixels),
                self.args.repeats,
            )
            each.append(seconds)
            scores += found
        whole, again = self.seconds(
            lambda: bare.one_pass(self.model, path.ids, path.reads, self.pixels),
            self.args.repeats,
        )
        assert difference([scores], [again]) < 0.1
        return each, whole, scores


class Ours:
    """Our engine over token paths: as `ScoringEngine` runs it, without text and callers."""

    def __init__(self, bench: Bench, attention: str, kept_bytes: int) -> None:
        bare.use_attention(bench.model, tree=True)
        self.bench = bench
        self.meter = ScoringMeter()
        self.cache = PrefixCache(kept_bytes)
        self.forward = TreeForward(bench.checkpoint, self.meter, self.cache, attention)  # type: ignore[arg-type]
        self.batcher = TokenBatcher(
            bench.args.batch_tokens, self.cache.give_up_half, self.forward.use_less_memory
        )
        self.features: Tensor | None = None

    def __call__(self, paths: Sequence[Path]) -> list[list[float]]:
        """Score one round; the image is encoded in the first."""
        bare.use_attention(self.bench.model, tree=True)
        with torch.inference_mode():
            if self.features is None:
                self.features = bare.image_features(self.bench.model, self.bench.pixels)
            self.cache.begin_call()
            jobs = [
                PathJob(TokenPath(GROUP, p.ids), p.reads, (p.image,), self.features) for p in paths
            ]
            found = self.batcher.run(
                [job.path for job in jobs], lambda chosen: self.forward([jobs[i] for i in chosen])
            )
        return [scores.values for scores in found if scores is not None]


def difference(left: Sequence[Sequence[float]], right: Sequence[Sequence[float]]) -> float:
    """Return the largest difference of two sets of scores; NaN shows."""
    pairs = [(a, b) for x, y in zip(left, right, strict=False) for a, b in zip(x, y, strict=True)]
    return max(abs(a - b) for a, b in pairs)


def one_round(bench: Bench) -> dict[str, Any]:
    """N = 8 candidates of S = 8 steps, cold: nothing is cached, the image is not encoded."""
    args, world = bench.args, TokenWorld(bench.shape)
    paths = world.solutions(args.candidates, args.steps)
    out: dict[str, Any] = {"candidates": args.candidates, "steps": args.steps}
    names = attentions(bench)
    peak = bench.found["peak"]["flops"]
    work = bare.flops_of_image(bench.model, bench.shape) + bare.flops_of_rows(
        bench.model, bench.shape, distinct_tokens(paths), visible_pairs(paths)
    )
    scores: list[list[float]] = []
    for name in names:
        bench.ours(name, 0)(paths)  # warms up, and compiles
        with peak_memory(bench) as memory:
            seconds, scores = bench.seconds(lambda n=name: bench.ours(n, 0)(paths), args.repeats)
        out[f"ours_{name}"] = {
            "seconds": seconds,
            "peak_share": work / seconds / peak,
            "peak_bytes": memory[0],
        }
    each, whole, theirs = bench.published(paths[0])
    out["per_candidate"] = {"seconds": whole * len(paths)}
    out["per_step"] = {"seconds": sum(each) * len(paths), "pass_seconds": each}
    out["max_difference"] = difference(scores[:1], [theirs])
    best = min(out[f"ours_{name}"]["seconds"] for name in names)
    out["ratios"] = {k: out[k]["seconds"] / best for k in ("per_candidate", "per_step")}
    out["tokens_ideal"] = distinct_tokens(paths)
    return out


def whole_search(bench: Bench) -> dict[str, Any]:
    """A beam search of ten rounds, N = 16 candidates each, from a cold start."""
    args = bench.args
    rounds = TokenWorld(bench.shape, seed=1).beam(args.width, args.expand, args.depth)
    every = [path for paths in rounds for path in paths]
    ideal = distinct_tokens(every)
    out: dict[str, Any] = {"rounds": len(rounds), "candidates": len(rounds[-1])}
    work = bare.flops_of_image(bench.model, bench.shape) + bare.flops_of_rows(
        bench.model, bench.shape, ideal, visible_pairs(every)
    )
    last: list[list[float]] = []
    for name in attentions(bench):
        for label, kept in (("per_round", 0), ("kept", args.kept_bytes)):
            with peak_memory(bench) as memory:
                engine = bench.ours(name, kept)
                each = []
                for paths in rounds:
                    seconds, last = bench.seconds(lambda e=engine, p=paths: e(p))
                    each.append(seconds)
            out[f"ours_{label}_{name}"] = {
                "seconds": sum(each),
                "round_seconds": each,
                "tokens_computed": engine.meter.tokens_computed,
                "tokens_over_ideal": engine.meter.tokens_computed / ideal,
                "peak_share": work / sum(each) / bench.found["peak"]["flops"],
                "peak_bytes": memory[0],
                "out_of_memory": engine.batcher.out_of_memory,
            }
    out["kernels_compiled"] = compiled_kernels()
    each, _, theirs = bench.published(rounds[-1][0])
    sizes = [len(paths) for paths in rounds]
    steps = [sum(each[:count]) for count in range(1, len(each) + 1)]
    out["per_candidate"] = {"seconds": sum(n * t for n, t in zip(sizes, each, strict=True))}
    out["per_step"] = {"seconds": sum(n * t for n, t in zip(sizes, steps, strict=True))}
    out["max_difference"] = difference(last[:1], [theirs])
    kept = min(v["seconds"] for k, v in out.items() if k.startswith("ours_kept"))
    out["ratios"] = {k: v["seconds"] / kept for k, v in out.items() if isinstance(v, dict)}
    out["tokens_ideal"] = ideal
    return out


def attentions(bench: Bench) -> list[str]:
    """Return the kinds of attention that work here."""
    if bench.device.type != "cuda":
        return ["blocks"]
    try:
        return ["flex", "blocks"] if bench.ours("flex", 0) else []
    except Exception as error:
        bench.found["flex_error"] = str(error)[:500]
        return ["blocks"]


def compiled_kernels() -> int:
    """Return how often torch compiled so far: FlexAttention twice, if rounds do not recompile."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


@contextlib.contextmanager
def peak_memory(bench: Bench) -> Any:
    """Give a list whose one entry becomes the peak of allocated bytes; 0 without a GPU."""
    out = [0]
    cuda = bench.device.type == "cuda"
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    yield out
    if cuda:
        out[0] = torch.cuda.max_memory_allocated()


def main(argv: Sequence[str] | None = None) -> None:
    """Read the options, measure, write the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", required=True, help="JSON file to write")
    parser.add_argument("--size", choices=sorted(bare.SHAPES), default="8b")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--limit-s", type=float, default=480.0, help="no part starts after this")
    parser.add_argument("--candidates", type=int, default=8)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--width", type=int, default=4)
    parser.add_argument("--expand", type=int, default=4)
    parser.add_argument("--depth", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch-tokens", type=int, default=16_384)
    parser.add_argument("--kept-bytes", type=int, default=2 << 30)
    bench = Bench(parser.parse_args(argv))
    bench.part("load", bench.load)
    bench.part("peak", bench.peak)
    bench.part("one_round", lambda: one_round(bench))
    bench.part("search", lambda: whole_search(bench))


if __name__ == "__main__":
    main()
