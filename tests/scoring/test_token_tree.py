"""Paths packed into a tree: nothing lost, nothing doubled, and nobody sees another branch."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vprm_search.scoring.token_tree import TokenPath, TokenTree, build_tree, tree_sizes
from vprm_search.scoring.tree_attention import plan_attention, tree_attention

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


def ids_of_rows(tree: TokenTree, given_paths: list[TokenPath]) -> np.ndarray:
    out = np.zeros(tree.size, dtype=np.int64)
    for number, path in enumerate(given_paths):
        out[tree.rows_of(number)] = path.ids
    return out


@given(paths)
def test_every_prefix_has_exactly_one_row(given_paths: list[TokenPath]) -> None:
    tree = build_tree(given_paths)
    assert tree.size == len(prefixes(given_paths))
    ids, positions = ids_of_rows(tree, given_paths), tree.positions()
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
    for block in plan_attention(tree):
        assert block.start == at
        at = block.stop
        keys = torch.arange(tree.size)[block.keys].numpy()
        size = block.stop - block.start
        mask = np.tri(size, dtype=bool) if block.mask is None else block.mask.numpy()
        got[np.ix_(range(block.start, block.stop), keys)] = mask
    assert at == tree.size
    assert np.array_equal(got, wanted)


@given(paths, st.integers(0, 9))
@settings(max_examples=30)
def test_block_attention_equals_dense_masked_attention(
    given_paths: list[TokenPath], seed: int
) -> None:
    tree = build_tree(given_paths)
    draw = torch.Generator().manual_seed(seed)
    query = torch.randn(1, 2, tree.size, 4, generator=draw, dtype=torch.float64)
    key, value = torch.randn(2, 1, 1, tree.size, 4, generator=draw, dtype=torch.float64)
    got, _ = tree_attention(
        torch.nn.Identity(), query, key, value, None, 0.3, attention_plan=plan_attention(tree)
    )
    scores = query @ key.repeat_interleave(2, 1).transpose(-1, -2) * 0.3
    mask = torch.from_numpy(expected_mask(tree, given_paths))
    weights = scores.masked_fill(~mask, float("-inf")).softmax(-1)
    wanted = (weights @ value.repeat_interleave(2, 1)).transpose(1, 2)
    assert got.shape == wanted.shape
    assert (got - wanted).abs().max() < 1e-12


def test_thousands_of_branches_need_no_recursion() -> None:
    comb = [TokenPath("a", (1,) * n + (2,)) for n in range(1, 1500)]
    tree = build_tree(comb)
    assert tree.size == 2 * 1499
    assert len(tree.rows_of(1498)) == 1500
