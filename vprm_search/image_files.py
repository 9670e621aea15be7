"""Raw image bytes from a path or a data URI, without ever touching the network.

Nothing here looks at pixels. What a caller or a model calls "a path" is refused before any I/O
when it looks like a URL; with an image root, the file must lie under that root even if somebody
swaps a directory for a symbolic link while it is being opened.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import stat
from pathlib import Path

from vprm_search.errors import ImageError

_URL_LIKE = re.compile(
    r"""\s*(?:[A-Za-z][A-Za-z0-9+.\-]+:   # a scheme; one letter would be a Windows drive
        |[/\\]{2})                        # //host/share and \\host\share
    """,
    re.VERBOSE,
)
_DATA_URI = re.compile(r"data:(?P<mime>[A-Za-z0-9.+/\-]*)(?P<params>(?:;[^;,]*)*),", re.ASCII)
_WHITESPACE = str.maketrans("", "", " \t\r\n")
_ELLIPSIS_AFTER = 80


def read_image_file(path: str, *, max_bytes: int, image_root: str | None = None) -> bytes:
    """Return the bytes of the image file `path`.

    With `image_root`, a relative path is taken from the root, and the resolved file must lie under
    it. `~` and patterns have no special meaning. Raises `ImageError` for anything that looks like
    a URL (before any I/O), for a path outside the root, for something that is not a regular file,
    and for more than `max_bytes` bytes.
    """
    check_is_path(path)
    try:
        descriptor = _open(path) if image_root is None else _open_under(path, image_root)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ImageError(f"image {shown(path)} is not a regular file")
            data = file.read(max_bytes + 1)
    except (OSError, ValueError) as error:
        if isinstance(error, ImageError):
            raise
        reason = (isinstance(error, OSError) and error.strerror) or type(error).__name__
        raise ImageError(f"image {shown(path)} cannot be read: {reason}") from error
    if len(data) > max_bytes:
        raise ImageError(f"image {shown(path)} has more than {max_bytes} bytes; shrink it first")
    return data


def check_is_path(path: str) -> None:
    """Raise `ImageError` when `path` looks like a URL or cannot be a file name. No I/O."""
    if _URL_LIKE.match(path) or (os.sep != "\\" and "\\" in path):
        raise ImageError(
            f"image {shown(path)} looks like a URL or a network path; this library fetches "
            "nothing: pass the image's bytes, a local path, or a PIL image"
        )
    if not path or any(ord(char) < 32 or ord(char) == 127 for char in path):
        raise ImageError(f"image path {shown(path)} is empty or has control characters")


def decode_base64(text: str, *, max_bytes: int) -> bytes:
    """Return the bytes that base64 `text` stands for; white space inside is allowed.

    The length is checked before anything is decoded. Raises `ImageError`.
    """
    if len(text) > max_bytes * 3 // 2 + 64:
        raise ImageError(
            f"base64 image of {len(text)} characters: at most {max_bytes} bytes allowed"
        )
    try:
        data = base64.b64decode(text.translate(_WHITESPACE), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageError(f"image data {shown(text)} is not base64") from error
    if len(data) > max_bytes:
        raise ImageError(f"image of {len(data)} bytes: at most {max_bytes} allowed; shrink it")
    return data


def decode_data_uri(uri: str, *, max_bytes: int) -> bytes:
    """Return the bytes of a `data:image/...;base64,` URI. Raises `ImageError` for any other."""
    start = uri[:256].lstrip()
    match = _DATA_URI.match(start[:5].lower() + start[5:])
    if match is None:
        raise ImageError(
            f"{shown(uri)} is not a data: URI; remote images are never fetched: "
            "pass the image itself as base64"
        )
    parameters = match["params"].lower().split(";")
    if not match["mime"].lower().startswith("image/") or parameters[-1] != "base64":
        raise ImageError(f"data URI {shown(uri)}: expected data:image/<kind>;base64,<data>")
    return decode_base64(uri.lstrip()[match.end() :], max_bytes=max_bytes)


def shown(text: str) -> str:
    """Return `text` quoted and cut in the middle, fit for an error message."""
    if len(text) <= _ELLIPSIS_AFTER:
        return repr(text)
    half = _ELLIPSIS_AFTER // 2
    return f"{text[:half]!r}…{text[-half:]!r} ({len(text)} characters)"  # a file's name is last


_FLAGS = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_NONBLOCK = getattr(os, "O_NONBLOCK", 0)  # so that opening a FIFO returns instead of hanging


def _open(path: str) -> int:
    return os.open(path, _FLAGS | _NONBLOCK)


def _open_under(path: str, image_root: str) -> int:
    """Open `path` below `image_root`; the resolved path is walked without following links."""
    root = Path(os.path.realpath(image_root))
    real = Path(os.path.realpath(root / path))
    if real == root or not real.is_relative_to(root):
        raise ImageError(f"image {shown(path)} lies outside the image root")
    if os.open not in os.supports_dir_fd:  # Windows: no protection against a swap in between
        return _open(str(real))
    *folders, name = real.relative_to(root).parts
    descriptor = os.open(root, _FLAGS | os.O_DIRECTORY)
    try:
        for folder in folders:
            flags = _FLAGS | os.O_DIRECTORY | os.O_NOFOLLOW
            deeper = os.open(folder, flags, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = deeper
        return os.open(name, _FLAGS | _NONBLOCK | os.O_NOFOLLOW, dir_fd=descriptor)
    finally:
        os.close(descriptor)
