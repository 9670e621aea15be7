"""What is known of a problem's images, and their embeddings only where a pass computes them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vprm_search.scoring.engine.image_features import ImageFeatures
from vprm_search.scoring.engine.meter import ScoringMeter
from vprm_search.types import ImageData

_SIZES_KEPT = 50_000  # fewer than the grids `ImageFeatures` remembers, in the same order


class ImageBook:
    """Remembers how many tokens each image has, so that a kept image need not be encoded again.

    What one turn encodes stays until the next one begins, whatever `ImageFeatures` keeps.
    """

    def __init__(self, images: ImageFeatures, meter: ScoringMeter) -> None:
        self._images = images
        self._meter = meter
        self._sizes: dict[str, int] = {}
        self._found: dict[str, Tensor | str] = {}
        self._encoded: dict[str, int] = {}

    def begin_turn(self) -> None:
        """Let go of what the last turn encoded."""
        self._found.clear()
        self._encoded.clear()

    def tokens(self, image: ImageData) -> int | str:
        """Return the tokens of an image, or why it cannot be used."""
        size = self._sizes.get(image.digest)
        if size is not None:
            return size
        found = self._feature(image)
        if isinstance(found, str):
            return found
        self._sizes[image.digest] = len(found)
        if len(self._sizes) > _SIZES_KEPT:
            self._sizes.pop(next(iter(self._sizes)))
        return len(found)

    def features(self, images: Sequence[ImageData]) -> Tensor | str | None:
        """Return all images' embeddings, `[tokens, hidden]`, or why not; None without images."""
        parts = []
        for image in images:
            found = self._feature(image)
            if isinstance(found, str):
                return found
            parts.append(found)
        return torch.cat(parts) if parts else None

    def take_encoded(self, images: Sequence[ImageData]) -> int:
        """Return how many of these images this turn encoded, each to the first who asks."""
        return sum(self._encoded.pop(image.digest, 0) for image in images)

    def _feature(self, image: ImageData) -> Tensor | str:
        found = self._found.get(image.digest)
        if found is None:
            before = self._meter.images_encoded
            found = self._found[image.digest] = self._images.encode([image])[image.digest]
            self._encoded[image.digest] = self._meter.images_encoded - before
        return found
