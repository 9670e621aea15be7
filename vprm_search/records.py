"""Reading what was stored: what is wrong with it, and where, in one sentence."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from vprm_search.errors import CheckpointError, RecordError

T = TypeVar("T")
MAX_JSON_BYTES = 64 << 20


def first_wrong(error: ValidationError) -> tuple[str, str]:
    """Return which field pydantic's report names first ("a.b", or "" for the whole), and why."""
    first = error.errors(include_url=False)[0]
    return ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")


@cache
def _reader(kind: type[Any]) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def read_record(kind: type[T], data: Any, where: str) -> T:
    """Return a record from plain JSON. Raises `RecordError` that says where and what is wrong."""
    if not isinstance(data, Mapping):
        raise RecordError(f"{where}: expected a JSON object, got {type(data).__name__}")
    try:
        read: Any = kind  # mypy does not take a type variable for hashable
        record: T = _reader(read).validate_python(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        got = "" if first["type"] == "missing" else f" is {first['input']!r:.80}"
        said = first["msg"][:1].lower() + first["msg"][1:]
        raise RecordError(f"{where}: {first_wrong(error)[0]}{got}: {said}") from error
    return record


def record_json(record: Any) -> dict[str, Any]:
    """Return a record as plain data, under the names that it is stored by."""
    kind: Any = type(record)  # mypy does not take a class for hashable
    data: dict[str, Any] = _reader(kind).dump_python(record, by_alias=True)
    return data


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object from a checkpoint's file. Raises `CheckpointError` if there is none."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise CheckpointError(f"{path} is larger than {MAX_JSON_BYTES} bytes")
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path} is missing: {path.parent} is no checkpoint directory"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} holds no JSON object")
    return data


class VersionedFile(BaseModel):
    """A JSON file that says what it is: its fields `format` and `version` have one value each.

    `noun` is what such a file is called, and `made_by` the command that makes one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    noun: ClassVar[str]
    made_by: ClassVar[str]

    def dumps(self) -> str:
        """Return the file's text."""
        return json.dumps(self.model_dump(), indent=1, ensure_ascii=True, allow_nan=False) + "\n"

    @classmethod
    def loads(cls, text: str, where: str = "the file") -> Self:
        """Read a file's text. Raises `RecordError` naming `where` and the first thing wrong."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise RecordError(f"{where} is not JSON: {error}") from error
        known = {name: cls.model_fields[name].default for name in ("format", "version")}
        if not isinstance(data, dict) or data.get("format") != known["format"]:
            raise RecordError(f"{where} is no {cls.noun}: it lacks the format {known['format']!r}")
        if data.get("version") != known["version"]:
            raise RecordError(
                f"{where} has version {data.get('version')!r}, this release reads version "
                f"{known['version']}; make it again with {cls.made_by}"
            )
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise RecordError(f"{where}: {': '.join(first_wrong(error))}") from error
