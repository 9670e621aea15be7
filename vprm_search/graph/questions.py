"""From a conversation to the problem of a search: the question, its pictures, the system prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.messages import (
    BaseMessage,
    HumanMessage,
    SystemMessage,
    convert_to_messages,
)

from vprm_search.errors import ImageError, InputError
from vprm_search.images.messages import (
    NameImage,
    content_blocks,
    has_image,
    image_of_block,
    is_image,
    referenced_digest,
)
from vprm_search.images.store import ImageStore
from vprm_search.steps import DEFAULT_LIMITS, normalise_text
from vprm_search.types import ImageData, Problem

FEEDBACK_NAME = "vprm_feedback"
"""Name of the human messages that carry a verifier's feedback; they are not questions."""

MAX_IMAGES = 16


def question_of(messages: Sequence[BaseMessage]) -> HumanMessage:
    """Return the last human message that is not a verifier's feedback.

    Raises `InputError` if there is none.
    """
    for message in reversed(messages):
        if isinstance(message, HumanMessage) and message.name != FEEDBACK_NAME:
            return message
    raise InputError(
        f"none of the {len(messages)} messages is a human message; end the conversation with the "
        "question as a HumanMessage"
    )


def read_problem(messages: Sequence[BaseMessage], name_image: NameImage) -> Problem:
    """Return the problem a conversation ends with.

    The question is the text of the last human message, the pictures are its own or, when it has
    none, those of the nearest human message before it ("and how many are red?"), and all system
    messages make the system prompt. Earlier turns are not part of a problem: the reward model is
    trained on single questions. Raises `InputError` when there is nothing to ask.
    """
    asked = question_of(messages)
    text = normalise_text(message_text(asked)).strip()
    if not text:
        raise InputError("the last human message has no text; ask a question about the image")
    DEFAULT_LIMITS.check_text(text, "the question")
    digests = [name_image(b) for b in content_blocks(_picture_of(messages, asked)) if is_image(b)]
    if len(digests) > MAX_IMAGES:
        raise InputError(f"the question has {len(digests)} images, the limit is {MAX_IMAGES}")
    system = [message_text(m) for m in messages if isinstance(m, SystemMessage)]
    return Problem(text, tuple(digests), normalise_text("\n\n".join(system)).strip())


def read_problem_and_images(
    messages: Sequence[BaseMessage], store: ImageStore | None = None
) -> tuple[Problem, tuple[ImageData, ...]]:
    """Return the problem a conversation ends with, and its pictures in their order.

    References to pictures are looked up in `store`. Raises what `read_problem` raises, and
    `ImageError` for a picture that cannot be used.
    """
    found: dict[str, ImageData] = {}

    def name_image(block: Mapping[str, Any]) -> str:
        digest = referenced_digest(block)
        if digest is not None and store is None:
            raise ImageError(
                f"image {digest[:80]} is a reference into a search graph's store; give the picture"
            )
        image = image_of_block(block) if digest is None or store is None else store.get(digest)
        found[image.digest] = image
        return image.digest

    problem = read_problem(messages, name_image)
    return problem, tuple(found[digest] for digest in problem.images)


def read_asked(
    asked: BaseMessage | Mapping[str, Any] | Sequence[BaseMessage | Mapping[str, Any]],
) -> tuple[Problem, tuple[ImageData, ...]]:
    """Return what one message or a conversation asks, in any of LangChain's notations.

    Raises `InputError` for what is no message, `ImageError` for a picture that cannot be read.
    """
    listed: list[Any] = [asked] if isinstance(asked, BaseMessage | Mapping) else list(asked)
    try:
        messages = convert_to_messages(listed)
    except (ValueError, TypeError, NotImplementedError) as error:  # its text holds the pictures
        raise InputError(
            "the question is neither a text, a message, nor a list of messages; a message is "
            '{"role": "user", "content": ...} or one of LangChain\'s'
        ) from error
    return read_problem_and_images(messages)


def message_text(message: BaseMessage) -> str:
    """Return the text of a message, its text blocks joined by line breaks."""
    if isinstance(message.content, str):
        return message.content
    blocks = content_blocks(message)
    return "\n".join(str(block.get("text", "")) for block in blocks if block.get("type") == "text")


def _picture_of(messages: Sequence[BaseMessage], asked: HumanMessage) -> BaseMessage:
    if has_image(asked):
        return asked
    before = messages[: next(i for i, message in enumerate(messages) if message is asked)]
    pictured = (m for m in reversed(before) if isinstance(m, HumanMessage) and has_image(m))
    return next(pictured, asked)
