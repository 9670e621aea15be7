"""Pictures to normalised pixels, as the product's preprocessing does for one 64x64 tile."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)


def pixel_values(images: Sequence[Image.Image]) -> torch.Tensor:
    """Return `[n, 3, 64, 64]` float32: (x / 255 - mean) / std per channel (ImageNet's)."""
    stacked = np.stack([np.asarray(image, dtype=np.float32) for image in images])
    mean, std = np.asarray(IMAGE_MEAN, np.float32), np.asarray(IMAGE_STD, np.float32)
    normalised = (stacked / np.float32(255) - mean) / std
    return torch.from_numpy(np.ascontiguousarray(normalised.transpose(0, 3, 1, 2)))
