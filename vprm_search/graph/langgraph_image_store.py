"""Images in LangGraph's own store: for deployments whose processes share a store and no disk."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence

from langgraph.store.base import BaseStore

from vprm_search.errors import ImageError
from vprm_search.image_store import MemoryImageStore
from vprm_search.types import ImageData

NAMESPACE = ("vprm-search", "images")


class LangGraphImageStore:
    """An `ImageStore` over a LangGraph `BaseStore`; it survives a restart if that store does.

    An image is one item under its digest: `{"png": <base64>}`, never indexed for search. Every
    read recomputes the digest, so a damaged item is an error and not another picture.
    """

    def __init__(self, store: BaseStore, namespace: Sequence[str] = NAMESPACE) -> None:
        self._store = store
        self._namespace = tuple(namespace)

    def put(self, image: ImageData) -> str:
        """Keep `image` and return its digest. Raises `ImageError` if the digest is not its own."""
        digest = _checked(image).digest
        if self._store.get(self._namespace, digest) is None:
            png = base64.b64encode(image.png).decode("ascii")
            self._store.put(self._namespace, digest, {"png": png}, index=False)
        return digest

    def get(self, digest: str) -> ImageData:
        """Return the image named `digest`. Raises `ImageError` if it is missing or damaged."""
        item = self._store.get(self._namespace, digest)
        if item is None:
            raise ImageError(
                f"image {str(digest)[:80]} is not in the LangGraph store; resume with the store "
                "the search was started with"
            )
        try:
            png = base64.b64decode(item.value["png"], validate=True)
        except (KeyError, TypeError, binascii.Error):
            raise ImageError(f"image {digest} is damaged in the LangGraph store") from None
        return _checked(ImageData(digest, png))


def _checked(image: ImageData) -> ImageData:
    """Return `image` if its digest is that of its pixels, as the other stores check it."""
    one = MemoryImageStore()
    return one.get(one.put(image))
