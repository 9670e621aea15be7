"""Images as the pixel values a vision tower wants: InternVL's tiles, or Qwen-VL's patches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from vprm_search.errors import ImageError
from vprm_search.types import ImageData

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

_BICUBIC = 3  # PIL.Image.Resampling.BICUBIC, by number so that PIL is not imported here

# --- InternVL: dynamic tiles, and a thumbnail -----------------------------------------------------

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class PreprocessConfig(BaseModel):
    """How a checkpoint wants its images; the defaults are VisualPRM's.

    `tile_size` is the side of a tile in pixels, `min_tiles` and `max_tiles` bound the tiles of one
    image without its thumbnail, `mean` and `std` are per channel for values in [0, 1].
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tile_size: int = Field(default=448, ge=1)
    min_tiles: int = Field(default=1, ge=1)
    max_tiles: int = Field(default=12, ge=1)
    thumbnail: bool = True
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    @model_validator(mode="after")
    def _bounds_agree(self) -> PreprocessConfig:
        if self.min_tiles > self.max_tiles:
            raise ValueError(f"min_tiles {self.min_tiles} is above max_tiles {self.max_tiles}")
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive; it is {self.std}")
        return self


def tile_grid(width: int, height: int, config: PreprocessConfig) -> tuple[int, int]:
    """Return the `(columns, rows)` of tiles for an image of `width` x `height` pixels.

    Of all grids with an allowed number of tiles, in the order of that number, the one whose aspect
    is closest to the image's; on equal distance the later grid wins if the image has more than
    half the pixels of that grid. Grids of equal size are taken in the order of their columns (the
    original leaves that order to a hash table). Source: InternVL, `dynamic_preprocess`.
    """
    grids = sorted(
        (
            (columns, rows)
            for columns in range(1, config.max_tiles + 1)
            for rows in range(1, config.max_tiles // columns + 1)
            if columns * rows >= config.min_tiles
        ),
        key=lambda grid: (grid[0] * grid[1], grid[0]),
    )
    best, best_distance = grids[0], float("inf")
    for columns, rows in grids:
        distance = abs(width / height - columns / rows)
        enough = width * height > 0.5 * config.tile_size**2 * columns * rows
        if distance < best_distance or (distance == best_distance and enough):
            best, best_distance = (columns, rows), distance
    return best


def tile_image(image: Image, config: PreprocessConfig) -> list[Image]:
    """Cut an RGB image into tiles, row by row; a thumbnail follows when there is more than one."""
    side = config.tile_size
    columns, rows = tile_grid(image.width, image.height, config)
    resized = image.resize((columns * side, rows * side), _BICUBIC)
    tiles = [
        resized.crop((column * side, row * side, (column + 1) * side, (row + 1) * side))
        for row in range(rows)
        for column in range(columns)
    ]
    if config.thumbnail and len(tiles) > 1:
        tiles.append(image.resize((side, side), _BICUBIC))
    return tiles


def pixel_values(image: ImageData, config: PreprocessConfig) -> NDArray[np.float32]:
    """Return the normalised tiles of one image, `[tiles, 3, tile_size, tile_size]`.

    Raises `ImageError` when the PNG is damaged.
    """
    values = _normalised(tile_image(_opened(image), config), config)
    return np.ascontiguousarray(values.transpose(0, 3, 1, 2), dtype=np.float32)


# --- Qwen-VL: one size close to the image's own, in patches ---------------------------------------

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_FRAMES = 2  # a patch spans two frames of a video; an image is shown twice
_MAX_ASPECT = 200

Grid = tuple[int, int]
"""Rows and columns of an image's tokens."""


class PixelBudget(BaseModel):
    """How a Qwen-VL checkpoint wants its images; the defaults are those of Qwen-VL-PRM.

    An image is resized to multiples of `patch_size * merge_size` pixels, close to its aspect, with
    `min_pixels` to `max_pixels` pixels in all; `merge_size` squared patches become one token.
    Source: Qwen2-VL's image processor (`smart_resize`), and the bounds of theogbrand/vlprm.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_pixels: int = Field(default=256 * 28 * 28, ge=1)
    max_pixels: int = Field(default=1280 * 28 * 28, ge=1)
    patch_size: int = Field(default=14, ge=1)
    merge_size: int = Field(default=2, ge=1)
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD

    @model_validator(mode="after")
    def _bounds_agree(self) -> PixelBudget:
        if self.min_pixels > self.max_pixels:
            raise ValueError(f"min_pixels {self.min_pixels} is above max_pixels {self.max_pixels}")
        if min(self.std) <= 0:
            raise ValueError(f"std must be positive; it is {self.std}")
        return self


def token_grid(width: int, height: int, rule: PixelBudget) -> Grid:
    """Return the rows and columns of tokens for an image of `width` x `height` pixels.

    Raises `ImageError` for an image more than 200 times as long as wide.
    """
    if max(width, height) > _MAX_ASPECT * min(width, height):
        raise ImageError(
            f"an image of {width}x{height} pixels is more than {_MAX_ASPECT} times as long as "
            "wide; crop it"
        )
    unit = rule.patch_size * rule.merge_size
    rows, columns = round(height / unit), round(width / unit)
    pixels = rows * columns * unit**2
    if pixels > rule.max_pixels:
        shrink = math.sqrt(height * width / rule.max_pixels)
        rows = max(1, math.floor(height / shrink / unit))
        columns = max(1, math.floor(width / shrink / unit))
    elif pixels < rule.min_pixels:
        stretch = math.sqrt(rule.min_pixels / (height * width))
        rows = math.ceil(height * stretch / unit)
        columns = math.ceil(width * stretch / unit)
    return rows, columns


def image_grid(image: ImageData, rule: PixelBudget) -> Grid:
    """Return the grid of an image's tokens. Raises `ImageError` as `pixel_patches` does."""
    picture = _opened(image)
    return token_grid(picture.width, picture.height, rule)


def pixel_patches(image: ImageData, rule: PixelBudget) -> tuple[NDArray[np.float32], Grid]:
    """Return the normalised patches of one image and its grid of tokens.

    Patches are `[rows * columns * merge_size**2, 3 * 2 * patch_size**2]`, those of one token behind
    one another. Raises `ImageError` when the PNG is damaged or the image too narrow.
    """
    picture = _opened(image)
    rows, columns = token_grid(picture.width, picture.height, rule)
    side, merge = rule.patch_size, rule.merge_size
    resized = picture.resize((columns * merge * side, rows * merge * side), _BICUBIC)
    values = _normalised([resized], rule)[0]
    blocks = values.reshape(rows, merge, side, columns, merge, side, 3)
    blocks = blocks.transpose(0, 3, 1, 4, 6, 2, 5)  # token, patch of the token, channel, pixel
    frames = np.repeat(blocks[:, :, :, :, :, None], _FRAMES, axis=5)
    return np.ascontiguousarray(frames.reshape(rows * columns * merge**2, -1)), (rows, columns)


def token_positions(
    length: int, spans: Sequence[tuple[int, int]], grids: Sequence[Grid]
) -> NDArray[np.int64]:
    """Return the time, row and column position of every token, `[3, length]`.

    Text counts on all axes alike; the tokens of an image share one time and take their place in
    its grid, and the text after it goes on behind the largest position so far. So the positions of
    a token depend on the tokens before it only. Source: Qwen2-VL, multimodal rotary positions.
    """
    positions = np.empty((3, length), dtype=np.int64)
    at = place = 0
    for (start, stop), (rows, columns) in zip(spans, grids, strict=True):
        positions[:, at:start] = np.arange(place, place + start - at)
        place += start - at
        positions[0, start:stop] = place
        positions[1, start:stop] = place + np.repeat(np.arange(rows), columns)
        positions[2, start:stop] = place + np.tile(np.arange(columns), rows)
        place += max(rows, columns)
        at = stop
    positions[:, at:] = np.arange(place, place + length - at)
    return positions


# --- both -----------------------------------------------------------------------------------------


def _opened(image: ImageData) -> Image:
    from vprm_search.images.normalise import open_rgb  # PIL is loaded when the first image is

    return open_rgb(image.png)


def _normalised(
    pictures: Sequence[Image], rule: PreprocessConfig | PixelBudget
) -> NDArray[np.float32]:
    """Return RGB pictures of one size as `[pictures, rows, columns, 3]`, by the rule's mean."""
    values = np.stack([np.asarray(p, dtype=np.float32) for p in pictures]) / np.float32(255)
    mean, std = np.array(rule.mean, np.float32), np.array(rule.std, np.float32)
    normalised: NDArray[np.float32] = (values - mean) / std
    return normalised
