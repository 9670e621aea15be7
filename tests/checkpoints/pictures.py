"""Random pictures as PNG bytes."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def png(width: int, height: int, seed: int) -> bytes:
    """Return a picture of noise with one flat corner."""
    values = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    values[: height // 2, : width // 2] = (250, 30 * (seed % 8), 10)
    out = io.BytesIO()
    Image.fromarray(values).save(out, "PNG")
    return out.getvalue()
