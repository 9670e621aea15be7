"""Messages without image bytes: every picture becomes a small reference into an image store.

LangGraph writes the whole state at every superstep, so a picture inside a message would be stored
again and again. `reference_images` puts each picture into a store and leaves a block
`{"type": "image", "url": "vprm-image://sha256-…"}` in its place; nothing is ever fetched, and the
scheme names no host that anybody could be led to ask.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from langchain_core.messages import (
    AIMessage,
    AnyMessage,
    BaseMessage,
    HumanMessage,
    convert_to_messages,
)

from vprm_search.errors import ImageError
from vprm_search.image_store import ImageStore
from vprm_search.policy.messages import image_block, images_from_content_blocks
from vprm_search.types import ImageData, Problem

REFERENCE_SCHEME = "vprm-image://"
NameImage = Callable[[Mapping[str, Any]], str]
"""Gives the digest of the picture in one content block."""

_KEPT_IMAGES = 16  # pictures held in memory per graph, so that a round does not decode them again


class ImageIntake:
    """Takes pictures out of messages into a store, and back out of the store for a problem.

    The last few pictures stay in memory: a store on disk recomputes the digest at every read.
    """

    def __init__(self, store: ImageStore) -> None:
        self.store = store
        self._kept: OrderedDict[str, ImageData] = OrderedDict()
        self._lock = threading.Lock()

    def name_image(self, block: Mapping[str, Any]) -> str:
        """Return the digest of the picture in `block`, which is put into the store.

        A reference to a picture is only read, not looked up. Raises `ImageError` for a picture
        that is broken, too large, or given as a URL.
        """
        digest = referenced_digest(block)
        if digest is not None:
            return digest
        image = image_of_block(block)
        self.store.put(image)
        self._keep(image)
        return image.digest

    def images(self, problem: Problem) -> tuple[ImageData, ...]:
        """Return the problem's pictures, in order. Raises `ImageError` if one is missing."""
        return tuple(self._image(digest) for digest in problem.images)

    def _image(self, digest: str) -> ImageData:
        with self._lock:
            image = self._kept.get(digest)
        if image is None:
            image = self.store.get(digest)
            self._keep(image)
        return image

    def _keep(self, image: ImageData) -> None:
        with self._lock:
            self._kept[image.digest] = image
            self._kept.move_to_end(image.digest)
            while len(self._kept) > _KEPT_IMAGES:
                self._kept.popitem(last=False)


def reference_images(messages: Any, name_image: NameImage) -> list[AnyMessage]:
    """Return `messages` with every picture replaced by a reference; ids and the rest stay.

    `messages` is whatever LangChain accepts as messages. A message without a picture is returned
    as it is, as the same object.
    """
    listed = messages if isinstance(messages, list | tuple) else [messages]
    return [_referenced(message, name_image) for message in convert_to_messages(listed)]


def _referenced(message: BaseMessage, name_image: NameImage) -> Any:
    if isinstance(message.content, str) or not has_image(message):
        return message
    blocks: list[Any] = []
    for block in content_blocks(message):
        if is_image(block):
            digest = name_image(block)
            blocks.append({"type": "image", "url": REFERENCE_SCHEME + digest})
        elif block.get("type") == "non_standard":
            blocks.append(block.get("value", block))
        else:
            blocks.append(block)
    return message.model_copy(update={"content": blocks})


def restore_images(messages: Any, store: ImageStore) -> list[AnyMessage]:
    """Return `messages` with every reference replaced by the picture, as a base64 block.

    For a chat model that reads the conversation after a search: it knows nothing of references.
    Raises `ImageError` if a picture is not in `store`.
    """
    listed = messages if isinstance(messages, list | tuple) else [messages]
    return [_restored(message, store) for message in convert_to_messages(listed)]


def _restored(message: BaseMessage, store: ImageStore) -> Any:
    if isinstance(message.content, str):
        return message
    digests = [isinstance(b, dict) and referenced_digest(b) for b in message.content]
    if not any(digests):
        return message
    blocks = [
        image_block(store.get(digest)) if digest else block
        for block, digest in zip(message.content, digests, strict=True)
    ]
    return message.model_copy(update={"content": blocks})


def image_of_block(block: Mapping[str, Any]) -> ImageData:
    """Return the normalised picture inside an image block of any LangChain shape.

    Raises `ImageError` when the block names a URL, a file or an uploaded id: nothing is fetched.
    """
    inner = block.get("value", block)
    _, images = images_from_content_blocks(HumanMessage(content=[inner]))
    if len(images) != 1:
        raise ImageError(f"a content block with {sorted(inner)} is not a readable image")
    return images[0]


def referenced_digest(block: Mapping[str, Any]) -> str | None:
    """Return the digest a reference block names, or None for any other block."""
    url = _url(block.get("value", block))
    if url is None or not url.startswith(REFERENCE_SCHEME):
        return None
    return url[len(REFERENCE_SCHEME) :]


def content_blocks(message: BaseMessage) -> Sequence[dict[str, Any]]:
    """Return the message's content as standard blocks."""
    if isinstance(message, AIMessage):
        # a model's reply is translated by its provider; its pictures are in the raw content
        return [b if isinstance(b, dict) else {"type": "text", "text": b} for b in message.content]
    return [dict(block) for block in message.content_blocks]


def has_image(message: BaseMessage) -> bool:
    """Return whether the message holds a picture or a reference to one."""
    return not isinstance(message.content, str) and any(map(is_image, content_blocks(message)))


def is_image(block: Mapping[str, Any]) -> bool:
    """Return whether a content block is a picture, in any of LangChain's shapes."""
    inner = block.get("value", block)
    if not isinstance(inner, Mapping):
        return False
    return "image" in str(inner.get("type")) or str(inner.get("mime_type", "")).startswith("image/")


def _url(block: Mapping[str, Any]) -> str | None:
    for name in ("url", "image_url"):
        value = block.get(name)
        if isinstance(value, Mapping):
            value = value.get("url")
        if isinstance(value, str):
            return value
    return None
