"""Which model a server offers: its name, where it was loaded from, and its context."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vprm_search.errors import ConfigError
from vprm_search.scoring.vllm.calls import ServerCalls
from vprm_search.scoring.vllm.failures import bad_reply
from vprm_search.scoring.vllm.reply import read_json

_MODELS = "/v1/models"


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One line of a server's list: `root` is the path or repository the model was loaded from."""

    name: str
    root: str = ""
    max_model_len: int | None = None
    parent: str | None = None


async def served_model(calls: ServerCalls, wanted: str | None, end: float) -> ServedModel:
    """Return the model called `wanted`, or the only one there is.

    Raises `ConfigError` when there is none of that name, or several and none was named, and
    `RequestFailed` when the server does not answer.
    """
    models = await calls.get(_MODELS, _read_models, end)
    if wanted is not None:
        found = [model for model in models if model.name == wanted]
    else:
        found = [model for model in models if model.parent is None]
        found = found[:1] if len({model.root for model in found}) == 1 else found  # other names
    if len(found) == 1:
        return found[0]
    names = ", ".join(repr(model.name) for model in models[:20]) or "none"
    what = f"no model {wanted!r}" if wanted is not None else "more than one model, or none"
    raise ConfigError(f"{calls.connection.address} serves {what}; name one with model=…: {names}")


def _read_models(body: bytes) -> list[ServedModel]:
    reply = read_json(body)
    rows = reply.get("data") if isinstance(reply, dict) else None
    if not isinstance(rows, list):
        raise bad_reply("the server's list of models has no list 'data'")
    return [_read_model(row) for row in rows]


def _read_model(row: Any) -> ServedModel:
    if not isinstance(row, dict) or not isinstance(row.get("id"), str):
        raise bad_reply("a row of the server's list of models has no 'id'")
    length = row.get("max_model_len")
    parent = row.get("parent")
    return ServedModel(
        row["id"],
        str(row.get("root") or ""),
        length if type(length) is int and length > 0 else None,
        parent if isinstance(parent, str) else None,
    )
