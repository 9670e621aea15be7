"""Tiles and pixel values against an independent description of InternVL's rule."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.scoring import oracle
from vprm_search.errors import CheckpointError, ImageError
from vprm_search.images import ImageLimits, normalise_image
from vprm_search.scoring.families import ScorerFile, read_scorer_file
from vprm_search.scoring.pixels import PreprocessConfig, pixel_values, tile_grid, tile_image
from vprm_search.types import ImageData

sides = st.one_of(st.integers(1, 3000), st.sampled_from([448, 896, 1344, 224, 634, 317]))


def make(width: int, height: int, seed: int = 0) -> Image.Image:
    draw = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(draw)


@given(sides, sides, st.integers(1, 12), st.integers(0, 12), st.sampled_from([448, 56]))
@settings(max_examples=400)
def test_grid_follows_the_rule(width: int, height: int, low: int, more: int, side: int) -> None:
    config = PreprocessConfig(tile_size=side, min_tiles=low, max_tiles=low + more)
    assert tile_grid(width, height, config) == oracle.best_grid(
        width, height, side, low, low + more
    )


@pytest.mark.parametrize(
    ("size", "grid"),
    [
        ((448, 448), (1, 1)),
        ((896, 448), (2, 1)),
        ((448, 1344), (1, 3)),
        ((800, 600), (4, 3)),
        ((1000, 1000), (3, 3)),  # 1x1, 2x2 and 3x3 fit equally; it has more than half of 3x3
        ((800, 800), (2, 2)),
        ((300, 300), (1, 1)),
        ((5000, 100), (12, 1)),
        ((640, 480), (4, 3)),
    ],
)
def test_known_grids_at_twelve_tiles(size: tuple[int, int], grid: tuple[int, int]) -> None:
    assert tile_grid(*size, PreprocessConfig()) == grid


@given(st.integers(2, 300), st.integers(2, 300), st.integers(1, 6), st.booleans())
@settings(max_examples=60)
def test_pixels_follow_the_rule(width: int, height: int, high: int, thumbnail: bool) -> None:
    config = PreprocessConfig(tile_size=56, max_tiles=high, thumbnail=thumbnail)
    image = make(width, height, seed=width)
    data = normalise_image(image, limits=ImageLimits(min_side=1))
    values = pixel_values(data, config)
    wanted = oracle.tiles(image, 56, high, config.mean, config.std, thumbnail=thumbnail)
    assert values.dtype == np.float32
    assert values.shape == tuple(wanted.shape)
    assert np.abs(values - wanted.numpy()).max() < 1e-5


def test_tiles_go_row_by_row_and_the_thumbnail_comes_last() -> None:
    image = Image.new("RGB", (896, 896))
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)]
    for number, colour in enumerate(colours):
        image.paste(colour, (number % 2 * 448, number // 2 * 448, number % 2 * 448 + 448, 896))
    image.paste(colours[2], (0, 448, 448, 896))
    image.paste(colours[3], (448, 448, 896, 896))
    image.paste(colours[0], (0, 0, 448, 448))
    image.paste(colours[1], (448, 0, 896, 448))
    tiles = tile_image(image, PreprocessConfig(max_tiles=4))
    assert [tile.getpixel((200, 200)) for tile in tiles[:4]] == colours
    assert len(tiles) == 5
    assert tiles[4].getpixel((50, 50)) == colours[0]
    assert tiles[4].getpixel((400, 400)) == colours[3]


def test_black_and_white_have_imagenet_values() -> None:
    data = normalise_image(Image.new("RGB", (448, 448), (255, 0, 255)))
    values = pixel_values(data, PreprocessConfig())
    assert values.shape == (1, 3, 448, 448)
    expected = ((1 - 0.485) / 0.229, -0.456 / 0.224, (1 - 0.406) / 0.225)
    assert values.mean((0, 2, 3)) == pytest.approx(expected, abs=1e-5)


def test_a_damaged_image_is_an_image_error() -> None:
    with pytest.raises(ImageError):
        pixel_values(ImageData("sha256-00", b"not a picture"), PreprocessConfig())


def write_config(directory: Path, **processor: object) -> Path:
    config = {"model_type": "internvl", "vision_config": {"image_size": [64, 64]}}
    (directory / "config.json").write_text(json.dumps(config))
    if processor:
        (directory / "processor_config.json").write_text(json.dumps({"image_processor": processor}))
    return directory


def test_the_rule_is_read_from_the_processor_file(tmp_path: Path) -> None:
    write_config(tmp_path, image_mean=[0.5] * 3, image_std=[0.25] * 3, min_patches=2, max_patches=6)
    rule = read_scorer_file(tmp_path, "visualprm").preprocess
    assert (rule.tile_size, rule.min_tiles, rule.max_tiles) == (64, 2, 6)
    assert (rule.mean, rule.std) == ((0.5,) * 3, (0.25,) * 3)


def test_without_a_processor_file_the_defaults_hold(tmp_path: Path) -> None:
    rule = read_scorer_file(write_config(tmp_path), "visualprm").preprocess
    assert rule == PreprocessConfig(tile_size=64)


def test_vprm_json_wins_over_the_processor_file(tmp_path: Path) -> None:
    write_config(tmp_path, image_mean=[0.5] * 3, max_patches=6)
    stored = ScorerFile(preprocess=PreprocessConfig(tile_size=64, max_tiles=3))
    stored.write(tmp_path)
    assert read_scorer_file(tmp_path) == stored


@pytest.mark.parametrize("text", ["{", '{"layuot": {}}', '{"preprocess": {"max_tiles": 0}}', "[]"])
def test_a_broken_vprm_json_is_a_checkpoint_error(tmp_path: Path, text: str) -> None:
    write_config(tmp_path)
    (tmp_path / "vprm.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"vprm\.json"):
        read_scorer_file(tmp_path)


def test_a_broken_processor_file_is_a_checkpoint_error(tmp_path: Path) -> None:
    write_config(tmp_path, image_mean=0.5)
    with pytest.raises(CheckpointError, match="image processor"):
        read_scorer_file(tmp_path, "visualprm")


def test_a_folder_that_may_be_a_chat_model_is_refused(tmp_path: Path) -> None:
    """Native InternVL without `vprm.json` scores like VisualPRM, and means nothing."""
    with pytest.raises(CheckpointError, match=r"no vprm\.json"):
        read_scorer_file(write_config(tmp_path))
    assert read_scorer_file(tmp_path, "visualprm").family == "visualprm"
