"""Qwen-VL's images: the published resize rule, patch order and positions, without its processor."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from tests.families.oracle import qwen_size
from tests.families.tiny_models import random_model
from tests.scoring.test_oracle import picture
from vprm_search.errors import ImageError
from vprm_search.images import ImageLimits, normalise_image, open_rgb
from vprm_search.scoring.pixels import (
    PixelBudget,
    image_grid,
    pixel_patches,
    token_grid,
    token_positions,
)
from vprm_search.types import ImageData

SMALL = PixelBudget(min_pixels=4 * 784, max_pixels=16 * 784)
sides = st.integers(1, 3000)


@given(width=sides, height=sides)
@settings(max_examples=200)
def test_the_size_is_within_bounds_and_close_in_aspect(width: int, height: int) -> None:
    for rule in (SMALL, PixelBudget()):
        if max(width, height) > 200 * min(width, height):
            with pytest.raises(ImageError, match="200 times"):
                token_grid(width, height, rule)
            continue
        rows, columns = token_grid(width, height, rule)
        assert rows >= 1
        assert columns >= 1
        expected = qwen_size(width, height, rule.min_pixels, rule.max_pixels)
        assert (columns * 28, rows * 28) == expected
        if max(rows, columns) < 4 * min(rows, columns):  # very long ones cannot keep the bounds
            assert rows * columns * 784 <= rule.max_pixels


def test_transformers_own_rule_agrees() -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    for width in range(20, 2200, 97):
        for height in range(20, 2200, 89):
            rows, columns = token_grid(width, height, PixelBudget())
            found = smart_resize(height, width, 28, 256 * 784, 1280 * 784)
            assert (rows * 28, columns * 28) == found


@pytest.mark.parametrize("size", [(56, 56), (130, 50), (40, 90), (300, 200), (29, 400)])
def test_transformers_own_processor_agrees(size: tuple[int, int]) -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    image = picture(3, *size)
    processor: Any = Qwen2VLImageProcessorPil(
        size={"shortest_edge": SMALL.min_pixels, "longest_edge": SMALL.max_pixels}
    )
    expected = processor(images=[open_rgb(image.png)], return_tensors="pt")
    patches, grid = pixel_patches(image, SMALL)
    assert [[1, grid[0] * 2, grid[1] * 2]] == expected["image_grid_thw"].tolist()
    assert patches.shape == expected["pixel_values"].shape
    np.testing.assert_allclose(patches, expected["pixel_values"].numpy(), atol=2e-6)
    assert image_grid(image, SMALL) == grid


@given(
    parts=st.lists(st.tuples(st.integers(0, 4), st.integers(1, 4), st.integers(1, 4)), max_size=3),
    tail=st.integers(1, 5),
)
@settings(max_examples=60)
def test_positions_are_qwens_and_depend_on_earlier_tokens_only(
    parts: list[tuple[int, int, int]], tail: int
) -> None:
    spans, grids, at = [], [], 0
    for before, rows, columns in parts:
        at += before + 1  # at least one token of text between two images
        spans.append((at, at + rows * columns))
        grids.append((rows, columns))
        at += rows * columns
    found = token_positions(at + tail, spans, grids)
    np.testing.assert_array_equal(found, reference_positions(at + tail, spans, grids))
    for count in range(len(spans) + 1):
        end = spans[count - 1][1] if count else 0
        shorter = token_positions(end, spans[:count], grids[:count])
        np.testing.assert_array_equal(found[:, :end], shorter)


def reference_positions(
    length: int, spans: list[tuple[int, int]], grids: list[tuple[int, int]]
) -> np.ndarray:
    """Ask transformers' own model."""
    types = torch.zeros(1, length, dtype=torch.long)
    for start, stop in spans:
        types[0, start:stop] = 1
    thw = torch.tensor([[1, 2 * rows, 2 * columns] for rows, columns in grids])
    positions, _ = own_model().get_rope_index(
        torch.zeros(1, length, dtype=torch.long), types, thw if len(grids) else None
    )
    return positions[:, 0].numpy()


@cache
def own_model() -> Any:
    return random_model("qwen-vl-prm").model


@pytest.mark.parametrize(
    "wrong",
    [{"min_pixels": 2, "max_pixels": 1}, {"patch_size": 0}, {"std": (0, 1, 1)}, {"tile_size": 1}],
)
def test_rules_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        PixelBudget(**wrong)


def test_a_broken_image_is_an_error() -> None:
    with pytest.raises(ImageError):
        pixel_patches(ImageData("sha256-0", b"\x89PNG no"), SMALL)


def test_the_picture_itself_arrives() -> None:
    """A white image is the largest value of every channel in every patch."""
    white = normalise_image(Image.new("RGB", (56, 56), "white"), limits=ImageLimits(min_side=1))
    patches, grid = pixel_patches(white, SMALL)
    assert grid == (2, 2)
    channels = patches.reshape(-1, 3, 2, 14, 14)
    for channel in range(3):
        expected = (1 - SMALL.mean[channel]) / SMALL.std[channel]
        np.testing.assert_allclose(channels[:, channel], expected, rtol=1e-5)
