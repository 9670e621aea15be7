"""Pictures and encodings for the image tests."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image


def random_rgb(width: int, height: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(head: tuple[int, int, int, int], pixels: bytes, *extra: bytes) -> bytes:
    """A PNG of width, height, depth and colour type, with other chunks before its pixels."""
    first = chunk(b"IHDR", struct.pack(">IIBBBBB", *head, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + first + b"".join(extra) + body


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and has no pixels."""
    return png((width, height, 8, 2), b"")


def png_of(depth: int, rows: list[Any], clear: tuple[int, ...]) -> bytes:
    """A PNG of grey or colour values of `depth` bits, one of which is transparent."""
    lines = b""
    for row in rows:
        bits = "".join(f"{value:0{depth}b}" for pixel in row for value in pixel)
        bits += "0" * (-len(bits) % 8)
        lines += b"\0" + int(bits, 2).to_bytes(len(bits) // 8, "big")
    head = (len(rows[0]), len(rows), depth, 2 if len(clear) == 3 else 0)
    return png(head, lines, chunk(b"tRNS", struct.pack(f">{len(clear)}H", *clear)))
