"""Normalisation against independent descriptions of each rule."""

from __future__ import annotations

import base64
import io
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.images.pictures import encoded, png_header, png_of, random_rgb
from vprm_search.errors import ImageError
from vprm_search.images import (
    ImageLimits,
    image_from_base64,
    image_from_data_uri,
    normalise_image,
    open_rgb,
    pixel_digest,
)
from vprm_search.scoring.pixels import (
    PixelBudget,
    PreprocessConfig,
    pixel_patches,
    pixel_values,
    tile_grid,
)

ANY_SIZE = ImageLimits(min_side=1)
CASES = Path(__file__).parent / "cases"


def pixels(image: Any) -> np.ndarray[Any, Any]:
    return np.asarray(open_rgb(image.png))


@settings(max_examples=60)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(0, 9), st.sampled_from(["PNG", "WEBP"]))
def test_lossless_files_keep_every_pixel(width: int, height: int, seed: int, kind: str) -> None:
    rgb = random_rgb(width, height, seed)
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(Image.fromarray(rgb), kind, **options)
    image = normalise_image(data, limits=ANY_SIZE)
    assert np.array_equal(pixels(image), rgb)
    assert image == normalise_image(Image.fromarray(rgb), limits=ANY_SIZE)
    assert image == normalise_image(image.png, limits=ANY_SIZE)  # idempotent


@settings(max_examples=60)
@given(st.data())
def test_digest_tells_pictures_apart(data: st.DataObject) -> None:
    size = st.tuples(st.integers(1, 6), st.integers(1, 6))
    (w1, h1), (w2, h2) = data.draw(size), data.draw(size)
    value = st.integers(0, 1).map(lambda bit: bit * 255)
    one = data.draw(st.lists(value, min_size=w1 * h1 * 3, max_size=w1 * h1 * 3))
    two = data.draw(st.lists(value, min_size=w2 * h2 * 3, max_size=w2 * h2 * 3))
    images = [
        Image.frombytes("RGB", size, bytes(values))
        for size, values in (((w1, h1), one), ((w2, h2), two))
    ]
    same = (w1, h1, one) == (w2, h2, two)
    assert (pixel_digest(images[0]) == pixel_digest(images[1])) is same


def test_digest_is_the_documented_one() -> None:
    import hashlib

    rgb = random_rgb(31, 2000)  # more than one strip would hold if strips were rows
    expected = hashlib.sha256(b"vprm-image RGB 31 2000\n" + rgb.tobytes()).hexdigest()
    assert normalise_image(Image.fromarray(rgb)).digest == f"sha256-{expected}"


# EXIF 2.32, tag 274: which visual edge the stored first row and first column are.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: a.transpose(1, 0, 2)[:, ::-1],
    7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda a: a.transpose(1, 0, 2)[::-1],
}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_exif_orientation_is_applied_once(orientation: int, kind: str) -> None:
    stored = random_rgb(40, 30)
    exif = Image.Exif()
    exif[274] = orientation
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    image = normalise_image(encoded(Image.fromarray(stored), kind, exif=exif, **options))
    assert np.array_equal(pixels(image), UPRIGHT[orientation](stored))
    assert normalise_image(image.png) == image


def test_exif_of_a_jpeg_turns_it() -> None:
    exif = Image.Exif()
    exif[274] = 6
    picture = Image.new("RGB", (60, 40), "blue")
    picture.paste((255, 0, 0), (0, 0, 60, 20))  # red above blue as stored
    turned = pixels(normalise_image(encoded(picture, "JPEG", exif=exif, quality=95)))
    assert turned.shape == (60, 40, 3)
    assert turned[30, 35, 0] > 200  # rotated clockwise: the red half is on the right
    assert turned[30, 5, 2] > 200


@settings(max_examples=40)
@given(st.sampled_from(["RGBA", "LA"]), st.integers(0, 50))
def test_alpha_is_laid_on_white(mode: str, seed: int) -> None:
    channels = {"RGBA": 4, "LA": 2}[mode]
    raw = np.random.default_rng(seed).integers(0, 256, (30, 33, channels), dtype=np.uint8)
    image = normalise_image(encoded(Image.fromarray(raw, mode)))
    colour = raw[..., :-1].astype(float)
    alpha = raw[..., -1:].astype(float) / 255
    expected = np.broadcast_to(colour * alpha + 255 * (1 - alpha), (30, 33, 3))
    assert np.abs(pixels(image) - expected).max() <= 1


@pytest.mark.parametrize("mode", ["P", "L", "RGB"])
def test_transparent_colour_becomes_white(mode: str) -> None:
    picture = Image.new(mode, (30, 30), 0 if mode != "RGB" else (0, 0, 0))
    if mode == "P":
        picture.putpalette([0, 0, 0, 10, 20, 30])
    picture.paste({"P": 1, "L": 77, "RGB": (10, 20, 30)}[mode], (0, 0, 15, 30))
    data = encoded(picture, transparency={"P": 0, "L": 0, "RGB": (0, 0, 0)}[mode])
    found = pixels(normalise_image(data))
    assert found[5, 25].tolist() == [255, 255, 255]
    assert found[5, 5].tolist() == ([77, 77, 77] if mode == "L" else [10, 20, 30])


def test_sixteen_bit_grey_is_scaled_and_not_clipped() -> None:
    raw = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    data = encoded(Image.fromarray(raw))
    expected = np.rint(raw.astype(float) * 255 / 65535)
    found = pixels(normalise_image(data)).astype(float)
    assert np.abs(found - expected[..., None]).max() <= 0.51


@settings(max_examples=60)
@given(st.data())
def test_a_transparent_colour_becomes_white_at_every_depth(data: st.DataObject) -> None:
    """Oracle: the values of the file, spread over 8 bits; those of the clear colour are white."""
    depth, bands = data.draw(
        st.sampled_from([(1, 1), (2, 1), (4, 1), (8, 1), (16, 1), (8, 3), (16, 3)])
    )
    most = (1 << depth) - 1
    values = st.sampled_from(sorted({0, 1, most, most // 2, min(most, 0x1234), min(most, 0x12FF)}))
    colour = st.tuples(*[values] * bands)
    rows = data.draw(st.lists(st.tuples(colour, colour, colour), min_size=1, max_size=3))
    clear = data.draw(colour)
    found = pixels(normalise_image(png_of(depth, rows, clear)))
    for y, row in enumerate(rows):
        for x, written in enumerate(row):
            shown = [round(value * 255 / most) for value in written] * (3 // bands)
            near = [value >> 8 for value in written] == [value >> 8 for value in clear]
            if written == clear or (near and (depth, bands) == (16, 3)):  # Pillow has 8 bits of 16
                shown = [255, 255, 255]
            assert np.abs(found[y, x].astype(int) - shown).max() <= (bands == 3 and depth == 16)


@pytest.mark.parametrize(
    "size", [(332, 27), (27, 332), (1, 1), (1, 3), (3, 200), (27, 27), (10, 8)]
)
def test_small_pictures_are_resized_as_the_references_do(size: tuple[int, int]) -> None:
    image = Image.fromarray(random_rgb(*size))
    data = normalise_image(encoded(image))
    assert np.array_equal(pixels(data), np.asarray(image))  # nothing is done to them before
    config, budget = PreprocessConfig(), PixelBudget()
    columns, rows = tile_grid(*size, config)
    whole = image.resize((448 * columns, 448 * rows), Image.Resampling.BICUBIC)
    first = np.asarray(whole.crop((0, 0, 448, 448)), dtype=np.float32) / 255
    expected = (first - config.mean) / config.std
    values = pixel_values(data, config)
    assert np.abs(values[0].transpose(1, 2, 0) - expected).max() < 1e-5
    patches, (rows, columns) = pixel_patches(data, budget)
    assert 256 <= rows * columns <= 1280
    assert len(patches) == rows * columns * 4


def test_cmyk_jpeg_shows_its_colours() -> None:
    picture = Image.new("RGB", (40, 40), (200, 30, 60)).convert("CMYK")
    found = pixels(normalise_image(encoded(picture, "JPEG", quality=98)))
    assert np.abs(found.astype(int) - [200, 30, 60]).max() <= 4


@pytest.mark.parametrize("mode", ["1", "I", "YCbCr", "HSV", "LAB", "PA", "RGBX", "RGBa"])
def test_modes_of_pil_images_are_read(mode: str) -> None:
    source = Image.new("RGBA", (40, 30), (200, 200, 200, 255))
    if mode == "LAB":
        picture = Image.new("LAB", (40, 30))
    elif mode == "I":
        picture = Image.new("I", (40, 30), 200 * 257)
    else:
        picture = source.convert(mode) if mode in ("PA", "RGBa") else source.convert("RGB")
        picture = picture if mode in ("PA", "RGBa") else picture.convert(mode)
    found = pixels(normalise_image(picture))
    if mode not in ("1", "LAB"):
        assert np.abs(found.astype(int) - 200).max() <= 3
    assert found.shape == (30, 40, 3)


def test_metadata_is_dropped_and_the_callers_image_untouched() -> None:
    picture = Image.fromarray(random_rgb(30, 30))
    picture.info.update(icc_profile=b"profile", comment="hello")
    before = (picture.tobytes(), dict(picture.info))
    again = Image.open(io.BytesIO(normalise_image(picture).png))
    again.load()
    assert not {"icc_profile", "comment", "exif", "dpi"} & set(again.info)
    assert (picture.tobytes(), dict(picture.info)) == before


# --- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "word"),
    [
        ((8193, 100), "8192"),
        ((9400, 9400), "8192"),
        ((30000, 30000), "too many pixels"),
        ((8000, 8000), "40000000"),
        ((8000, 30), "200 times"),
    ],
)
def test_size_is_checked_on_the_header(size: tuple[int, int], word: str) -> None:
    with pytest.raises(ImageError, match=word):
        normalise_image(png_header(*size))


def test_limits_can_be_moved() -> None:
    small = Image.new("RGB", (8, 8))
    with pytest.raises(ImageError, match="8x8"):
        normalise_image(small, limits=ImageLimits(min_side=9))
    assert normalise_image(small).png
    with pytest.raises(ImageError, match="bytes"):
        normalise_image(b"x" * 100, limits=ImageLimits(max_bytes=99))


PICTURE = Image.new("RGB", (64, 64))
FOREIGN = {
    **{kind: encoded(PICTURE, kind) for kind in ("GIF", "BMP", "TIFF", "PDF")},
    "icon": encoded(PICTURE, "ICO"),
    "Netpbm": encoded(PICTURE, "PPM"),
    "JPEG 2000": encoded(PICTURE, "JPEG2000"),
    "PostScript": encoded(PICTURE, "EPS"),
    "HEIC": (CASES / "s.heic").read_bytes(),
    "AVIF": b"\0\0\0\x20ftypavif\0\0\0\0avifmif1miaf",
    "AVIF ": b"\0\0\0\x20ftypmif1\0\0\0\0mif1avifmiaf",
    "HEIC ": b"\0\0\0\x1cftypmif1\0\0\0\0mif1heic",
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "SVG ": b'\xef\xbb\xbf<?xml version="1.0"?>\n<!-- x -->\n<!DOCTYPE svg PUBLIC "x">\n<svg>',
    "TIFF ": b"MM\0*\0\0\0\x08",
    "GIF ": b"GIF87a\1\0\1\0",
    "JPEG XL": b"\xff\x0a\0\0",
    "video": b"\0\0\0\x18ftypisom\0\0\0\0",
    "HTML": b"<!DOCTYPE html><html><svg></svg></html>",
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_other_formats_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    """Whatever the file is called; and the message says what to do."""
    for name in ("chart.png", f"chart.{kind.strip().lower()}"):
        (tmp_path / name).write_bytes(FOREIGN[kind])
        advice = r"PNG, JPEG, WEBP are read: (?:convert|draw|pass|export)"
        with pytest.raises(ImageError, match=rf"{name}.*format {kind.strip()}.*{advice}"):
            normalise_image(tmp_path / name)
    with pytest.raises(ImageError, match=f"format {kind.strip()}"):
        image_from_base64(base64.b64encode(FOREIGN[kind]).decode())


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"", "empty"),
        (b"\x89PNG\r\n\x1a\n\0\0", "damaged"),
        (b"\xff\xd8\xff\xe0", "damaged"),
        (b"hello", "not a readable"),
        (b"<?xml" * 400, "not a readable"),
        (b"\0" * 5000, "not a readable"),
    ],
)
def test_what_is_no_picture_is_named_with_its_file(data: bytes, word: str, tmp_path: Path) -> None:
    (tmp_path / "chart.png").write_bytes(data)
    with pytest.raises(ImageError, match=rf"chart\.png.*{word}.*PNG, JPEG, WEBP"):
        normalise_image(tmp_path / "chart.png")


def test_our_reduced_cases() -> None:
    upright = pixels(normalise_image(CASES / "exif6.jpg"))
    with Image.open(CASES / "exif6.jpg") as stored:
        assert stored.getexif()[274] == 6
        assert upright.shape[:2] == stored.size
    left, right = np.split(pixels(normalise_image(CASES / "g16trns.png")), 2, axis=1)
    assert (left == 255).all()
    assert (right == 127).all()


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_animations_are_refused(kind: str) -> None:
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    with pytest.raises(ImageError, match="2 frames"):
        normalise_image(data)


def test_a_photo_with_a_second_picture_behind_it_is_its_first() -> None:
    first, second = Image.new("RGB", (40, 40), "red"), Image.new("RGB", (40, 40), "blue")
    data = encoded(first, "MPO", save_all=True, append_images=[second])
    assert pixels(normalise_image(data))[20, 20, 0] > 200


@settings(max_examples=150)
@given(st.data())
def test_damaged_files_are_image_errors_or_pictures(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["PNG", "JPEG", "WEBP"]))
    raw = bytearray(encoded(Image.fromarray(random_rgb(32, 32)), kind))
    for _ in range(data.draw(st.integers(1, 8))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(raw)))
    try:
        image = normalise_image(bytes(raw[:cut]))
    except ImageError as error:
        message = str(error)
    else:
        message = open_rgb(image.png).mode
    assert " at 0x" not in message  # no addresses of decoder objects


@settings(max_examples=60)
@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_image_errors(data: bytes) -> None:
    for read in (normalise_image, open_rgb):
        with pytest.raises(ImageError):
            read(data)


@pytest.mark.parametrize("source", [None, 3, ["x"], object()])
def test_other_types_are_image_errors(source: Any) -> None:
    with pytest.raises(ImageError, match="bytes, a path or a PIL image"):
        normalise_image(source)


def test_float_images_are_refused_with_advice() -> None:
    with pytest.raises(ImageError, match="'F'"):
        normalise_image(Image.new("F", (40, 40)))


def test_open_rgb_takes_normalised_pngs_only() -> None:
    picture = Image.fromarray(random_rgb(40, 40))
    exif = Image.Exif()
    exif[274] = 3
    for data in (
        encoded(picture, "JPEG"),
        encoded(picture.convert("RGBA")),
        encoded(picture.convert("L")),
        encoded(picture, exif=exif),
        encoded(picture, transparency=(0, 0, 0)),
        png_header(8000, 8000),
    ):
        with pytest.raises(ImageError):
            open_rgb(data)


@pytest.mark.slow
def test_memory_of_the_largest_picture_is_bounded() -> None:
    """Two copies of the pixels at a time, whatever the file needs: alpha and a turn."""
    # The file is made in one process and read in another, so that only reading is measured.
    maker = textwrap.dedent(
        """
        import sys
        from PIL import Image
        exif = Image.Exif()
        exif[274] = 6
        picture = Image.new("RGBA", (6250, 6400), (1, 2, 3, 128))
        picture.save(sys.stdout.buffer, "PNG", exif=exif, compress_level=1)
        """
    )
    made = subprocess.run([sys.executable, "-c", maker], capture_output=True, check=True).stdout
    reader = textwrap.dedent(
        """
        import resource, sys
        from vprm_search.images import normalise_image
        data = sys.stdin.buffer.read()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        normalise_image(data)
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
        """
    )
    grown = subprocess.run(
        [sys.executable, "-c", reader], input=made, capture_output=True, check=True
    ).stdout
    assert int(grown) <= 350, f"{int(grown)} MB for one image"


# --- base64 and data URIs ------------------------------------------------------------------------


def test_base64_and_data_uris_are_the_same_picture() -> None:
    picture = Image.fromarray(random_rgb(40, 40))
    text = base64.b64encode(encoded(picture)).decode()
    wrapped = "\n".join(text[i : i + 76] for i in range(0, len(text), 76))
    expected = normalise_image(picture)
    assert image_from_base64(text) == image_from_base64(wrapped) == expected
    for head in (
        "data:image/png;base64,",
        "DATA:image/PNG;charset=x;base64,",
        " data:image/x;base64,",
    ):
        assert image_from_data_uri(head + text) == expected


@pytest.mark.parametrize(
    "uri",
    [
        "data:image/png,abc",
        "data:text/html;base64,AAAA",
        "data:;base64,AAAA",
        "data:image/png;base64",
        "http://127.0.0.1/x.png",
        "data:image/png;base64,A*B",
        "",
    ],
)
def test_other_uris_are_image_errors(uri: str) -> None:
    with pytest.raises(ImageError):
        image_from_data_uri(uri)


def test_long_base64_is_refused_before_decoding() -> None:
    with pytest.raises(ImageError, match="at most 1000 bytes"):
        image_from_base64("A" * 1_000_000, limits=ImageLimits(max_bytes=1000))
