"""Where images live during a search: outside the search state, named by what they show.

The state of a graph holds digests only; a store turns a digest back into the picture. A store on
disk survives a restart, so that a resumed search finds its images again; LangGraph's own store is
for deployments whose processes share a store and no disk.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import os
import re
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from vprm_search.errors import ImageError
from vprm_search.images.normalise import open_rgb, pixel_digest
from vprm_search.types import ImageData

if TYPE_CHECKING:
    from langgraph.store.base import BaseStore

CACHE_VARIABLE = "VPRM_SEARCH_CACHE"
LANGGRAPH_NAMESPACE = ("vprm-search", "images")
_DIGEST = re.compile(r"sha256-([0-9a-f]{64})", re.ASCII)


@runtime_checkable
class ImageStore(Protocol):
    """Keeps normalised images by digest."""

    def put(self, image: ImageData) -> str:
        """Keep `image` and return its digest. Raises `ImageError` if the digest is not its own."""
        ...

    def get(self, digest: str) -> ImageData:
        """Return the image named `digest`. Raises `ImageError` if it is missing or damaged."""
        ...


class MemoryImageStore:
    """An `ImageStore` inside the process: for tests and for searches that need no resume."""

    def __init__(self) -> None:
        self._images: dict[str, ImageData] = {}

    def put(self, image: ImageData) -> str:
        """Keep `image` and return its digest."""
        if image.digest not in self._images:
            _verify(image)
            self._images[image.digest] = image
        return image.digest

    def get(self, digest: str) -> ImageData:
        """Return the image named `digest`."""
        _digest_hex(digest)
        try:
            return self._images[digest]
        except KeyError:
            raise ImageError(_missing(digest, "this in-memory store")) from None


class DiskImageStore:
    """An `ImageStore` of content-addressed files, readable by the owner only.

    Files are written beside their place and renamed, so a killed process leaves no half image;
    every read recomputes the digest. Several processes may share `root`, which defaults to
    `cache_folder("images")`.
    """

    def __init__(self, root: str | os.PathLike[str] | None = None) -> None:
        self.root = cache_folder("images") if root is None else Path(root)

    def put(self, image: ImageData) -> str:
        """Write `image` unless the very same file is there, and return its digest."""
        path = self._path(image.digest)
        _verify(image)
        try:
            if not (path.is_file() and path.read_bytes() == image.png):  # damage is healed
                self._write(path, image.png)
        except OSError as error:
            raise ImageError(
                f"image {image.digest} cannot be stored: {error.strerror}; choose another folder "
                f"with {CACHE_VARIABLE}"
            ) from error
        return image.digest

    def get(self, digest: str) -> ImageData:
        """Return the image named `digest`, after recomputing its digest from its pixels."""
        path = self._path(digest)
        try:
            image = ImageData(digest, path.read_bytes())
        except FileNotFoundError:
            raise ImageError(_missing(digest, "the image store")) from None
        except OSError as error:
            raise ImageError(f"image {digest} cannot be read: {error.strerror}") from error
        _verify(image)
        return image

    def _path(self, digest: str) -> Path:
        name = _digest_hex(digest)
        return self.root / name[:2] / f"{name}.png"

    def _write(self, path: Path, data: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        part = path.with_name(f".{path.stem}.{secrets.token_hex(8)}.part")
        try:
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                part.unlink()


class LangGraphImageStore:
    """An `ImageStore` over a LangGraph `BaseStore`; it survives a restart if that store does.

    An image is one item under its digest: `{"png": <base64>}`, never indexed for search. Every
    read recomputes the digest, so a damaged item is an error and not another picture.
    """

    def __init__(self, store: BaseStore, namespace: Sequence[str] = LANGGRAPH_NAMESPACE) -> None:
        self._store = store
        self._namespace = tuple(namespace)

    def put(self, image: ImageData) -> str:
        """Keep `image` and return its digest. Raises `ImageError` if the digest is not its own."""
        _verify(image)
        if self._store.get(self._namespace, image.digest) is None:
            png = base64.b64encode(image.png).decode("ascii")
            self._store.put(self._namespace, image.digest, {"png": png}, index=False)
        return image.digest

    def get(self, digest: str) -> ImageData:
        """Return the image named `digest`. Raises `ImageError` if it is missing or damaged."""
        _digest_hex(digest)
        item = self._store.get(self._namespace, digest)
        if item is None:
            raise ImageError(_missing(digest, "the LangGraph store"))
        try:
            png = base64.b64decode(item.value["png"], validate=True)
        except (KeyError, TypeError, binascii.Error):
            raise ImageError(f"image {digest} is damaged in the LangGraph store") from None
        image = ImageData(digest, png)
        _verify(image)
        return image


def cache_folder(kind: str) -> Path:
    """Return the folder for what is kept of one kind, such as "images"; it may not exist yet.

    `$VPRM_SEARCH_CACHE/KIND`, else `$XDG_CACHE_HOME/vprm-search/KIND`, else the same under
    `~/.cache`.
    """
    configured = os.environ.get(CACHE_VARIABLE)
    if configured:
        return Path(configured) / kind
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "vprm-search" / kind


def _digest_hex(digest: str) -> str:
    match = _DIGEST.fullmatch(digest) if isinstance(digest, str) else None
    if match is None:
        raise ImageError(f"{str(digest)[:80]!r} is not an image digest (sha256- and 64 hex digits)")
    return match[1]


def _missing(digest: str, where: str) -> str:
    return f"image {digest} is not in {where}; resume with the store the search was started with"


def _verify(image: ImageData) -> None:
    _digest_hex(image.digest)
    try:
        found = pixel_digest(open_rgb(image.png))
    except ImageError as error:
        raise ImageError(f"image {image.digest} is damaged: {error}") from error
    if found != image.digest:
        raise ImageError(f"image {image.digest} is damaged: its pixels have digest {found}")
