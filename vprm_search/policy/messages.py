"""Pictures in LangChain messages: read from every format, written in one.

Images are read through `.content_blocks`, which brings every format LangChain knows (standard
base64, OpenAI `image_url`, Anthropic `source`, the older `source_type`) to one shape. Addresses
are never fetched.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable
from typing import Any

from langchain_core.messages import BaseMessage, HumanMessage

from vprm_search.errors import ImageError, InputError
from vprm_search.images import (
    DEFAULT_LIMITS,
    ImageLimits,
    image_from_base64,
    image_from_data_uri,
    normalise_image,
)
from vprm_search.types import ImageData

_NEVER_FETCHED = (
    "remote images are never fetched: download it yourself and pass the bytes as "
    '{"type": "image", "base64": ..., "mime_type": ...}'
)
_FILE_KINDS = frozenset({"video", "audio", "file"})
MAX_IMAGES = 16


def images_from_content_blocks(
    message: BaseMessage, *, limits: ImageLimits = DEFAULT_LIMITS
) -> tuple[str, list[ImageData]]:
    """Return the text and the normalised images of one message, each in order.

    Texts are joined by newlines. Raises `ImageError` for an image given by address or file id,
    for a damaged one, and for more than `MAX_IMAGES`; `InputError` for video, audio or files.
    """
    texts: list[str] = []
    images: list[ImageData] = []
    for block in _blocks(message):
        kind = block.get("type")
        if kind == "text":
            texts.append(str(block.get("text", "")))
        elif kind in _FILE_KINDS:
            raise InputError(f"a message has a {kind} block; only text and images are supported")
        elif _is_image(block):
            if len(images) == MAX_IMAGES:
                raise ImageError(f"a message has more than {MAX_IMAGES} images; pass fewer")
            images.append(_image(block, limits))
    return "\n".join(texts), images


def human_message(text: str, images: Iterable[ImageData]) -> HumanMessage:
    """Return a human message that shows `images` (standard base64 blocks) and then asks `text`."""
    blocks = [image_block(image) for image in images]
    if not blocks:
        return HumanMessage(text)
    return HumanMessage(content=[*blocks, {"type": "text", "text": text}])


def image_block(image: ImageData) -> dict[str, Any]:
    """Return `image` as a standard LangChain content block with base64 data."""
    data = base64.b64encode(image.png).decode("ascii")
    return {"type": "image", "base64": data, "mime_type": "image/png"}


def _blocks(message: BaseMessage) -> list[dict[str, Any]]:
    """Return the message's standard blocks; what LangChain does not know is unwrapped."""
    try:
        blocks: list[Any] = [dict(block) for block in message.content_blocks]
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise InputError(f"a message has a malformed content block: {error}") from error
    unwrapped = (b.get("value") if b.get("type") == "non_standard" else b for b in blocks)
    return [block for block in unwrapped if isinstance(block, dict)]


def _is_image(block: dict[str, Any]) -> bool:
    mime = str(block.get("mime_type", ""))
    return "image" in str(block.get("type")) or mime.startswith("image/")


def _image(block: dict[str, Any], limits: ImageLimits) -> ImageData:
    data = block.get("base64") or block.get("data")
    if isinstance(data, bytes):
        return normalise_image(data, limits=limits)
    if isinstance(data, str) and data:
        return image_from_base64(data, limits=limits)
    url = block.get("image_url") or block.get("url")
    if isinstance(url, dict):
        url = url.get("url")
    if isinstance(url, str) and url[:64].lstrip().lower().startswith("data:"):
        return image_from_data_uri(url, limits=limits)
    if isinstance(url, str) and url:
        raise ImageError(f"an image is given as the address {url[:80]!r}; {_NEVER_FETCHED}")
    raise ImageError(f"an image block has no data; {_NEVER_FETCHED}")
