"""Messages in the shape a client reads, and marked for the provider's prompt cache."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage

from tests.policy.models import BLUE, RED
from vprm_search.chat.capabilities import ANTHROPIC, ModelCapabilities
from vprm_search.chat.outgoing import outgoing
from vprm_search.images.messages import image_message, read_message

CONVERSE = ModelCapabilities(cache_marks="cachePoint")
URLS = ModelCapabilities(image_urls=True)
MARK = {"type": "ephemeral"}


def marked(messages: list[BaseMessage]) -> list[str]:
    """Return the text, or the kind, of every block that is marked."""
    blocks = [b for m in messages if isinstance(m.content, list) for b in m.content]
    return [
        b.get("text", b["type"]) for b in blocks if isinstance(b, dict) and "cache_control" in b
    ]


def test_a_client_without_needs_gets_the_messages_as_they_are() -> None:
    messages = [SystemMessage("S"), image_message("Q", RED), AIMessage("A")]
    sent = outgoing(messages, ModelCapabilities(), "Q")
    assert all(a is b for a, b in zip(sent, messages, strict=True))


def test_pictures_become_openais_blocks() -> None:
    (message,) = outgoing([image_message("Q", RED, BLUE)], URLS)
    first, second, text = message.content
    assert first["type"] == second["type"] == "image_url"  # type: ignore[index]
    assert text == {"type": "text", "text": "Q"}
    assert read_message(message) == ("Q", [RED, BLUE])


@pytest.mark.parametrize(
    ("message", "shared", "expected"),
    [
        (image_message("Q\n\nGive one step.", RED), "Q", ["Q"]),
        (image_message("Q", RED), "Q", ["Q"]),
        (HumanMessage("Q\n\nGive one step."), "Q", ["Q"]),
        (image_message("Q", RED, BLUE), None, ["image"]),
        (HumanMessage("Q"), None, []),
        (
            HumanMessage([{"type": "text", "text": "Q"}, {"type": "text", "text": "Step?"}]),
            "Q",
            ["Q"],
        ),
        (HumanMessage("Give one step."), "Q", []),
        (HumanMessage(""), "", []),
    ],
)
def test_the_mark_follows_what_all_calls_begin_with(
    message: HumanMessage, shared: str | None, expected: list[str]
) -> None:
    sent = outgoing([SystemMessage("S"), message, AIMessage("A")], ANTHROPIC, shared)
    assert marked(sent) == expected
    assert sent[2] == AIMessage("A")


def test_bedrock_has_a_block_for_the_mark() -> None:
    (message,) = outgoing([image_message("Q\n\nGive one step.", RED)], CONVERSE, "Q")
    kinds = [next(iter(b)) if "type" not in b else b["type"] for b in message.content]  # type: ignore[arg-type]
    assert kinds == ["image", "text", "cachePoint", "text"]


def test_a_conversation_with_marks_of_its_own_keeps_those_alone() -> None:
    own: list[Any] = [{"type": "text", "text": "Long.", "cache_control": MARK}]
    messages = [SystemMessage(own), image_message("Q", RED)]
    assert marked(outgoing(messages, ANTHROPIC, "Q")) == ["Long."]


@given(st.text("ab \n", max_size=20), st.text("ab \n", max_size=20), st.integers(0, 2))
def test_marks_change_no_word_and_no_picture(shared: str, rest: str, images: int) -> None:
    message = image_message(shared + rest, *(RED, BLUE)[:images])
    for known in (ANTHROPIC, CONVERSE):
        (sent,) = outgoing([message], known, shared)
        text, pictures = read_message(sent)
        assert "".join(text.split()) == "".join((shared + rest).split())
        assert pictures == [RED, BLUE][:images]
