"""Peak memory and seconds of planning one pass of attention: our block table, and torch's own.

    python -m tests.benchmarks.attention_memory [--rows 8192,16384,32768]

A tree of one long stem and eight branches. `tree` is the block table that `FlexPlanner` makes from
the tree, `create_block_mask` what torch makes of the same mask, uncompiled, and `dense` the masks
of `DensePlanner`. Every figure is the growth of a fresh process's peak (`ru_maxrss`) while it
plans; nothing is computed with the plan. One process per figure: a peak does not go down.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import torch

from vprm_search.scoring.engine.attention import DensePlanner, FlexPlanner
from vprm_search.scoring.engine.prefix_cache import CachedRows
from vprm_search.scoring.engine.token_tree import TokenPath, TokenTree, build_tree

CPU = torch.device("cpu")


def tree_of(rows: int) -> TokenTree:
    """Return a tree of about `rows` rows: three quarters are the stem."""
    stem = tuple(range(3 * rows // 4))
    return build_tree([TokenPath("", (*stem, *(rows + n,) * (rows // 32))) for n in range(8)])


def uncompiled(tree: TokenTree) -> object:
    """Make the mask as torch does, from a function of query and key."""
    from torch.nn.attention.flex_attention import create_block_mask

    ends = np.empty(tree.size, dtype=np.int64)
    for segment in tree.segments:
        ends[segment.start : segment.stop] = segment.subtree_stop
    end = torch.from_numpy(ends)
    return create_block_mask(
        lambda b, h, q, k: (k <= q) & (q < end[k]), None, None, tree.size, tree.size, device="cpu"
    )


def nothing_cached(tree: TokenTree) -> CachedRows:
    return CachedRows(np.arange(tree.size), 0, np.full(tree.size, np.nan))


WAYS: dict[str, Callable[[TokenTree], object]] = {
    "tree": lambda tree: FlexPlanner(None)(tree, nothing_cached(tree), CPU),
    "create_block_mask": uncompiled,
    "dense": lambda tree: DensePlanner()(tree, nothing_cached(tree), CPU),
}


def measure(way: str, rows: int) -> dict[str, float]:
    """Plan once in this process; return the growth of its peak in MiB, and the seconds."""
    WAYS[way](tree_of(512))  # what is loaded on first use is not counted
    tree = tree_of(rows)
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    plan = WAYS[way](tree)
    seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    del plan
    return {"mib": (after - before) / 1024, "seconds": seconds}


def main() -> None:
    """Read the options; measure every way and size in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", default="8192,16384,32768")
    parser.add_argument("--ways", default="tree,create_block_mask,dense")
    parser.add_argument("--only", nargs=2, metavar=("WAY", "ROWS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        print(json.dumps(measure(args.only[0], int(args.only[1]))))
        return
    for rows in args.rows.split(","):
        for way in args.ways.split(","):
            command = [sys.executable, "-m", "tests.benchmarks.attention_memory"]
            done = subprocess.run([*command, "--only", way, rows], capture_output=True, text=True)
            found = json.loads(done.stdout) if done.returncode == 0 else {}
            shown = f"{found['mib']:9.1f} MiB {found['seconds']:8.2f} s" if found else "     failed"
            print(f"{rows:>6} rows  {way:18} {shown}", flush=True)


if __name__ == "__main__":
    main()
