"""What a client and the vLLM plugin say to each other, version 1; this file runs on both sides.

    POST /pooling {"model": NAME, "data": {"version": 1, "question": …, "images": ["sha256-…"],
        "image_data": {"sha256-…": "<base64 PNG>"}, "paths": [[step, …], …],
        "cache_salt": null | "…", "use_prefix_cache": true}}
    → {"data": {"version": 1, "scores": [[p | null, …], …], "prefix_tokens": …,
        "step_tokens": [[…], …], "identity": "…", "failures": {"3": "too_long: …"}}}
    → {"data": {"version": 1, "missing_images": ["sha256-…"]}}   send these along and ask again

    POST /pooling {"model": NAME, "data": {"version": 1, "describe": true}}
    → {"data": {"version": 1, "identity": …, "layout": {…}, "limits": {…}, …}}

A null score without a failure of its path lies inside the cached prefix: ask for it with a fresh
`cache_salt`. Images are known by the digest of their pixels (`vprm_search.images.pixel_digest`), to
each tenant those that it has sent itself. A request may hold nothing else, but for `"task":
"plugin"` beside `model`; a reply may hold more, for clients of later releases.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Annotated, Any, Literal, NoReturn

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
)

VERSION: Literal[1] = 1
LIMITS_VARIABLE = "VPRM_SEARCH_VLLM_LIMITS"

Digest = Annotated[str, StringConstraints(pattern=r"^sha256-[0-9a-f]{64}$")]
Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, lt=1 << 31)]
PathNumber = Annotated[str, StringConstraints(pattern=r"^(0|[1-9][0-9]{0,8})$")]
Name = Annotated[str, StringConstraints(min_length=1)]


def _exactly(wanted: object) -> Callable[[object], object]:
    """Return a check for a constant: Python takes true and 1.0 for 1, JSON does not."""

    def check(value: object) -> object:
        if type(value) is not type(wanted) or value != wanted:
            raise ValueError(f"it must be {json.dumps(wanted)}")
        return value

    return check


Version = Annotated[Literal[1], BeforeValidator(_exactly(VERSION))]


# --- requests -----------------------------------------------------------------------------------


class ScoringBody(BaseModel):
    """A problem and its candidate paths."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    version: Version
    question: str
    images: list[Digest] = Field(default_factory=list)
    image_data: dict[Digest, str] = Field(default_factory=dict, repr=False)
    paths: list[list[str]]
    cache_salt: Annotated[str, StringConstraints(min_length=1, max_length=1024)] | None = None
    use_prefix_cache: bool = True


class DescribeBody(BaseModel):
    """Asks what this server is."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    version: Version
    describe: Annotated[Literal[True], BeforeValidator(_exactly(True))]


# --- replies ------------------------------------------------------------------------------------


class ScoresReply(BaseModel):
    """Scores of the paths of one request.

    Attributes:
        scores: P('+'), `[paths][steps]`, None where a row was not computed.
        prefix_tokens: tokens before the first step, the same for all paths.
        step_tokens: tokens of each step, `[paths][steps]`.
        identity: names everything the scores depend on besides the request.
        failures: by the index of a path, why it can never be scored; a word of `scoring.reasons`,
            a colon and a sentence.
    """

    model_config = ConfigDict(frozen=True, strict=True)

    version: Version
    scores: list[list[Probability | None]]
    prefix_tokens: Count
    step_tokens: list[list[Count]]
    identity: Name
    failures: dict[PathNumber, str] = Field(default_factory=dict)


class MissingImagesReply(BaseModel):
    """The images, of those a request named without their bytes, that the server does not hold."""

    model_config = ConfigDict(frozen=True, strict=True)

    version: Version
    missing_images: Annotated[list[str], Field(min_length=1)]


class Description(BaseModel):
    """What a server is and how busy it is; `layout`, `preprocess` and `limits` are plain JSON."""

    model_config = ConfigDict(frozen=True, strict=True)

    version: Version
    identity: Name
    model: str = ""
    family: str = ""
    layout: dict[str, Any]
    preprocess: dict[str, Any] | None = None
    limits: dict[str, Annotated[int, Field(ge=0)]] = Field(default_factory=dict)
    max_model_len: Count = 0
    dtype: str = ""
    plugin: str = ""
    vllm: str = ""
    requests_under_way: Count = 0
    images_kept: Count = 0
    image_bytes_kept: Annotated[int, Field(ge=0)] = 0


def first_problem(error: ValidationError) -> str:
    """Say what is wrong and where, without repeating what was sent."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    place = ".".join(("data", *(str(part)[:40] for part in first["loc"])))
    return f"{place}: {first['msg'].removeprefix('Value error, ')}"


# --- what a server takes ------------------------------------------------------------------------


class RequestError(Exception):
    """A request that is not served; `status` is the HTTP code."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Limits(BaseModel):
    """What one request may ask for.

    `max_step_bytes` and `max_question_bytes` are UTF-8 bytes of one text, `max_text_bytes` those of
    all texts, `max_image_bytes` the bytes of one PNG and `max_image_pixels` its width times height;
    `max_tokens` counts all paths in full, with images, as if nothing were shared.
    `kept_image_bytes` bounds the PNGs that this server process keeps between requests, and
    `max_body_bytes` the whole HTTP body.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_paths: int = Field(default=256, ge=1)
    max_steps: int = Field(default=256, ge=1)
    max_step_bytes: int = Field(default=64_000, ge=1)
    max_question_bytes: int = Field(default=200_000, ge=1)
    max_text_bytes: int = Field(default=8_000_000, ge=1)
    max_images: int = Field(default=16, ge=0)
    max_image_bytes: int = Field(default=20_000_000, ge=1)
    max_image_pixels: int = Field(default=40_000_000, ge=1)
    max_tokens: int = Field(default=4_000_000, ge=1)
    kept_image_bytes: int = Field(default=1_000_000_000, ge=0)
    max_body_bytes: int = Field(default=400_000_000, ge=1)

    @classmethod
    def from_environment(cls) -> Limits:
        """Return the defaults, changed by the JSON object in `VPRM_SEARCH_VLLM_LIMITS`."""
        text = os.environ.get(LIMITS_VARIABLE)
        return cls.model_validate_json(text) if text else cls()


_FIELDS = frozenset({"model", "task", "data"})


def read_request(raw: bytes) -> dict[str, Any]:
    """Parse the body of a request. Raises `RequestError` 400 unless it is one JSON object.

    Stricter than Python's parser: a name given twice, of which other parsers take the other one,
    and numbers that JSON does not know are refused.
    """
    try:
        body = json.loads(raw, object_pairs_hook=_named_once, parse_constant=_no_number)
    except UnicodeDecodeError:
        raise RequestError(400, "the body is no JSON: it is not UTF-8") from None
    except RecursionError:
        raise RequestError(400, "the body is no JSON that is read here: nested too deep") from None
    except ValueError as error:
        raise RequestError(400, f"the body is no JSON: {str(error)[:200]}") from None
    if not isinstance(body, dict):
        raise RequestError(400, f"the body must be an object, not {type(body).__name__}")
    return body


def check_fields(body: dict[str, Any]) -> None:
    """Raise `RequestError` 400 for anything but `data`, the model's name and the task's."""
    if strangers := sorted(body.keys() - _FIELDS):
        raise RequestError(
            400,
            f"the request holds {strangers[0][:40]!r}; this server scores steps: 'data', 'model' "
            "and 'task' are all that it takes",
        )
    if "data" not in body:
        raise RequestError(400, "the request has no 'data'; this server scores steps only")
    if not isinstance(body.get("model", ""), str | None):
        raise RequestError(400, f"model must be a string, not {type(body['model']).__name__}")
    if body.get("task", "plugin") != "plugin":
        raise RequestError(400, "task must be 'plugin', or left out")


def _named_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise RequestError(400, f"the body holds {twice[:40]!r} twice; give it once")
    return found


def _no_number(text: str) -> NoReturn:
    raise RequestError(400, f"the body is no JSON: {text} is no number")


def parse_body(data: Any, limits: Limits) -> ScoringBody | DescribeBody:
    """Check a request's `data`. Raises `RequestError` 400 for its shape and 413 for its size."""
    if not isinstance(data, dict):
        raise RequestError(400, f"data must be an object, not {type(data).__name__}")
    kind = DescribeBody if "describe" in data else ScoringBody
    try:
        body = kind.model_validate(data)
    except ValidationError as error:
        raise RequestError(400, first_problem(error)) from None
    if isinstance(body, ScoringBody):
        _check_sizes(body, limits)
    return body


def _check_sizes(body: ScoringBody, limits: Limits) -> None:
    if not body.paths:
        raise RequestError(400, "data.paths is empty; send at least one path")
    _at_most(len(body.paths), limits.max_paths, "paths", "data.paths")
    _at_most(len(body.images), limits.max_images, "images", "data.images")
    strangers = len(body.image_data.keys() - set(body.images))
    if strangers:
        raise RequestError(
            400, f"data.image_data holds {strangers} images that data.images does not name"
        )
    total = _bytes(body.question, limits.max_question_bytes, "data.question")
    for number, path in enumerate(body.paths):
        place = f"data.paths.{number}"
        if not path:
            raise RequestError(400, f"{place} is empty; a path needs at least one step")
        _at_most(len(path), limits.max_steps, "steps", place)
        for index, step in enumerate(path):
            total += _bytes(step, limits.max_step_bytes, f"{place}.{index}")
    _at_most(total, limits.max_text_bytes, "bytes of text", "data")


def _bytes(text: str, limit: int, place: str) -> int:
    size = len(text.encode("utf-8", "surrogatepass"))
    _at_most(size, limit, "bytes", place)
    return size


def _at_most(size: int, limit: int, unit: str, place: str) -> None:
    if size > limit:
        raise RequestError(413, f"{place} has {size} {unit}; this server takes at most {limit}")
