"""Images to pixel values: dynamic tiles, a thumbnail, and normalisation, as InternVL wants them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from vprm_search.types import ImageData

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_BICUBIC = 3  # PIL.Image.Resampling.BICUBIC, by number so that PIL is not imported here


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
    from vprm_search.images.normalise import open_rgb  # PIL is loaded when the first image is

    tiles = tile_image(open_rgb(image.png), config)
    values = np.stack([np.asarray(tile, dtype=np.float32) for tile in tiles]) / np.float32(255)
    mean, std = np.array(config.mean, np.float32), np.array(config.std, np.float32)
    normalised = (values - mean) / std
    return np.ascontiguousarray(normalised.transpose(0, 3, 1, 2), dtype=np.float32)
