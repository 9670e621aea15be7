"""From a conversation to the problem of a search: who is shown what of it.

The policy is shown all messages. The reward model, which is trained on single questions, is shown
a question text and pictures: `question_in_context`, unless a search has a rule of its own.
"""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from langchain_core.messages import (
    AIMessage,
    AnyMessage,
    BaseMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
    convert_to_messages,
)

from vprm_search import ids
from vprm_search.answers import choices_in, extract_answer
from vprm_search.errors import ImageError, InputError, SearchError, SearchWarning
from vprm_search.images.messages import (
    CHOICES,
    HoldsImages,
    NameImage,
    check_blocks,
    content_blocks,
    has_image,
    image_of_block,
    is_image,
    name_picture,
    reference_images,
    referenced_digest,
    restore_images,
    unread_kinds,
)
from vprm_search.images.store import ImageStore, MemoryImageStore
from vprm_search.steps import DEFAULT_LIMITS, normalise_text
from vprm_search.types import ImageData, Problem

QuestionOf = Callable[[Sequence[BaseMessage]], str]
"""Makes the reward model's question of a conversation, whose pictures are references."""

FEEDBACK_NAME = "vprm_feedback"
"""Name of the human messages that carry a verifier's feedback; they are not questions."""

MAX_IMAGES = 16
MAX_CONVERSATION_IMAGES = 8
"""Pictures with those of earlier turns: of 13 tiles each they fill 26,600 tokens of a context."""
_IMAGE_TAG = "<image>"
_MOST_OF_A_TURN = 300
_MOST_OF_CONTEXT = 1_000
_WHOSE = {
    "human": "of an earlier turn",
    "ai": "in what the model said",
    "system": "in the system prompt",
}
_KINDS_TOLD_APART = frozenset({"text", "tool_use", "tool_call", "function_call"})


def asked_message(messages: Sequence[BaseMessage]) -> HumanMessage:
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


# --- what the reward model is shown --------------------------------------------------------------


def question_in_context(messages: Sequence[BaseMessage]) -> str:
    """Return the text of the last human message, below what was said before it.

    The first question of a conversation is its text alone. A later one ("and how many are blue?")
    refers to what was said, so the human turns before it and the answers to them come first, one
    line each: of an answer its final answer, else its beginning (300 characters), the latest turns
    up to 1,000 characters. System prompts, tool calls, a verifier's feedback and what was written
    after the question are left out. Raises `InputError` if there is no question or it has no text.
    """
    asked = asked_message(messages)
    text = normalise_text(message_text(asked)).strip()
    if not text:
        raise InputError("the last human message has no text; ask a question about the image")
    turns: list[tuple[str, str]] = []
    for message in _before(messages, asked):
        said = _in_short(message)
        if isinstance(message, HumanMessage) and message.name != FEEDBACK_NAME and said:
            turns.append(("User", said))
        elif isinstance(message, AIMessage) and said:  # the last of several is the answer
            turns[-1:] = [t for t in turns[-1:] if t[0] == "User"] + [("Assistant", said)]
    lines: list[str] = []
    for who, said in reversed(turns):
        lines.insert(0, f"{who}: {said}")
        if sum(map(len, lines)) > _MOST_OF_CONTEXT:
            lines.pop(0)
            break
    return "\n".join(["Earlier in this conversation:", *lines, "", text]) if lines else text


def read_problem(
    messages: Sequence[BaseMessage],
    name_image: NameImage,
    question_of: QuestionOf = question_in_context,
) -> Problem:
    """Return the problem a conversation ends with.

    The pictures are those of the messages up to the question, in their order, each once: its own
    or, if it has none, those of the nearest message that has any, up to 16; and those of the
    messages before, one by one, while all are at most 8. A question that says where its pictures
    stand (`<image>`) has none of the latter. What tools have shown since the question comes last.
    All system messages make the system prompt. The choices are those under "choices" of the
    question (`image_message`), else those that its own text states. Raises `InputError` when there
    is nothing to ask, for a human message with anything but text and pictures, and for choices that
    are no texts.
    """
    asked = asked_message(messages)
    text = normalise_text(question_of(messages)).strip()
    if not text:
        raise InputError("question_of made an empty question of the conversation")
    DEFAULT_LIMITS.check_text(text, "the question")
    before = _before(messages, asked)
    for message in (*before, asked):
        if isinstance(message, HumanMessage):
            check_blocks(message)
    pictured = filter(None, (_pictures(m, name_image) for m in reversed([*before, asked])))
    digests = next(pictured, [])
    shown = [m for m in messages[len(before) :] if isinstance(m, ToolMessage) and has_image(m)]
    late = [d for message in shown for d in _pictures(message, name_image) if d not in digests]
    late = list(dict.fromkeys(late))
    if len(digests) + len(late) > MAX_IMAGES:
        raise InputError(
            f"the question has {len(digests) + len(late)} images, the limit is {MAX_IMAGES}"
        )
    for earlier in () if _IMAGE_TAG in text else pictured:
        new = [d for d in dict.fromkeys(earlier) if d not in digests]
        if len(new) + len(digests) + len(late) > MAX_CONVERSATION_IMAGES:
            break
        digests = new + digests
    digests = [*digests, *late]
    system = [message_text(m) for m in messages if isinstance(m, SystemMessage)]
    return Problem(
        text,
        tuple(digests),
        normalise_text("\n\n".join(system)).strip(),
        _digest(conversation(messages), name_image),
        _choices(asked, text),
    )


def _choices(asked: BaseMessage, text: str) -> tuple[str, ...]:
    """Return the choices given with a question; or its own, if `text` holds more than itself."""
    given = asked.additional_kwargs.get(CHOICES) or ()
    if not isinstance(given, list | tuple) or not all(
        isinstance(choice, str) and choice.strip() for choice in given
    ):
        raise InputError(
            "the choices of a question are a list of texts, such as ['10 cm', '12 cm']; this one "
            f"has {str(given)[:80]!r}"
        )
    own = normalise_text(message_text(asked)).strip()
    return tuple(map(normalise_text, given)) or (choices_in(own) if own != text else ())


def read_problem_and_images(
    messages: Sequence[BaseMessage], store: ImageStore | None = None
) -> tuple[Problem, tuple[ImageData, ...], list[str]]:
    """Return the problem a conversation ends with, its pictures in order, and what is `unseen`.

    References to pictures are looked up in `store`. Raises what `read_problem` raises, and
    `ImageError` for a picture that cannot be used.
    """
    found: dict[str, ImageData] = {}

    def name_image(block: Mapping[str, Any]) -> str:
        if store is None:
            _refuse_reference(block)
        digest = referenced_digest(block)
        image = image_of_block(block) if digest is None or store is None else store.get(digest)
        found[image.digest] = image
        return image.digest

    problem = read_problem(messages, name_image)
    images = tuple(found[digest] for digest in problem.images)
    return problem, images, unseen(messages, problem, name_image)


def unseen(messages: Sequence[BaseMessage], problem: Problem, name_image: NameImage) -> list[str]:
    """Return what a conversation holds that the reward model is not shown, in words, each once.

    That is every attachment that is neither text nor picture ("a file from the tool read_page"),
    and every picture that is none of the problem's: beyond the limits of `read_problem`, or of a
    message that is neither a person's nor a tool's.
    """
    found: list[str] = []
    for message in messages:
        whose = _WHOSE.get(message.type, f"in a message of the kind {message.type!r}")
        if isinstance(message, ToolMessage):
            whose = f"from the tool {message.name}" if message.name else "from a tool"
        for block in filter(is_image, content_blocks(message)):
            with contextlib.suppress(ImageError):
                if name_image(block) in problem.images:
                    continue
            found.append(f"a picture {whose}")
        found += [f"{'an' if k[0] in 'aeiou' else 'a'} {k} {whose}" for k in unread_kinds(message)]
    return list(dict.fromkeys(found))


def warn_of_unseen(
    messages: Sequence[BaseMessage], problem: Problem, name_image: NameImage
) -> None:
    """Issue a `SearchWarning` that names what the policy is shown and the reward model is not."""
    if found := unseen(messages, problem, name_image):
        text = f"the reward model is not shown {', '.join(found)}; the policy is"
        warnings.warn(text, SearchWarning, stacklevel=3)


def _before(messages: Sequence[BaseMessage], asked: BaseMessage) -> Sequence[BaseMessage]:
    return messages[: next(i for i, message in enumerate(messages) if message is asked)]


def _pictures(message: BaseMessage, name_image: NameImage) -> list[str]:
    blocks = filter(is_image, content_blocks(message))
    names = (name_picture(message, block, name_image) for block in blocks)
    return [name for name in names if name]


def _in_short(message: BaseMessage) -> str:
    """Return a turn in one line of at most 300 characters: of a solution, its final answer."""
    text = normalise_text(message_text(message)).replace(_IMAGE_TAG, "(picture)")
    if isinstance(message, AIMessage):
        text = extract_answer(text) or text
    line = " ".join(text.split())
    return line if len(line) <= _MOST_OF_A_TURN else f"{line[:_MOST_OF_A_TURN]}…"


# --- what the policy is shown --------------------------------------------------------------------


def conversation(messages: Sequence[BaseMessage]) -> list[BaseMessage]:
    """Return the messages the policy is shown; none if the question stands alone.

    That is all of them, but for answers at the very end, which the search is to give anew. A
    question that stands alone is one human message of text and pictures, with or without a system
    prompt before it.
    """
    shown = list(messages)
    while shown and isinstance(shown[-1], AIMessage):
        shown.pop()
    spoken = [message for message in shown if not isinstance(message, SystemMessage)]
    alone = len(spoken) <= 1 and all(
        block.get("type") == "text" or is_image(block)
        for message in spoken
        for block in content_blocks(message)
    )
    return [] if alone else shown


def restored_conversation(
    problem: Problem, messages: Sequence[BaseMessage], store: HoldsImages
) -> tuple[AnyMessage, ...]:
    """Return the conversation `problem` was read from, its pictures taken from `store`.

    Messages that came after it are left out. Raises `SearchError` if earlier ones were changed
    since, and `ImageError` if a picture is missing.
    """
    if not problem.context:
        return ()
    for end in range(len(messages), 0, -1):
        shown = conversation(messages[:end])
        if _digest(shown, _reference) == problem.context:
            return tuple(restore_images([storable(m) for m in shown], store))
    raise SearchError(
        f"the conversation of this search ({len(messages)} messages) was changed while it was "
        "under way; leave the messages as they were, or ask the question again"
    )


def _digest(messages: Sequence[BaseMessage], name_image: NameImage) -> str:
    """Return the digest of what messages say, "" if there are none; notations do not count."""
    if not messages:
        return ""
    said = json.dumps([_said(m, name_image) for m in messages], sort_keys=True, default=str)
    return f"sha256-{ids.digest(said).hex()}"


def _said(message: BaseMessage, name_image: NameImage) -> list[Any]:
    blocks = content_blocks(message)
    name = name_image if isinstance(message, HumanMessage) else _reference
    return [
        message.type,
        message.name or "",
        normalise_text(message_text(message)),
        [name(block) or _nameless(block) for block in blocks if is_image(block)],
        [
            _nameless(b)
            for b in blocks
            if not is_image(b) and b.get("type") not in _KINDS_TOLD_APART
        ],
        [[call["name"], call["args"]] for call in getattr(message, "tool_calls", ())],
        message.status if isinstance(message, ToolMessage) else "",
    ]


def _nameless(block: Mapping[str, Any]) -> dict[str, Any]:
    """Return a block without its id: LangChain draws a new one whenever it translates a block."""
    return {name: value for name, value in block.items() if name != "id"}


def storable(message: BaseMessage) -> BaseMessage:
    """Return a message with the text that a checkpoint and a request can hold."""
    content = message.content
    if isinstance(content, str):
        clean: Any = normalise_text(content)
    else:
        clean = [
            {**b, "text": normalise_text(b["text"])}
            if isinstance(b, dict) and isinstance(b.get("text"), str)
            else b
            for b in content
        ]
    return message if clean == content else message.model_copy(update={"content": clean})


# --- any notation --------------------------------------------------------------------------------


def read_asked(
    asked: BaseMessage | Mapping[str, Any] | Sequence[BaseMessage | Mapping[str, Any]],
    question_of: QuestionOf = question_in_context,
) -> tuple[Problem, tuple[ImageData, ...], tuple[AnyMessage, ...]]:
    """Return what one message or a conversation asks, its images, and what the policy is shown.

    The messages may be in any of LangChain's notations. Raises `InputError` for what is no message,
    `ImageError` for a picture that cannot be read.
    """
    listed: list[Any] = [asked] if isinstance(asked, BaseMessage | Mapping) else list(asked)
    try:
        messages = convert_to_messages(listed)
    except (ValueError, TypeError, NotImplementedError) as error:  # its text holds the pictures
        raise InputError(
            "the question is neither a text, a message, nor a list of messages; a message is "
            '{"role": "user", "content": ...} or one of LangChain\'s'
        ) from error
    found = MemoryImageStore()

    def take(block: Mapping[str, Any]) -> str:
        _refuse_reference(block)
        return found.put(image_of_block(block))

    light = reference_images(messages, take)
    problem = read_problem(light, _reference, question_of)
    images = tuple(map(found.get, problem.images))
    warn_of_unseen(light, problem, _reference)
    return problem, images, restored_conversation(problem, light, found)


def _refuse_reference(block: Mapping[str, Any]) -> None:
    digest = referenced_digest(block)
    if digest is not None:
        raise ImageError(
            f"image {digest[:80]} is a reference into a search graph's store; give the picture"
        )


def _reference(block: Mapping[str, Any]) -> str:
    return referenced_digest(block) or ""


def message_text(message: BaseMessage) -> str:
    """Return the text of a message, its text blocks joined by line breaks."""
    if isinstance(message.content, str):
        return message.content
    blocks = content_blocks(message)
    return "\n".join(str(block.get("text", "")) for block in blocks if block.get("type") == "text")
