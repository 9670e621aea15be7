"""Images: opened, checked and normalised once, so that every reader sees the same pixels.

An image enters as bytes, base64, a local path or a PIL image, and leaves as `ImageData`: an RGB
picture, upright, without alpha, as PNG, named by a digest of its pixels. Policy, scorer, cache key
and viewer all use that PNG, so none of them can be shown another picture than the others.

Nothing is ever fetched. What a caller or a model calls "a path" is refused before any I/O when it
looks like a URL; with an image root, the file must lie under that root even if somebody swaps a
directory for a symbolic link while it is being opened. Only this file imports Pillow.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import os
import re
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import ExifTags, Image, ImageChops
from pydantic import BaseModel, ConfigDict, Field

from vprm_search.errors import ImageError
from vprm_search.types import ImageData

_FORMATS = ("PNG", "JPEG", "WEBP")
_STRIP_PIXELS = 1 << 20  # conversions go strip by strip: a 40-megapixel image is copied only once
_WHITE = (255, 255, 255)
_ALPHA_MODES = frozenset({"RGBA", "LA", "PA", "RGBa"})
_SIXTEEN_BIT = frozenset({"I", "I;16", "I;16L", "I;16B", "I;16N"})
_PLAIN_MODES = frozenset({"1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"})

_TURNS = {  # EXIF 2.32, tag Orientation: where row 0 and column 0 were on the camera
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_URL_LIKE = re.compile(
    r"""\s*(?:[A-Za-z][A-Za-z0-9+.\-]+:   # a scheme; one letter would be a Windows drive
        |[/\\]{2})                        # //host/share and \\host\share
    """,
    re.VERBOSE,
)
_DATA_URI = re.compile(r"data:(?P<mime>[A-Za-z0-9.+/\-]*)(?P<params>(?:;[^;,]*)*),", re.ASCII)
_WHITESPACE = str.maketrans("", "", " \t\r\n")
_ELLIPSIS_AFTER = 80
_FLAGS = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_NONBLOCK = getattr(os, "O_NONBLOCK", 0)  # so that opening a FIFO returns instead of hanging


class ImageLimits(BaseModel):
    """What an image may be; checked on its header, before any pixel is decoded.

    `min_side` and `max_side` are pixels of one side, `max_pixels` width times height, and
    `max_aspect` the longer side over the shorter one. However small a picture is, a scorer resizes
    it as its reference does: InternVL's to whole tiles, Qwen-VL's to whole patches.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_bytes: int = Field(default=20_000_000, ge=1)
    min_side: int = Field(default=1, ge=1)
    max_side: int = Field(default=8192, ge=1)
    max_pixels: int = Field(default=40_000_000, ge=1)
    max_aspect: float = Field(default=200.0, ge=1)


DEFAULT_LIMITS = ImageLimits()


def normalise_image(
    source: bytes | str | os.PathLike[str] | Image.Image,
    *,
    image_root: str | os.PathLike[str] | None = None,
    limits: ImageLimits = DEFAULT_LIMITS,
) -> ImageData:
    """Return `source` as an upright RGB PNG named by the digest of its pixels.

    `source` is the bytes of a PNG, JPEG or WEBP file with one picture, the path of such a file
    (under `image_root` if that is given), or a PIL image. The EXIF orientation is applied, alpha
    is laid on white, 16-bit grey is scaled to 8 bit, colour profiles are ignored. Raises
    `ImageError` for anything else (it names the file and its format), and for an image outside
    `limits`.
    """
    if isinstance(source, Image.Image):
        return _normalised(source, limits, owned=False)
    name = "image"
    if isinstance(source, bytes | bytearray | memoryview):
        data = bytes(source)
        if len(data) > limits.max_bytes:
            raise ImageError(
                f"image of {len(data)} bytes: at most {limits.max_bytes} allowed; shrink it first"
            )
    else:
        try:
            path = os.fspath(source)
        except TypeError:
            path = None
        if not isinstance(path, str):
            raise ImageError(
                f"an image must be bytes, a path or a PIL image, not {type(source).__name__}"
            )
        root = None if image_root is None else os.fspath(image_root)
        name = f"image {shown(path)}"
        data = read_image_file(path, max_bytes=limits.max_bytes, image_root=root)
    with _opened(data, name) as image:
        return _normalised(image, limits, owned=True, name=name)


def blank_image() -> ImageData:
    """Return a grey picture of 64 x 64 pixels: what an ablation shows instead of a real one."""
    return normalise_image(Image.new("RGB", (64, 64), (220, 220, 220)))


def image_from_base64(text: str, *, limits: ImageLimits = DEFAULT_LIMITS) -> ImageData:
    """Return the normalised image whose file bytes are `text` in base64."""
    return normalise_image(decode_base64(text, max_bytes=limits.max_bytes), limits=limits)


def image_from_data_uri(uri: str, *, limits: ImageLimits = DEFAULT_LIMITS) -> ImageData:
    """Return the normalised image inside a `data:image/...;base64,` URI."""
    return normalise_image(decode_data_uri(uri, max_bytes=limits.max_bytes), limits=limits)


def open_rgb(png: bytes, *, limits: ImageLimits = DEFAULT_LIMITS) -> Image.Image:
    """Decode a PNG made by `normalise_image` into a loaded RGB picture.

    Raises `ImageError` when `png` is damaged, too large, or not a normalised PNG: alpha or an
    orientation tag inside would make two readers see two pictures. There is no lower size bound,
    since a caller may have normalised with its own.
    """
    with _opened(png) as image:
        _check_size(image, limits.model_copy(update={"min_side": 1}), "image")
        _load(image, "image")
        if image.format != "PNG" or image.mode != "RGB" or _frames(image) > 1:
            raise ImageError(f"not a normalised image: {image.format} {image.mode}")
        if "transparency" in image.info or "exif" in image.info:
            raise ImageError("not a normalised image: it carries transparency or an EXIF block")
        return image.copy()


def pixel_digest(image: Image.Image) -> str:
    """Return "sha256-<hex>" over the mode, the size and the pixels of `image`."""
    state = hashlib.sha256(f"vprm-image {image.mode} {image.width} {image.height}\n".encode())
    for box in _strips(image):
        state.update(image.crop(box).tobytes())
    return f"sha256-{state.hexdigest()}"


def _normalised(
    image: Image.Image, limits: ImageLimits, *, owned: bool, name: str = "image"
) -> ImageData:
    _check_size(image, limits, name)
    if image.format != "MPO" and _frames(image) > 1:  # MPO: a photo with extras behind it
        raise ImageError(f"{name} has {_frames(image)} frames; pass a single picture")
    clear = _transparent_colour(image)
    _load(image, name)
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
        rgb = _to_rgb(image, clear, name)
    except ImageError:
        raise
    except Exception:  # a broken EXIF block can raise nearly anything
        raise ImageError(f"{name} cannot be normalised: its metadata is damaged") from None
    if owned:
        image.close()  # its pixels are not needed any more: at most two copies at a time
    if turn is not None:
        rgb = rgb.transpose(turn)
    buffer = io.BytesIO()
    rgb.save(buffer, "PNG", compress_level=6)
    return ImageData(pixel_digest(rgb), buffer.getvalue())


@contextmanager
def _opened(data: bytes, name: str = "image") -> Iterator[Image.Image]:
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        most = ImageLimits().max_pixels
        raise ImageError(f"{name} has too many pixels (at most {most}); shrink it first") from None
    except Exception:  # decoders raise many kinds, and their texts are not for our messages
        raise ImageError(_refusal(data, name)) from None
    with image:
        yield image


_RASTER = "convert it to PNG, or open it with Pillow and pass the PIL image"
_FOREIGN: tuple[tuple[str, str, str], ...] = (
    ("GIF", r"GIF8", f"{_RASTER} (of a moving one, a frame)"),
    ("BMP", r"BM.{4}\0{4}", _RASTER),
    ("TIFF", r"II[*+]\0|MM\0[*+]", _RASTER),
    (
        "AVIF",
        r".{4}ftyp(?:avif|avis|.{8}.{0,60}?(?:avif|avis))",
        f"{_RASTER} (Pillow reads AVIF from version 11.3 on)",
    ),
    (
        "HEIC",
        r".{4}ftyp(?:hei[cxms]|hev[cxms]|heif|mif1|msf1|mif2)",
        "convert it to JPEG or PNG, or open it with pillow-heif and pass the PIL image",
    ),
    ("HTML", r"\s*<(?:!DOCTYPE\s+)?html", "pass the picture itself and not its page"),
    (
        "SVG",
        r"(?:\xef\xbb\xbf)?\s*<(?=.{0,1500}?svg[\s>:/])",
        "draw it as a PNG first, for example with cairosvg or rsvg-convert",
    ),
    ("JPEG XL", r"\xff\x0a|.{4}JXL ", "convert it to PNG or JPEG"),
    ("JPEG 2000", r".{4}jP  |\xff\x4f\xff\x51", _RASTER),
    ("PDF", r"%PDF-", "draw its page as a PNG first, for example with pdftoppm"),
    ("PostScript", r"%!PS", "draw its page as a PNG first"),
    ("Photoshop", r"8BPS", "export it as PNG"),
    ("icon", r"\0\0[\1\2]\0", _RASTER),
    ("Netpbm", r"P[1-7]\s", _RASTER),
    ("video", r".{4}ftyp|\x1aE\xdf\xa3|RIFF.{4}AVI ", "pass one of its frames as PNG or JPEG"),
)
"""Formats that are told apart by how their files begin, and what to do about each."""


def _refusal(data: bytes, name: str) -> str:
    """Return why bytes are no picture: damaged, of another format, or of none that is known."""
    read = ", ".join(_FORMATS)
    if not data:
        return f"{name} is empty: not a readable {read} image"
    if data.startswith((b"\x89PNG", b"\xff\xd8\xff")) or data[8:12] == b"WEBP":
        return f"{name} is damaged: its {len(data)} bytes are not a readable {read} image"
    start = data[:2000]
    for kind, begins, advice in _FOREIGN:
        if re.match(begins.encode("latin-1"), start, re.DOTALL | re.IGNORECASE):
            return f"{name} is in the format {kind}, and only {read} are read: {advice}"
    return f"{name} of {len(data)} bytes is not a readable {read} image; convert it to one of these"


def _load(image: Image.Image, name: str) -> None:
    try:
        image.load()
    except Exception:
        raise ImageError(f"{name} is damaged or cut short: its pixels cannot be decoded") from None


def _check_size(image: Image.Image, limits: ImageLimits, name: str) -> None:
    width, height = image.size
    low, high = sorted((width, height))
    is_of = f"{name} is {width}x{height}"
    if low < limits.min_side or high > limits.max_side:
        raise ImageError(
            f"{is_of}: each side must be {limits.min_side} to {limits.max_side} pixels; "
            "resize it first"
        )
    if width * height > limits.max_pixels:
        raise ImageError(f"{is_of}: at most {limits.max_pixels} pixels; shrink it first")
    if high > low * limits.max_aspect:
        raise ImageError(
            f"{is_of}: longer side at most {limits.max_aspect:g} times the shorter one; "
            "crop it first"
        )


def _frames(image: Image.Image) -> int:
    return int(getattr(image, "n_frames", 1))


def _strips(image: Image.Image) -> Iterator[tuple[int, int, int, int]]:
    rows = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        yield 0, top, image.width, min(top + rows, image.height)


_DEPTHS = {"L;2": 85, "L;4": 17}  # of a PNG's grey values, which Pillow spreads over 8 bits


def _transparent_colour(image: Image.Image) -> int | tuple[int, ...] | bytes | None:
    """Return the colour that is transparent, in the values of the decoded pixels.

    Pillow leaves it as it stands in a PNG, whose pixels it widens (2 and 4 bits) or narrows (three
    times 16). To be called before the pixels are loaded.
    """
    colour: int | tuple[int, ...] | bytes | None = image.info.get("transparency")
    tiles = getattr(image, "tile", None) or [None]
    raw = getattr(tiles[0], "args", None)
    if isinstance(colour, int) and isinstance(raw, str):
        return colour * _DEPTHS.get(raw, 1)
    if isinstance(colour, tuple) and raw == "RGB;16B":
        return tuple(value >> 8 for value in colour)
    return colour


def _to_rgb(
    image: Image.Image, clear: int | tuple[int, ...] | bytes | None, name: str
) -> Image.Image:
    """Return a new RGB picture without metadata: alpha on white, 16 bit scaled to 8."""
    has_alpha = image.mode in _ALPHA_MODES or clear is not None
    if not has_alpha and image.mode not in _PLAIN_MODES | _SIXTEEN_BIT:
        raise ImageError(f"{name}: mode {image.mode!r} is not supported; convert it to RGB first")
    target = Image.new("RGB", image.size, _WHITE)
    for box in _strips(image):
        strip = image.crop(box)
        if image.mode in _SIXTEEN_BIT:
            deep = strip.convert("I")
            grey = deep.point(lambda value: value * (1 / 257) + 0.5).convert("L").convert("RGB")
            target.paste(grey, box, _unlike(deep, clear) if isinstance(clear, int) else None)
        elif has_alpha:
            if clear is not None:
                strip.info["transparency"] = clear
            rgba = strip.convert("RGBA")
            target.paste(rgba.convert("RGB"), box, rgba.getchannel("A"))
        else:
            target.paste(strip.convert("RGB"), box)
    return target


def _unlike(deep: Image.Image, value: int) -> Image.Image:
    """Return the mask of the pixels of mode I, 0 to 65,535, that are not `value`."""
    raw = deep.tobytes()  # four bytes a pixel, the machine's order
    low, high = (0, 1) if sys.byteorder == "little" else (3, 2)
    masks = [
        Image.frombytes("L", deep.size, raw[place::4]).point(
            [0 if v == part else 255 for v in _BYTE]
        )
        for place, part in ((low, value & 255), (high, value >> 8))
    ]
    return ImageChops.lighter(*masks)


_BYTE = range(256)


# --- bytes: from paths, base64 and data URIs, without a look at pixels ---------------------------


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
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ImageError(f"image {shown(path)} is not a regular file")
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                data = file.read(max_bytes + 1)
        finally:
            os.close(descriptor)
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
