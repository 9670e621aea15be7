"""Pictures in LangChain messages: written in one shape, read from all, kept out of stored state.

The only place that knows LangChain's image blocks. They are read through `.content_blocks`, which
brings every format LangChain knows (standard base64, OpenAI `image_url`, Anthropic `source`, the
older `source_type`) to one shape. Addresses are never fetched.

LangGraph writes the whole state at every superstep, so a picture inside a message would be stored
again and again. `reference_images` puts each picture into a store and leaves a block
`{"type": "image", "url": "vprm-image://sha256-…"}` in its place; the scheme names no host that
anybody could be led to ask.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from langchain_core.messages import (
    AIMessage,
    AnyMessage,
    BaseMessage,
    HumanMessage,
    ToolMessage,
    convert_to_messages,
)

from vprm_search.answers import with_choices
from vprm_search.errors import ImageError, InputError
from vprm_search.images.normalise import (
    image_from_base64,
    image_from_data_uri,
    normalise_image,
)
from vprm_search.images.store import ImageStore
from vprm_search.recent import Recent
from vprm_search.types import ImageData, Problem

if TYPE_CHECKING:
    from PIL import Image

    ImageSource: TypeAlias = ImageData | bytes | str | os.PathLike[str] | Image.Image

REFERENCE_SCHEME = "vprm-image://"
NameImage = Callable[[Mapping[str, Any]], str]
"""Gives the digest of the picture in one content block."""
MAX_IMAGES = 16
CHOICES = "choices"
"""Key of a message (`additional_kwargs`) that holds the choices of its question."""

_NEVER_FETCHED = (
    "remote images are never fetched: download it yourself and pass the bytes as "
    '{"type": "image", "base64": ..., "mime_type": ...}'
)
_TEXT_KINDS = frozenset({"text", "input_text", "output_text", "text-plain"})
_THOUGHTS = frozenset({"reasoning", "thinking", "redacted_thinking", "reasoning_content"})
_TOOL_CALLS = frozenset(
    {"tool_use", "tool_call", "function_call", "invalid_tool_call", "custom_tool_call"}
)
_UNSEEN = frozenset({"text", "cachePoint", "cache_point"})
# What a provider did by itself while it answered, and what belongs to no text.
_BY_PROVIDER = re.compile(r"server_|web_search|file_search|code_|mcp_|executable_|citation|refusal")
_PICTURES_IN_BASE64 = ("iVBORw0KGgo", "/9j/", "UklGR")  # PNG, JPEG, WEBP
_KEPT_IMAGES = 16  # pictures held in memory per graph, so that a round does not decode them again
_names: Recent[str, str] = Recent(_KEPT_IMAGES)  # the references to pictures written of late


# --- written -------------------------------------------------------------------------------------


def image_message(question: str, *images: ImageSource, choices: Sequence[str] = ()) -> HumanMessage:
    """Return a human message that shows `images` and then asks `question`.

    Args:
        question: the text, which follows the images.
        images: paths of PNG, JPEG or WEBP files, the bytes of such files, PIL images, or images
            that are normalised already; each becomes a standard base64 block, in this order.
            Without images the message is plain text.
        choices: the texts of the choices A, B, … of a multiple-choice question. They are written
            below the question, unless it holds them, and kept with the message under "choices":
            a letter, its text and both together are then one answer (`Problem.choices`).

    Raises:
        ImageError: an image is damaged, outside the default `ImageLimits`, or given as a URL.
    """
    text, told = with_choices(question, choices), {CHOICES: list(choices)} if choices else {}
    if not images:
        return HumanMessage(text, additional_kwargs=told)
    blocks = [
        image_block(image if isinstance(image, ImageData) else normalise_image(image))
        for image in images
    ]
    return HumanMessage([*blocks, {"type": "text", "text": text}], additional_kwargs=told)


def image_block(image: ImageData) -> dict[str, Any]:
    """Return `image` as a standard LangChain content block with base64 data."""
    return {"type": "image", "base64": _encoded(image), "mime_type": "image/png"}


@functools.lru_cache(maxsize=_KEPT_IMAGES)
def _encoded(image: ImageData) -> str:
    data = base64.b64encode(image.png).decode("ascii")
    _names.put(data, REFERENCE_SCHEME + image.digest)
    return data


# --- read ----------------------------------------------------------------------------------------


def read_message(message: BaseMessage) -> tuple[str, list[ImageData]]:
    """Return the text and the normalised images of one message, each in order.

    Texts are joined by newlines. Raises `ImageError` for an image given by address or file id,
    for a damaged one, and for more than `MAX_IMAGES`; `InputError` for any other block (see
    `check_blocks`).
    """
    if not isinstance(message, AIMessage):
        check_blocks(message)
    texts: list[str] = []
    images: list[ImageData] = []
    for block in _standard_blocks(message):
        if block.get("type") == "text":
            texts.append(str(block.get("text", "")))
        elif is_image(block):
            if len(images) == MAX_IMAGES:
                raise ImageError(f"a message has more than {MAX_IMAGES} images; pass fewer")
            images.append(_picture(block))
    return "\n".join(texts), images


def check_blocks(message: BaseMessage) -> None:
    """Raise `InputError` if a message has a block that is neither text nor a picture.

    Nobody would see an audio, a video or a file; marks for prompt caches say nothing.
    """
    for block in content_blocks(message):
        kind = _kind(block)
        if kind not in _UNSEEN and not is_image(block):
            raise InputError(f"a message has a {kind} block; only text and images are supported")


def unread_kinds(message: BaseMessage) -> list[str]:
    """Return the kinds of the blocks that are neither text nor picture: "file", "audio", "video".

    Thinking, calls of tools, what a provider did by itself and marks for prompt caches are none.
    """
    known = _THOUGHTS | _TOOL_CALLS | _UNSEEN
    kinds = [_kind(block) for block in content_blocks(message) if not is_image(block)]
    return [kind for kind in kinds if kind not in known and not _BY_PROVIDER.match(kind)]


def written_text(message: AIMessage) -> tuple[str, str]:
    """Return what a model wrote, and why the reply cannot be used as text ("" if it can).

    Thinking, and what the provider did by itself (a web search), are no part of the text. Tool
    calls, pictures, audio and blocks nobody knows are none either, and cannot be left out in
    silence.
    """
    blocks = content_blocks(message)
    kinds = [_kind(block) for block in blocks]
    text = "".join(str(block.get("text", "")) for block in blocks if block.get("type") == "text")
    calls = [call["name"] for call in message.tool_calls]
    calls += [str(call["name"]) for call in message.invalid_tool_calls if not text.strip()]
    if calls or _TOOL_CALLS & set(kinds):
        named = f" ({', '.join(sorted(set(calls)))})" if calls else ""
        return text, f"the model called tools{named} instead of answering; bind none to a policy"
    known = _THOUGHTS | {"text"}
    others = [kind for kind in kinds if kind not in known and not _BY_PROVIDER.match(kind)]
    others += ["audio"] if message.additional_kwargs.get("audio") else []
    if others:
        return text, f"the reply has a block of the kind {others[0]!r}, which is no text"
    return text, ""


def image_of_block(block: Mapping[str, Any]) -> ImageData:
    """Return the normalised picture inside an image block of any LangChain shape.

    Raises `ImageError` when the block names a URL, a file or an uploaded id: nothing is fetched.
    """
    _, images = read_message(HumanMessage(content=[dict(block)]))
    if len(images) != 1:
        raise ImageError(f"a content block with {sorted(block)} is not a readable image")
    return images[0]


def content_blocks(message: BaseMessage) -> list[dict[str, Any]]:
    """Return the message's content as blocks: standard ones, except in a model's reply.

    A reply's `content_blocks` are translated by its provider, which may drop pictures that are in
    the raw content.
    """
    if not isinstance(message, AIMessage):
        return _standard_blocks(message)
    content = [message.content] if isinstance(message.content, str) else message.content
    return [_unwrapped(b if isinstance(b, dict) else {"type": "text", "text": b}) for b in content]


def name_picture(
    message: BaseMessage, block: Mapping[str, Any], name_image: NameImage
) -> str | None:
    """Return the name of a picture; None where a tool or a model gave one that nobody reads.

    An address, another format, something broken: whoever asks did not choose it, and the question
    can be asked without it. Raises `ImageError` for any other picture that cannot be read, for a
    reference to one that is missing, and for one that can be read and not be stored.
    """
    try:
        return name_image(block)
    except ImageError:
        if not isinstance(message, AIMessage | ToolMessage) or referenced_digest(block) is not None:
            raise
        try:
            image_of_block(block)
        except ImageError:
            return None
        raise


def has_image(message: BaseMessage) -> bool:
    """Return whether the message holds a picture or a reference to one."""
    return not isinstance(message.content, str) and any(map(is_image, content_blocks(message)))


def is_image(block: Mapping[str, Any]) -> bool:
    """Return whether a content block is a picture, in any of LangChain's shapes."""
    return "image" in str(block.get("type")) or str(block.get("mime_type", "")).startswith("image/")


def _kind(block: Mapping[str, Any]) -> str:
    return str(block.get("type") or next(iter(block), "unknown"))


def _standard_blocks(message: BaseMessage) -> list[dict[str, Any]]:
    try:
        return [_unwrapped(dict(block)) for block in message.content_blocks]
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise InputError(f"a message has a malformed content block: {error}") from error


def _unwrapped(block: dict[str, Any]) -> dict[str, Any]:
    """Return a block as a standard one if it is a text; what LangChain wrapped, unwrapped.

    It wraps what it does not know: OpenAI's `input_text`, Google's `inline_data`.
    """
    value = block.get("value") if block.get("type") == "non_standard" else None
    block = value if isinstance(value, dict) else block
    inline = block.get("inline_data") or block.get("inlineData")
    if isinstance(inline, Mapping):
        mime = inline.get("mime_type") or inline.get("mimeType")
        return {"type": "media", "mime_type": mime, "data": inline.get("data")}
    data = str(block.get("file_data", ""))  # OpenAI's files: a picture is one by its data URI
    if data[:64].lstrip().lower().startswith("data:image/"):
        return {"type": "image", "url": data}
    kind, text = block.get("type"), block.get("text")
    if kind == "file" and str(block.get("base64", "")).startswith(_PICTURES_IN_BASE64):
        return {"type": "image", "base64": block["base64"]}  # LangChain calls it a PDF
    if isinstance(text, str) and (kind in _TEXT_KINDS or (kind is None and len(block) == 1)):
        return block if kind == "text" else {"type": "text", "text": text}
    return block


def _picture(block: Mapping[str, Any]) -> ImageData:
    data = _data_of(block)
    if isinstance(data, bytes):
        return normalise_image(data)
    if data:
        return image_from_data_uri(data) if _is_data_uri(data) else image_from_base64(data)
    url = _url(block)
    if url:
        raise ImageError(f"an image is given as the address {url[:80]!r}; {_NEVER_FETCHED}")
    raise ImageError(f"an image block has no data; {_NEVER_FETCHED}")


def _data_of(block: Mapping[str, Any]) -> bytes | str | None:
    """Return the data of a picture: bytes, base64 or a data URI; None where it is elsewhere."""
    source = block.get("source")
    if isinstance(source, Mapping):  # Anthropic's, in a model's reply
        block = {**block, **source}
    data = block.get("base64") or block.get("data") or _inline(block.get("image"))
    if data and isinstance(data, bytes | str):
        return data
    url = _url(block)
    return url if url and _is_data_uri(url) else None


def _is_data_uri(text: str) -> bool:
    return text[:64].lstrip().lower().startswith("data:")


def _inline(value: Any) -> Any:
    """Return the data in Hugging Face's `image`, None for an address or a path."""
    address = isinstance(value, str) and (":" in value[:64] or "." in value[:512])
    return None if address else value


def _url(block: Mapping[str, Any]) -> str | None:
    for name in ("image_url", "url", "image"):
        value = block.get(name)
        if isinstance(value, Mapping):
            value = value.get("url")
        if isinstance(value, str):
            return value
    return None


# --- kept out of stored state --------------------------------------------------------------------


class ImageIntake:
    """Takes pictures out of messages into a store, and back out of the store for a problem.

    A search graph moves the pictures of its own input. As a node of a larger graph it comes too
    late: LangGraph has stored the parent's state, pictures and all, and stores it again with every
    step. There an intake moves them out, either as the first node,
    `builder.add_node("intake", ImageIntake(store))`, so that they are stored with the input and
    not again; or before the graph, `(ImageIntake(store).lighten | graph).invoke(...)` or
    `graph.invoke(intake.lighten({"messages": [...]}))`, so that they are not stored at all. The
    search graph is given the same store.

    The last few pictures stay in memory: a store on disk recomputes the digest at every read.

    Args:
        store: where the pictures are kept.
        messages_key: the key of the conversation in a graph's state. Default: "messages".
    """

    def __init__(self, store: ImageStore, messages_key: str = "messages") -> None:
        self.store = store
        self.messages_key = messages_key
        self._kept: Recent[str, ImageData] = Recent(_KEPT_IMAGES)
        self._read: Recent[str, ImageData] = Recent(_KEPT_IMAGES)

    def __call__(self, state: Mapping[str, Any]) -> dict[str, list[AnyMessage]]:
        """Return the messages whose pictures were moved out: a node of a graph.

        The key's reducer must be `add_messages`, which puts them in the place of those with the
        same ids. Raises what `name_image` raises.
        """
        given = state.get(self.messages_key) or []
        pairs = zip(self.references(given), given, strict=True)
        return {self.messages_key: [light for light, heavy in pairs if light is not heavy]}

    def lighten(self, given: Any) -> Any:
        """Return the input of a graph with references for pictures, anything else as it is.

        Raises what `name_image` raises.
        """
        if not isinstance(given, Mapping) or not given.get(self.messages_key):
            return given
        return {**given, self.messages_key: self.references(given[self.messages_key])}

    def references(self, messages: Any) -> list[AnyMessage]:
        """Return messages, in any of LangChain's notations, with references for pictures.

        Raises what `name_image` raises.
        """
        return reference_images(messages, self.name_image)

    def name_image(self, block: Mapping[str, Any]) -> str:
        """Return the digest of the picture in `block`, which is put into the store.

        A reference to a picture is only read, not looked up. Raises `ImageError` for a picture
        that is broken, too large, or given as a URL.
        """
        digest = referenced_digest(block)
        if digest is not None:
            return digest
        name = reference_to(block)  # of its data as they are: the same picture is read once
        image = None if name is None else self._read.get(name)
        if image is None:
            image = image_of_block(block)
            if name is not None:
                self._read.put(name, image)
        self.store.put(image)
        self._kept.put(image.digest, image)
        return image.digest

    def images(self, problem: Problem) -> tuple[ImageData, ...]:
        """Return the problem's pictures, in order. Raises `ImageError` if one is missing."""
        return tuple(self.get(digest) for digest in problem.images)

    def get(self, digest: str) -> ImageData:
        """Return the picture with this digest. Raises `ImageError` if it is missing."""
        image = self._kept.get(digest)
        if image is None:
            image = self.store.get(digest)
            self._kept.put(digest, image)
        return image


def reference_images(messages: Any, name_image: NameImage) -> list[AnyMessage]:
    """Return `messages` with every picture replaced by a reference; ids and the rest stay.

    `messages` is whatever LangChain accepts as messages. A message without a picture is returned
    as it is, as the same object.
    """
    return [_referenced(message, name_image) for message in _listed(messages)]


class HoldsImages(Protocol):
    """Anything that gives a picture by its digest: an `ImageStore`, an `ImageIntake`."""

    def get(self, digest: str) -> ImageData:
        """Return the picture. Raises `ImageError` if it is missing."""
        ...


def restore_images(messages: Any, store: HoldsImages) -> list[AnyMessage]:
    """Return `messages` with every reference replaced by the picture, as a base64 block.

    For a chat model that reads the conversation after a search: it knows nothing of references.
    Raises `ImageError` if a picture is not in `store`.
    """
    return [_restored(message, store) for message in _listed(messages)]


def referenced_digest(block: Mapping[str, Any]) -> str | None:
    """Return the digest a reference block names, or None for any other block."""
    url = referenced_url(block)
    return None if url is None else url[len(REFERENCE_SCHEME) :]


def referenced_url(block: Mapping[str, Any]) -> str | None:
    """Return the address in a reference block, or None for any other block."""
    url = _url(block)
    return url if url is not None and url.startswith(REFERENCE_SCHEME) else None


def reference_to(block: Mapping[str, Any]) -> str | None:
    """Return an address that can stand for the picture in `block`, None if it holds none.

    Of a picture that `image_block` wrote it is that of a reference in a state; of any other it
    names a digest of the data as they are.
    """
    plain = _unwrapped(dict(block))
    data = _data_of(plain) if is_image(plain) else None
    if not data:
        return None
    if isinstance(data, str):
        data = data.partition(",")[2] if _is_data_uri(data) else data
        known = _names.get(data)
        if known is not None:
            return known
        data = data.encode()
    return f"{REFERENCE_SCHEME}data-{hashlib.sha256(data).hexdigest()}"


def _listed(messages: Any) -> list[BaseMessage]:
    return convert_to_messages(messages if isinstance(messages, list | tuple) else [messages])


def _referenced(message: BaseMessage, name_image: NameImage) -> Any:
    if not has_image(message):
        return _with_plain_texts(message)
    read = content_blocks(message)
    given = message.content if len(message.content) == len(read) else read
    blocks: list[Any] = []
    for block, as_given in zip(read, given, strict=True):
        name = name_picture(message, block, name_image) if is_image(block) else None
        if name:
            blocks.append({"type": "image", "url": REFERENCE_SCHEME + name})
        else:  # LangChain draws new ids for what it translates
            blocks.append(as_given if is_image(block) else block)
    return message if blocks == message.content else message.model_copy(update={"content": blocks})


def _with_plain_texts(message: BaseMessage) -> Any:
    """Return a message whose texts any client reads: one provider's `input_text` is another's 400.

    A message that needs no change is returned as the same object.
    """
    if isinstance(message, AIMessage) or isinstance(message.content, str):
        return message
    plain = [_unwrapped(block) if isinstance(block, dict) else block for block in message.content]
    return message.model_copy(update={"content": plain}) if plain != message.content else message


def _restored(message: BaseMessage, store: HoldsImages) -> Any:
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
