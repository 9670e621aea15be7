"""What only a GPU can show: compiled kernels, bfloat16, and memory that really runs out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from tests.scoring.random_internvl import Size, write_checkpoint
from tests.scoring.test_oracle import PICTURES, as_request
from vprm_search.scoring import TransformersScorer
from vprm_search.scoring.engine.attention import DensePlanner, FlexPlanner
from vprm_search.scoring.engine.prefix_cache import CachedRows
from vprm_search.scoring.engine.token_tree import TokenPath, build_tree
from vprm_search.types import ScoreRequest, ScoreResult

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

REQUESTS = [
    as_request("What is x?", PICTURES[:2], (f"x = {n}", f"so x = {m}" * 9))
    for n in range(3)
    for m in range(3)
]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model"), Size(max_positions=16_384), seed=3)


@pytest.fixture
def small_device() -> Iterator[None]:
    """Leave this process 64 MiB of the device."""
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((64 << 20) / total)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


def values(results: list[ScoreResult]) -> list[float | None]:
    return [score.value for result in results for score in result.scores]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("count", [0, 500])
def test_compiled_flex_attention_equals_sdpa_and_dense_blocks(dtype: str, count: int) -> None:
    stem = tuple(range(900))
    tree = build_tree([TokenPath("", (*stem, 1000 + n, *stem[:200])) for n in range(5)])
    cached = CachedRows(np.arange(tree.size), count, np.full(tree.size, np.nan))
    kind, device = getattr(torch, dtype), torch.device("cuda")
    query, key, value = (
        torch.randn(1, heads, rows, 64, device=device, dtype=kind)
        for heads, rows in ((8, tree.size - count), (2, tree.size), (2, tree.size))
    )
    sees = torch.zeros(tree.size, tree.size, dtype=torch.bool)
    for number in range(5):
        rows = torch.from_numpy(tree.rows_of(number))
        sees[rows[:, None], rows] |= torch.ones(len(rows), len(rows), dtype=torch.bool).tril()
    wanted = scaled_dot_product_attention(
        query.float(),
        key.float().repeat_interleave(4, 1),
        value.float().repeat_interleave(4, 1),
        attn_mask=sees[count:].to(device),
    )
    for planner in (FlexPlanner("inductor"), DensePlanner()):
        with torch.inference_mode():
            found = planner(tree, cached, device)(query, key, value, None).float()
        assert (found - wanted).abs().max() < (1e-3 if dtype == "float32" else 3e-2)


@pytest.mark.parametrize("attention", ["flex", "blocks"])
def test_bfloat16_is_close_to_float32(path: Path, attention: str) -> None:
    def scored(device: str, dtype: str, attention: str) -> list[float | None]:
        scorer = TransformersScorer.from_pretrained(
            path, device=device, dtype=dtype, attention=attention
        )
        return values(scorer.score_sync(REQUESTS))

    exact = scored("cpu", "float32", "blocks")
    assert scored("cuda", "float32", attention) == pytest.approx(exact, abs=1e-3)
    assert scored("cuda", "bfloat16", attention) == pytest.approx(exact, abs=0.1)


def test_memory_that_runs_out_costs_passes_not_scores(path: Path, small_device: None) -> None:
    long = [
        as_request("What is x?", (), (f"{n} " + "x = 3 so " * 1500, f"y = {n}")) for n in range(8)
    ]
    exact = TransformersScorer.from_pretrained(path, device="cpu").score_sync(long)
    scorer = TransformersScorer.from_pretrained(
        path, device="cuda", dtype="float32", attention="blocks", max_batch_tokens=1 << 20
    )
    found = scorer.score_sync(long)
    assert scorer.meter.out_of_memory > 0
    scored = [(a, b) for a, b in zip(found, exact, strict=True) if a.scores[0].value is not None]
    assert scored
    for ours, theirs in scored:
        assert values([ours]) == pytest.approx(values([theirs]), abs=1e-3)
    assert all(
        r.scores[0].reason.startswith("out_of_memory") for r in found if r.scores[0].value is None
    )


def test_a_later_call_is_served_after_memory_ran_out(path: Path, small_device: None) -> None:
    scorer = TransformersScorer.from_pretrained(path, device="cuda", attention="blocks")
    huge: ScoreRequest = as_request("What is x?", (), ("x = 3 so " * 3000,))
    scorer.score_sync([huge] * 2)
    assert all(value is not None for value in values(scorer.score_sync(REQUESTS)))
