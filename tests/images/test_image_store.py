"""Stores: what goes in comes out, damage is noticed, and a restart loses nothing."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.images.pictures import encoded, random_rgb
from vprm_search.errors import ImageError
from vprm_search.images import normalise_image
from vprm_search.images.store import (
    DiskImageStore,
    ImageStore,
    MemoryImageStore,
    cache_folder,
)
from vprm_search.types import ImageData


def image(seed: int = 0, side: int = 30) -> ImageData:
    return normalise_image(Image.fromarray(random_rgb(side, side, seed)))


@pytest.fixture(params=["disk", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ImageStore:
    return DiskImageStore(tmp_path / "images") if request.param == "disk" else MemoryImageStore()


def test_what_is_put_can_be_got(store: ImageStore) -> None:
    assert isinstance(store, ImageStore)
    images = [image(seed) for seed in range(5)]
    assert [store.put(item) for item in images * 2] == [item.digest for item in images * 2]
    assert [store.get(item.digest) for item in images] == images


@pytest.mark.parametrize(
    "digest",
    ["", "sha256-", "sha256-" + "0" * 63, "sha256-" + "G" * 64, "sha256-" + "0" * 64 + "\n",
     "../../etc/passwd", "sha256-" + "../" * 21 + "a", "md5-" + "0" * 64, "SHA256-" + "0" * 64],
)  # fmt: skip
def test_other_names_are_refused(store: ImageStore, digest: str) -> None:
    with pytest.raises(ImageError, match="not an image digest"):
        store.get(digest)
    with pytest.raises(ImageError, match="not an image digest"):
        store.put(ImageData(digest, image().png))


def test_a_missing_image_is_named(store: ImageStore) -> None:
    with pytest.raises(ImageError, match=image().digest):
        store.get(image().digest)


def test_a_wrong_digest_cannot_be_stored(store: ImageStore) -> None:
    with pytest.raises(ImageError, match="damaged"):
        store.put(replace(image(1), digest=image(2).digest))
    with pytest.raises(ImageError, match="damaged"):
        store.put(ImageData(image(1).digest, b"no picture"))
    jpeg = encoded(Image.fromarray(random_rgb(30, 30)), "JPEG")
    with pytest.raises(ImageError, match="damaged"):
        store.put(ImageData(image().digest, jpeg))


def test_files_are_private_and_nothing_else_is_left(tmp_path: Path) -> None:
    store = DiskImageStore(tmp_path / "new" / "images")
    store.put(image())
    files = [path for path in store.root.rglob("*") if path.is_file()]
    assert [file.name for file in files] == [f"{image().digest[7:]}.png"]
    assert stat.S_IMODE(files[0].stat().st_mode) == 0o600


@settings(max_examples=120)
@given(st.data())
def test_damage_is_noticed_and_healed(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    store = DiskImageStore(tmp_path_factory.getbasetemp() / "damage")
    item = image(side=28)
    store.put(item)
    (file,) = store.root.rglob("*.png")
    raw = bytearray(item.png)
    place = data.draw(st.integers(0, len(raw) - 1))
    raw[place] ^= data.draw(st.integers(1, 255))
    file.write_bytes(bytes(raw[: data.draw(st.sampled_from([len(raw), place]))]))
    try:
        found = store.get(item.digest).digest  # the damage may be in bytes nobody reads
    except ImageError as error:
        found = str(error)
    assert item.digest in found
    store.put(item)
    assert store.get(item.digest) == item


def test_another_picture_under_the_name_is_an_error(tmp_path: Path) -> None:
    store = DiskImageStore(tmp_path)
    store.put(image(1))
    (file,) = tmp_path.rglob("*.png")
    file.write_bytes(image(2).png)
    with pytest.raises(ImageError, match="damaged"):
        store.get(image(1).digest)


def test_an_unusable_folder_is_an_image_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ImageError, match="VPRM_SEARCH_CACHE"):
        DiskImageStore(tmp_path / "file").put(image())


def test_many_processes_may_share_a_store_and_restarts_lose_nothing(tmp_path: Path) -> None:
    program = (
        "import sys; from tests.images.test_image_store import image;"
        "from vprm_search.images.store import DiskImageStore;"
        "store = DiskImageStore(sys.argv[1]);"
        "[store.put(image(seed)) for _ in range(2) for seed in range(4)]"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    root = Path(__file__).parents[2]
    running = [subprocess.Popen(command, cwd=root) for _ in range(2)]
    assert [process.wait() for process in running] == [0, 0]
    store = DiskImageStore(tmp_path)
    assert [store.get(image(seed).digest) for seed in range(4)] == [image(s) for s in range(4)]
    assert not list(tmp_path.rglob("*.part"))


def test_the_default_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VPRM_SEARCH_CACHE", str(tmp_path))
    assert DiskImageStore().root == tmp_path / "images"
    monkeypatch.delenv("VPRM_SEARCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder("images") == tmp_path / "xdg" / "vprm-search" / "images"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder("images") == Path(os.path.expanduser("~/.cache/vprm-search/images"))
