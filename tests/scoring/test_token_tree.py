"""Paths packed into a tree: nothing lost, nothing doubled, and nobody sees another branch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vprm_search.scoring.engine.attention import (
    AttentionPlan,
    DensePlanner,
    FlexPlanner,
    Planner,
    attention_blocks,
    seen_by,
    tile_kinds,
    tree_attention,
    try_out,
)
from vprm_search.scoring.engine.prefix_cache import Branch, CachedRows, PrefixCache
from vprm_search.scoring.engine.token_tree import TokenPath, TokenTree, build_tree, tree_sizes

# two letters and repeats of a run: shared prefixes, paths inside paths, blocks of every size
tokens = st.lists(
    st.one_of(st.sampled_from([(1,), (2,)]), st.sampled_from([(3,) * 90, (4, 5) * 75])), max_size=4
).map(lambda parts: tuple(t for part in parts for t in part))
paths = st.lists(
    st.builds(TokenPath, st.sampled_from(["a", "b"]), tokens.filter(bool)), min_size=1, max_size=5
)


def prefixes(given_paths: list[TokenPath]) -> set[tuple[object, tuple[int, ...]]]:
    """Return every distinct (group, prefix): the rows a tree must have."""
    return {(p.group, p.ids[:n]) for p in given_paths for n in range(1, len(p.ids) + 1)}


@given(paths)
def test_every_prefix_has_exactly_one_row(given_paths: list[TokenPath]) -> None:
    tree = build_tree(given_paths)
    assert tree.size == len(prefixes(given_paths)) == len(tree.ids)
    assert tree.groups == tuple(given_paths[s.path].group for s in tree.segments)
    ids, positions = tree.ids, tree.positions()
    for number, path in enumerate(given_paths):
        rows = tree.rows_of(number)
        assert tuple(ids[rows]) == path.ids
        assert list(positions[rows]) == list(range(len(path.ids)))
        assert list(rows) == sorted(rows)


@given(paths)
def test_sizes_add_up_to_the_tree(given_paths: list[TokenPath]) -> None:
    order, added = tree_sizes(given_paths)
    assert sorted(order) == list(range(len(given_paths)))
    assert sum(added) == build_tree(given_paths).size
    for count in range(1, len(order)):
        assert sum(added[:count]) == build_tree([given_paths[i] for i in order[:count]]).size


def expected_mask(tree: TokenTree, given_paths: list[TokenPath]) -> np.ndarray:
    """Return who may see whom, straight from the paths: `[rows, rows]`."""
    mask = np.zeros((tree.size, tree.size), dtype=bool)
    for number in range(len(given_paths)):
        rows = tree.rows_of(number)
        for at, row in enumerate(rows):
            mask[row, rows[: at + 1]] = True
    return mask


@given(paths)
def test_the_plan_covers_every_row_once_and_masks_the_rest(given_paths: list[TokenPath]) -> None:
    tree = build_tree(given_paths)
    wanted = expected_mask(tree, given_paths)
    got = np.zeros_like(wanted)
    at = 0
    cached = PrefixCache(0).find(tree, np.arange(0))
    assert cached.count == 0
    for block in attention_blocks(tree, cached):
        assert block.start == at
        at = block.stop
        keys = torch.arange(tree.size)[block.keys].numpy()
        size = block.stop - block.start
        mask = np.tri(size, dtype=bool) if block.mask is None else block.mask.numpy()
        got[np.ix_(range(block.start, block.stop), keys)] = mask
    assert at == tree.size
    assert np.array_equal(got, wanted)


def content(tree: TokenTree, given_paths: list[TokenPath]) -> torch.Tensor:
    """Return made-up queries, keys and values that depend on the prefix only: `[3, rows, 4]`."""
    seeds = torch.zeros(tree.size, dtype=torch.float64)
    for number, path in enumerate(given_paths):
        value = 1 if path.group == "a" else 2
        for row, token in zip(tree.rows_of(number), path.ids, strict=True):
            value = (value * 31 + token) % 10_007
            seeds[row] = value
    pitch = torch.arange(1, 13, dtype=torch.float64).reshape(3, 1, 4)
    return torch.sin(seeds[None, :, None] * pitch) * 3


def dense(tree: TokenTree, given_paths: list[TokenPath]) -> torch.Tensor:
    query, key, value = content(tree, given_paths)
    mask = torch.from_numpy(expected_mask(tree, given_paths))
    weights = (query @ key.T * 0.3).masked_fill(~mask, float("-inf")).softmax(-1)
    return weights @ value


def small_blocks() -> DensePlanner:
    """Return the planner as it is when memory ran out often."""
    planner = DensePlanner()
    planner.max_queries = 16
    return planner


ROW_BYTES = 2 * 4 * 8
"""One layer, one head of four float64 numbers, keys and values."""


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("planner", [DensePlanner(), small_blocks(), FlexPlanner(None)])
@given(rounds=st.lists(paths, min_size=1, max_size=3), limit=st.sampled_from([0, 300, 100_000]))
@settings(max_examples=25)
def test_attention_over_kept_rows_equals_dense_masked_attention(
    planner: Planner, rounds: list[list[TokenPath]], limit: int
) -> None:
    cache = PrefixCache(limit * ROW_BYTES)
    before: set[tuple[object, tuple[int, ...]]] = set()
    for given_paths in rounds:
        cache.begin_call()
        tree = build_tree(given_paths)
        cached = cache.find(tree, np.arange(0))
        if limit == 0:
            assert cached.count == 0
        elif limit == 100_000:
            assert cached.count == len(prefixes(given_paths) & before)
        for path in given_paths:
            seen = sum(cached.places[tree.rows_of(given_paths.index(path))] < cached.count)
            assert seen == cache.cached_tokens(path)
        wanted = dense(tree, given_paths)
        if len(cached.new_rows):
            plan = AttentionPlan(planner(tree, cached, torch.device("cpu")), cached, collect=True)
            query, key, value = content(tree, given_paths)[:, cached.new_rows, None, :]
            parts = [part.transpose(0, 1)[None] for part in (query, key, value)]
            # two query heads share one pair of keys and values
            heads = parts[0].repeat(1, 2, 1, 1)
            got, _ = tree_attention(
                torch.nn.Identity(), heads, *parts[1:], None, 0.3, attention_plan=plan
            )
            assert got.shape == (1, len(cached.new_rows), 2, 4)
            gap = got[0] - wanted[cached.new_rows][:, None, :]
            assert gap.abs().max() < 1e-12
            if cache.enabled:
                cache.keep(tree, cached, plan.layers, np.full(tree.size, 0.5))
            assert cache.blocks.held_bytes <= limit * ROW_BYTES
            assert cache.blocks.used_rows == sum(
                len(branch.ids) for root in cache._roots.values() for branch in every(root)
            )
        before |= prefixes(given_paths)


@given(given_paths=paths, forgotten=st.integers(0, 400))
def test_the_block_table_names_every_tile_exactly(
    given_paths: list[TokenPath], forgotten: int
) -> None:
    """Empty, mixed and full tiles, counted from runs, are those of the whole mask."""
    tree = build_tree(given_paths)
    count = max(0, tree.size - 1 - forgotten)  # so many rows are cached, some anywhere
    order = np.random.default_rng(forgotten).permutation(tree.size)
    hits, new = order[:count], np.sort(order[count:])
    places = np.empty(tree.size, dtype=np.int64)
    places[hits], places[new] = np.arange(count), count + np.arange(len(new))
    cached = CachedRows(places, count, np.full(tree.size, np.nan))
    tile, (queries, keys) = 16, (-(-n // 16) * 16 for n in (len(new), tree.size))
    mask = np.zeros((queries, keys), dtype=bool)
    mask[: len(new), places] = expected_mask(tree, given_paths)[new]
    tiles = mask.reshape(queries // tile, tile, keys // tile, tile)
    mixed, full = tile_kinds(*seen_by(tree, cached, keys), queries, tile)
    assert np.array_equal(full, tiles.all(axis=(1, 3)))
    assert np.array_equal(mixed | full, tiles.any(axis=(1, 3)))
    assert not (mixed & full).any()


@pytest.mark.slow
def test_rounds_of_all_lengths_share_two_compiled_kernels() -> None:
    """One for a first round, one for rounds with cached rows, both met when a scorer is made."""
    compiled: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    planner = FlexPlanner(backend)
    try_out(planner, torch.device("cpu"), torch.float32, (4, 2, 16))
    assert len(compiled) == 2
    for length, count in ((30, 0), (30, 100), (700, 0), (800, 700), (120, 200), (300, 420)):
        stem = tuple(range(length))
        tree = build_tree([TokenPath("", (*stem, 1000 + n, *stem)) for n in range(3)])
        cached = CachedRows(np.arange(tree.size), count, np.full(tree.size, np.nan))
        rows = [torch.randn(1, h, n, 16) for h, n in ((4, tree.size - count), (2, tree.size))]
        with torch.inference_mode():
            planner(tree, cached, torch.device("cpu"))(*rows, rows[1], None)
    assert len(compiled) == 2


def every(branch: Branch) -> list[Branch]:
    return [branch, *(b for child in branch.children.values() for b in every(child))]


def test_thousands_of_branches_need_no_recursion() -> None:
    comb = [TokenPath("a", (1,) * n + (2,)) for n in range(1, 1500)]
    tree = build_tree(comb)
    assert tree.size == 2 * 1499
    assert len(tree.rows_of(1498)) == 1500
