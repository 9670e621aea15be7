"""Paths that are not paths, roots that must hold, and no network whatever is passed."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.images.pictures import encoded, random_rgb
from vprm_search.errors import ImageError
from vprm_search.images import normalise_image
from vprm_search.images.normalise import check_is_path, read_image_file

PNG = encoded(Image.fromarray(random_rgb(30, 30)))
SECRET = encoded(Image.fromarray(random_rgb(31, 31)))

SCHEMES = ["http", "https", "ftp", "file", "data", "gopher", "s3", "gs", "jar", "blob", "HtTp"]
HOSTS = [
    "127.0.0.1:9/x.png",
    "[::1]/x.png",
    "2130706433/x.png",
    "0x7f000001/x",
    "localhost",
    "example.org\\@127.0.0.1/x",
    "user:pw@127.0.0.1/x",
    "",
]
SLASHES = ["//", "/", "\\\\", "\\", "///", "/\\", ""]
URLS = [f"{s}:{slash}{host}" for s in SCHEMES for slash in SLASHES for host in HOSTS] + [
    "//host/share.png",
    "\\\\host\\share.png",
    "\\/host/x",
    "/\\host/x",
    " http://127.0.0.1/x",
    "\thttp://127.0.0.1/x",
    "data:image/png;base64,AAAA",
    "..\\..\\etc\\passwd",
]


@pytest.mark.parametrize("as_path", [False, True])
def test_url_like_paths_are_refused_before_any_io(
    monkeypatch: pytest.MonkeyPatch, as_path: bool
) -> None:
    assert len(URLS) > 200

    def no_io(*args: object, **_: object) -> int:
        raise AssertionError(f"opened {args}")

    monkeypatch.setattr(os, "open", no_io)
    monkeypatch.setattr(os.path, "realpath", no_io)
    for url in URLS:
        if as_path and "\\" not in url and str(Path(url)) != url:
            continue  # a Path has lost the slashes that made it a URL; the scheme test is below
        source = Path(url) if as_path else url
        with pytest.raises(ImageError, match=r"URL|control|fetches nothing"):
            normalise_image(source)
        with pytest.raises(ImageError):
            normalise_image(source, image_root="/srv/images")


@settings(max_examples=200)
@given(st.sampled_from(SCHEMES), st.text(max_size=30), st.text(" \t\n\x00", max_size=3))
def test_nothing_with_a_scheme_is_a_path(scheme: str, rest: str, before: str) -> None:
    with pytest.raises(ImageError):
        check_is_path(f"{before}{scheme}:{rest}")


@pytest.mark.parametrize("path", ["", "a\0b.png", "a\nb.png", "\x7f"])
def test_names_that_cannot_be_files(path: str) -> None:
    with pytest.raises(ImageError, match="control characters"):
        normalise_image(path)


def test_ordinary_paths_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["a.png", "ü ñ.png", "C", "~", "a*b.png", "mailto", "http", "x=1:2.png"]
    monkeypatch.chdir(tmp_path)
    for name in names:
        Path(name).write_bytes(PNG)
        assert normalise_image(name) == normalise_image(tmp_path / name) == normalise_image(PNG)


def test_failures_name_the_file_and_are_image_errors(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "empty.png").touch()
    (tmp_path / "large.png").write_bytes(b"x" * 30)
    for name in ("missing.png", "folder", "fifo", "empty.png", "a" * 5000):
        with pytest.raises(ImageError):
            normalise_image(tmp_path / name)
    with pytest.raises(ImageError, match=r"missing\.png.*No such file"):
        normalise_image(tmp_path / "missing.png")
    with pytest.raises(ImageError, match="more than 29 bytes"):
        read_image_file(str(tmp_path / "large.png"), max_bytes=29)


# --- the image root ------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "sub" / "a.png").write_bytes(PNG)
    (tmp_path / "secret.png").write_bytes(SECRET)
    (tmp_path / "root-twin").mkdir()
    (tmp_path / "root-twin" / "b.png").write_bytes(SECRET)
    (root / "out").symlink_to(tmp_path)
    (root / "out.png").symlink_to(tmp_path / "secret.png")
    (root / "in.png").symlink_to(root / "sub" / "a.png")
    return root


def test_files_under_the_root_are_read(root: Path) -> None:
    inside = ["sub/a.png", "sub/../sub/a.png", str(root / "sub" / "a.png"), "in.png", "./in.png"]
    for path in inside:
        assert normalise_image(path, image_root=root) == normalise_image(PNG)


@pytest.mark.parametrize(
    "path",
    ["../secret.png", "out/secret.png", "out.png", "sub/../../secret.png", ".", "/etc/passwd",
     "../root-twin/b.png", "out/root/../secret.png"],
)  # fmt: skip
def test_files_outside_the_root_are_refused(root: Path, path: str) -> None:
    with pytest.raises(ImageError, match="outside the image root"):
        normalise_image(path, image_root=root)


@settings(max_examples=300)
@given(
    st.lists(
        st.sampled_from(
            ["..", ".", "sub", "out", "a.png", "secret.png", "in.png", "out.png", "root", "/", "~",
             "．．", "%2e%2e"]
        ),
        min_size=1,
        max_size=7,
    )
)  # fmt: skip
def test_no_combination_leaves_the_root(
    tmp_path_factory: pytest.TempPathFactory, parts: list[str]
) -> None:
    base = tmp_path_factory.getbasetemp() / "no-escape"
    root = base / "root"
    if not base.exists():
        (root / "sub").mkdir(parents=True)
        (root / "sub" / "a.png").write_bytes(PNG)
        (base / "secret.png").write_bytes(SECRET)
        (root / "out").symlink_to(base)
        (root / "out.png").symlink_to(base / "secret.png")
        (root / "in.png").symlink_to(root / "sub" / "a.png")
    try:
        data = read_image_file("/".join(parts), max_bytes=100_000, image_root=str(root))
    except ImageError:
        data = PNG
    assert data == PNG


@pytest.mark.parametrize("swapped", ["sub", "sub/a.png"])
def test_a_link_put_in_after_the_check_is_not_followed(
    root: Path, monkeypatch: pytest.MonkeyPatch, swapped: str
) -> None:
    """The path is resolved and found good; then somebody swaps a part of it for a link."""
    evil = root.parent / "evil"
    evil.mkdir()
    (evil / "a.png").write_bytes(SECRET)
    resolve = os.path.realpath

    def resolve_then_swap(path: str) -> str:
        real = resolve(path)
        if real.endswith("a.png"):
            os.rename(root / swapped, root.parent / "aside")
            os.symlink(evil if swapped == "sub" else evil / "a.png", root / swapped)
        return real

    monkeypatch.setattr(os.path, "realpath", resolve_then_swap)
    with pytest.raises(ImageError, match="cannot be read"):
        read_image_file("sub/a.png", max_bytes=100_000, image_root=str(root))
    monkeypatch.undo()
    assert (root / swapped).is_symlink()  # the swap did happen


def test_no_file_stays_open_whatever_it_is(tmp_path: Path) -> None:
    (tmp_path / "good.png").write_bytes(PNG)
    (tmp_path / "bad.png").write_bytes(b"no image")
    (tmp_path / "folder").mkdir()
    open_before = len(os.listdir("/proc/self/fd"))
    for name in ("good.png", "bad.png", "folder", "missing.png", "folder/../../x.png"):
        for root in (None, tmp_path):
            with contextlib.suppress(ImageError):
                normalise_image(tmp_path / name if root is None else name, image_root=root)
    assert len(os.listdir("/proc/self/fd")) == open_before
