"""A checkpointer that keeps references for the pictures of an agent's branches.

An agent needs its pictures in its state, and a checkpointer writes the state of every branch at
every turn: one picture again and again. Here the pictures are moved into the image store on the way
into the checkpointer and put back on the way out, so that neither the agent nor the checkpointer
knows of it.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from langchain_core.messages import BaseMessage
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.types import Command, Overwrite, Send

from vprm_search.errors import InputError
from vprm_search.images.messages import ImageIntake, has_image, restore_images

Saver = TypeVar("Saver", bound=BaseCheckpointSaver[Any])


def light_saver(saver: Saver, intake: ImageIntake) -> Saver:
    """Return `saver` as one that writes no picture; both have one memory, file or database.

    Args:
        saver: the checkpointer.
        intake: what puts pictures into the image store, and gets them back.
    """
    light = copy.copy(saver)
    light.serde = _LightSerializer(saver.serde, intake)
    return light


def light_message(message: BaseMessage, intake: ImageIntake) -> BaseMessage:
    """Return a message with references for its pictures, or as it is if one cannot be kept.

    Tools may return what no store takes: an address, another format, something broken.
    """
    with contextlib.suppress(InputError):
        return intake.references([message])[0]
    return message


class _LightSerializer:
    """A serializer around another one."""

    def __init__(self, inner: Any, intake: ImageIntake) -> None:
        self._inner, self._intake = inner, intake

    def dumps_typed(self, value: Any) -> tuple[str, bytes]:
        """Write a value with references."""
        written: tuple[str, bytes] = self._inner.dumps_typed(_changed(value, self._light))
        return written

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        """Read a value with its pictures. Raises `ImageError` if one is not in the store."""
        return _changed(self._inner.loads_typed(data), self._whole)

    def _light(self, message: BaseMessage) -> BaseMessage:
        return light_message(message, self._intake)

    def _whole(self, message: BaseMessage) -> BaseMessage:
        return restore_images([message], self._intake)[0]


def _changed(value: Any, change: Callable[[BaseMessage], BaseMessage]) -> Any:
    """Return a value with its messages that show pictures changed, wherever in it they are."""
    if isinstance(value, BaseMessage):
        return change(value) if has_image(value) else value
    if type(value) is dict:
        return {key: _changed(one, change) for key, one in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_changed(one, change) for one in value)
    if isinstance(value, Send):
        return Send(value.node, _changed(value.arg, change))
    if isinstance(value, Command):
        return replace(value, update=_changed(value.update, change))
    return Overwrite(_changed(value.value, change)) if isinstance(value, Overwrite) else value
