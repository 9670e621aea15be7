"""The images of a server process: checked when they arrive, kept by digest, bounded in bytes."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from vprm_search_vllm import KEY_VARIABLE
from vprm_search_vllm.shared.errors import ImageError
from vprm_search_vllm.shared.images.normalise import (
    ImageLimits,
    decode_base64,
    open_rgb,
    pixel_digest,
)
from vprm_search_vllm.shared.scoring.vllm.contract import Limits, RequestError
from vprm_search_vllm.shared.types import ImageData


@dataclass(frozen=True, slots=True)
class KnownImage:
    """An image whose bytes were checked against its digest; `width` and `height` in pixels."""

    data: ImageData
    width: int
    height: int


class ImageCache:
    """Images of one tenant by digest, the latest used kept, at most `kept_image_bytes` of PNG.

    An image enters only with bytes whose pixels have the digest it is filed under, so what a client
    calls an image cannot change what another client gets.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._pixels = ImageLimits(
            max_bytes=limits.max_image_bytes, max_pixels=limits.max_image_pixels
        )
        self._kept: OrderedDict[str, KnownImage] = OrderedDict()
        self.kept_bytes = 0

    def __len__(self) -> int:
        """Return how many images are kept."""
        return len(self._kept)

    def checked(self, digest: str, text: str) -> KnownImage:
        """Return the image whose PNG is `text` in base64; may be called in any thread.

        Bytes of an image that is kept are checked, too, unless they are the very ones. Raises
        `RequestError` 413 for an image beyond the limits and 400 for one that is damaged, is not a
        normalised PNG, or is not the image its digest names.
        """
        limit = self._limits.max_image_bytes
        if len(text) > limit * 3 // 2:
            raise RequestError(413, f"image {digest} has more than {limit} bytes")
        try:
            png = decode_base64(text, max_bytes=limit)
            kept = self._kept.get(digest)
            if kept is not None and kept.data.png == png:
                return kept
            picture = open_rgb(png, limits=self._pixels)
        except ImageError as error:
            raise RequestError(400, f"image {digest}: {error}") from None
        if pixel_digest(picture) != digest:
            raise RequestError(
                400,
                f"image {digest}: these bytes are another image; a digest is that of the pixels",
            )
        return KnownImage(ImageData(digest, png), picture.width, picture.height)

    def take(
        self, digests: Iterable[str], checked: Mapping[str, KnownImage]
    ) -> dict[str, KnownImage]:
        """Return those of some images that are known; the ones just `checked` are kept."""
        found: dict[str, KnownImage] = {}
        for digest in digests:
            if digest in self._kept:
                self._kept.move_to_end(digest)
                found[digest] = self._kept[digest]
            elif digest in checked:
                found[digest] = checked[digest]
        for digest, image in found.items():
            self._keep(digest, image)
        return found

    def _keep(self, digest: str, image: KnownImage) -> None:
        if digest not in self._kept:
            self._kept[digest] = image
            self.kept_bytes += len(image.data.png)
        while self.kept_bytes > self._limits.kept_image_bytes:
            _, dropped = self._kept.popitem(last=False)
            self.kept_bytes -= len(dropped.data.png)


class ImageNames:
    """The names under which vLLM caches tiles, embeddings and prefixes.

    vLLM believes the name it is given. A name is therefore a keyed hash of the tenant, the checked
    digest and the image rule: a client of vLLM's other routes, where names may be chosen, cannot
    hit it, nor can another tenant. The processes of one server share the key in
    `VPRM_SEARCH_VLLM_KEY`, which the first of them sets if nobody has.
    """

    def __init__(self, rule: str) -> None:
        key = os.environ.get(KEY_VARIABLE, "").encode() or secrets.token_bytes(32)
        self._base = hmac.new(key, rule.encode(), hashlib.sha256)

    def name(self, digest: str, tenant: str = "") -> str:
        """Return the name of a tenant's image with this digest."""
        return self._of("image", tenant, digest)

    def salt(self, chosen: str | None, tenant: str = "") -> str | None:
        """Return the salt that keeps a tenant's prefixes apart, and those with a chosen salt."""
        return self._of("salt", tenant, chosen or "") if tenant else chosen

    def _of(self, *parts: str) -> str:
        mac = self._base.copy()
        mac.update(json.dumps(parts).encode())
        return mac.hexdigest()
