"""The plugin's replies, read strictly: one that is not what was agreed brings no score at all."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from vprm_search.scoring.reasons import BAD_INPUT, NOT_FINITE, OUT_OF_MEMORY, TOO_LONG
from vprm_search.scoring.vllm.failures import bad_reply, shortened

CONTRACT_VERSION = 1

_PATH_REASONS = frozenset({TOO_LONG, BAD_INPUT, NOT_FINITE, OUT_OF_MEMORY})


@dataclass(frozen=True, slots=True)
class ServerDescription:
    """What the plugin says of its model: `layout` and `limits` are JSON as the server gave them."""

    identity: str
    model: str
    layout: dict[str, Any]
    limits: dict[str, int]


@dataclass(frozen=True, slots=True)
class PluginScores:
    """Scores of the paths of one request, `[paths][steps]`, None where a row was not computed.

    `failures` maps the index of a path to the reason why it can never be scored.
    """

    scores: tuple[tuple[float | None, ...], ...]
    prefix_tokens: int
    step_tokens: tuple[tuple[int, ...], ...]
    identity: str
    failures: dict[int, str]


@dataclass(frozen=True, slots=True)
class MissingImages:
    """The images, of those a request named without their bytes, that the server does not hold."""

    digests: tuple[str, ...]


def read_description(body: bytes) -> ServerDescription:
    """Read the reply to "describe". Raises `RequestFailed` for anything else."""
    data = _plugin_data(body)
    identity, layout = data.get("identity"), data.get("layout")
    if not isinstance(identity, str) or not identity or not isinstance(layout, dict):
        raise bad_reply("the server's description lacks its identity or its layout")
    limits = data.get("limits")
    known = limits.items() if isinstance(limits, dict) else ()
    numbers = {name: value for name, value in known if type(value) is int and value > 0}
    return ServerDescription(identity, str(data.get("model", "")), layout, numbers)


def scores_reader(
    paths: Sequence[Sequence[str]], images: Sequence[str]
) -> Callable[[bytes], PluginScores | MissingImages]:
    """Return the reader of the reply to a request for `paths` over `images` (digests).

    It raises `RequestFailed` unless there is one score list per path and one score per step, every
    score is null or a number in [0, 1], the token counts fit, and missing images were named.
    """

    def read(body: bytes) -> PluginScores | MissingImages:
        data = _plugin_data(body)
        if "missing_images" in data:
            return _read_missing(data["missing_images"], images)
        counts = [len(path) for path in paths]
        return PluginScores(
            tuple(tuple(row) for row in _table(data, "scores", counts, _is_score)),
            _prefix_tokens(data),
            tuple(tuple(row) for row in _table(data, "step_tokens", counts, _is_count)),
            _identity(data),
            _failures(data.get("failures", {}), len(counts)),
        )

    return read


def read_json(body: bytes) -> Any:
    """Parse JSON without the numbers JSON does not know. Raises `RequestFailed`."""
    try:
        return json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        text = shortened(body[:80].decode("utf-8", "replace"))
        raise bad_reply(f"the reply is no JSON ({shortened(str(error))}): {text!r}") from None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _plugin_data(body: bytes) -> dict[str, Any]:
    reply = read_json(body)
    data = reply.get("data") if isinstance(reply, dict) else None
    if not isinstance(data, dict):
        raise bad_reply("the reply has no object 'data'")
    version = data.get("version")
    if type(version) is not int:
        raise bad_reply("the reply does not name its version")
    if version != CONTRACT_VERSION:
        failure = bad_reply(
            f"the server speaks version {version} of the scoring contract, this client version "
            f"{CONTRACT_VERSION}; install matching releases on both sides"
        )
        failure.again = False
        raise failure
    return data


def _read_missing(missing: Any, images: Sequence[str]) -> MissingImages:
    if not isinstance(missing, list) or not missing or not set(map(str, missing)) <= set(images):
        raise bad_reply(f"the server misses images that were not named: {missing!r}")
    return MissingImages(tuple(map(str, missing)))


def _table(
    data: dict[str, Any], name: str, counts: Sequence[int], fits: Callable[[Any], bool]
) -> list[list[Any]]:
    rows = data.get(name)
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        raise bad_reply(f"{name!r} is no list of lists")
    if [len(row) for row in rows] != list(counts):
        found = [len(row) for row in rows][:20]
        raise bad_reply(f"{name!r} has rows of {found}, asked were {list(counts)[:20]}")
    for number, row in enumerate(rows):
        for value in row:
            if not fits(value):
                raise bad_reply(f"{name!r}, path {number}, holds {shortened(repr(value))}")
    return rows


def _is_score(value: Any) -> bool:
    return value is None or (type(value) in (int, float) and 0 <= value <= 1)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 31


def _prefix_tokens(data: dict[str, Any]) -> int:
    if not _is_count(data.get("prefix_tokens")):
        raise bad_reply(f"'prefix_tokens' is {shortened(repr(data.get('prefix_tokens')))}")
    return int(data["prefix_tokens"])


def _identity(data: dict[str, Any]) -> str:
    identity = data.get("identity")
    if not isinstance(identity, str) or not identity:
        raise bad_reply("the reply does not name the model that made the scores")
    return identity


def _failures(failures: Any, paths: int) -> dict[int, str]:
    if not isinstance(failures, dict):
        raise bad_reply("'failures' is no object")
    read: dict[int, str] = {}
    for key, reason in failures.items():
        place = int(key) if key.isascii() and key.isdecimal() and len(key) < 9 else paths
        if place >= paths or not isinstance(reason, str):
            raise bad_reply(f"'failures' names path {shortened(key)!r} of {paths}")
        word = reason.split(":", 1)[0]
        read[place] = shortened(reason if word in _PATH_REASONS else f"{BAD_INPUT}: {reason}")
    return read
