"""Every way to put a picture into a LangChain message, and every way that must not work."""

from __future__ import annotations

import base64
import socket
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage
from PIL import Image

from tests.policy.models import BLUE, RED
from vprm_search.errors import ImageError, InputError
from vprm_search.images import MemoryImageStore, image_message, reference_images
from vprm_search.images.messages import ImageIntake, read_message

B64 = base64.b64encode(RED.png).decode()
URI = f"data:image/png;base64,{B64}"
GOOD: list[dict[str, Any]] = [
    {"type": "image", "base64": B64, "mime_type": "image/png"},
    {"type": "image", "base64": RED.png, "mime_type": "image/png"},
    {"type": "image", "url": URI},
    {"type": "image", "source_type": "base64", "data": B64, "mime_type": "image/png"},
    {"type": "image_url", "image_url": {"url": URI}},
    {"type": "image_url", "image_url": {"url": URI, "detail": "low"}},
    {"type": "image_url", "image_url": {"url": URI}, "uuid": "anything"},
    {"type": "image_url", "image_url": URI},
    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": B64}},
    {"image": {"format": "png", "source": {"bytes": RED.png}}},
    {"type": "media", "mime_type": "image/png", "data": B64},
    {"inline_data": {"mime_type": "image/png", "data": B64}},
    {"inlineData": {"mimeType": "image/png", "data": B64}},
    {"type": "input_image", "image_url": URI, "detail": "auto"},
    {"type": "image", "image": B64},
    {"type": "image", "image": URI},
    {"type": "file", "base64": B64, "mime_type": "image/png"},
    {"type": "file", "file": {"file_data": URI, "filename": "red.png"}},
    {"type": "input_file", "file_data": URI, "filename": "red.png"},
]
BAD: list[dict[str, Any]] = [
    {"type": "image", "url": "http://127.0.0.1:9/x.png"},
    {"type": "image", "url": "file:///etc/passwd"},
    {"type": "image", "url": "/etc/passwd"},
    {"type": "image", "source_type": "url", "url": "https://127.0.0.1/x.png"},
    {"type": "image", "file_id": "file-1"},
    {"type": "image", "base64": "!!!", "mime_type": "image/png"},
    {"type": "image", "base64": "AAAA", "mime_type": "image/png"},
    {"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/x.png"}},
    {"type": "image_url", "image_url": {"url": "x.png"}},
    {"type": "image_url", "image_url": "ftp://127.0.0.1/x.png"},
    {"type": "image_url", "image_url": None},
    {"type": "image_url", "image_url": None, "uuid": "known"},
    {"type": "image", "source": {"type": "url", "url": "http://127.0.0.1/x"}},
    {"type": "image", "source": {"type": "file", "file_id": "1"}},
    {"type": "input_image", "image_url": "http://127.0.0.1/x"},
    {"type": "image", "image": "http://127.0.0.1/x"},
    {"type": "image", "image": "photo.png"},
    {"type": "image"},
]


@pytest.mark.parametrize("block", GOOD, ids=repr)
def test_every_format_is_the_same_picture(block: dict[str, Any]) -> None:
    message = HumanMessage(content=["Look: ", block, {"type": "text", "text": "what is it?"}])
    assert read_message(message) == ("Look: \nwhat is it?", [RED])


@pytest.mark.parametrize("block", BAD, ids=repr)
def test_addresses_and_rubbish_are_image_errors_without_io(
    block: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_io(*_: Any, **__: Any) -> Any:
        raise AssertionError("I/O")

    monkeypatch.setattr(socket.socket, "connect", no_io)
    monkeypatch.setattr("builtins.open", no_io)
    monkeypatch.setattr("os.open", no_io)
    with pytest.raises(ImageError):
        read_message(HumanMessage(content=[block]))


@pytest.mark.parametrize("kind", ["video", "audio", "file"])
def test_other_media_are_refused(kind: str) -> None:
    block = {"type": kind, "base64": "AAAA", "mime_type": "x/y"}
    with pytest.raises(InputError, match=kind):
        read_message(HumanMessage(content=[block]))


@pytest.mark.parametrize("block", [{"type": "x", "value": 1}, {"a": 1}, {"type": "input_file"}])
def test_blocks_nobody_knows_are_refused(block: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=str(block.get("type", "a"))):
        read_message(HumanMessage(content=["hi", block]))


@pytest.mark.parametrize("block", [{"type": "cache_point"}, {"cachePoint": {"type": "default"}}])
def test_marks_for_prompt_caches_say_nothing(block: dict[str, Any]) -> None:
    assert read_message(HumanMessage(content=["hi", block])) == ("hi", [])


@pytest.mark.parametrize("blocks", [[{"type": "image", "source": 3}], [{"type": "image_url"}]])
def test_malformed_blocks_are_input_errors(blocks: list[Any]) -> None:
    with pytest.raises(InputError):
        read_message(HumanMessage(content=blocks))


def test_too_many_images_are_refused() -> None:
    with pytest.raises(ImageError, match="16"):
        read_message(HumanMessage(content=[GOOD[0]] * 17))


def test_an_image_message_takes_paths_bytes_and_pictures_and_asks_last(tmp_path: Path) -> None:
    path = tmp_path / "red.png"
    path.write_bytes(RED.png)
    picture = Image.open(path)
    message = image_message("How many?", path, str(path), RED.png, picture, BLUE)
    assert read_message(message) == ("How many?", [RED] * 4 + [BLUE])
    assert [block["type"] for block in message.content_blocks] == ["image"] * 5 + ["text"]


@pytest.mark.parametrize(
    "source",
    ["https://127.0.0.1:9/x.png", "file:///etc/passwd", b"no image", URI, "no/such/file.png"],
)
def test_an_image_message_takes_no_address_and_no_rubbish(source: str | bytes) -> None:
    with pytest.raises(ImageError):
        image_message("How many?", source)


def test_what_is_written_can_be_read() -> None:
    message = image_message("How many?", RED, BLUE)
    assert read_message(message) == ("How many?", [RED, BLUE])
    assert image_message("How many?").content == "How many?"


def test_blocks_nobody_knows_stay_when_pictures_become_references() -> None:
    unknown: list[Any] = [{"type": "cache_point"}, {"type": "x", "value": 1}]
    for kind in (HumanMessage, AIMessage):
        message = kind(content=[GOOD[4], *unknown])
        [light] = reference_images([message], ImageIntake(MemoryImageStore()).name_image)
        reference = {"type": "image", "url": f"vprm-image://{RED.digest}"}
        assert light.content == [reference, *unknown]
