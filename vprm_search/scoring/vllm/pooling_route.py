"""The route through a stock pooling server: one chat request per path, a row for every token."""

from __future__ import annotations

import array
import base64
import binascii
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vprm_search.errors import ConfigError, InputError, ModelChangedError
from vprm_search.ids import digest
from vprm_search.scoring.prompt.layout import ScoringPrompt
from vprm_search.scoring.reasons import BAD_INPUT, TOO_LONG
from vprm_search.scoring.vllm.round import ImageShipping, ImagesMissing, ProblemRound, all_done
from vprm_search.scoring.vllm.round import Path as Steps
from vprm_search.scoring.vllm.stock_prompt import StockPrompts, conversation
from vprm_search.scoring.vllm.transport import (
    RequestFailed,
    ServerTransport,
    bad_reply,
    read_json,
)
from vprm_search.types import ImageData

_POOLING = "/pooling"
_TOKENIZE = "/tokenize"
_MODELS = "/v1/models"
_NOT_TOLD = frozenset({403, 404, 405, 501})
_CACHE_MISS = "ache miss"  # vLLM tells an image it does not hold by this text alone


class PoolingRoute:
    """Scores paths as conversations on a server that classifies every token.

    Needed flags of the server: `--runner pooling --convert classify`, `classifier_from_token` over
    the words '-' and '+' with `method: from_2_way_softmax`, and `task: token_classify`.

    The server's chat template writes the control tokens and parses them in the texts too. So every
    name of one is broken by a visible dot in the texts, and the server must count exactly the
    tokens that were counted here: a text that still made a turn of its own, or a template that is
    not the model's, is a failure and never a score. Rows are counted from the end.

    `identity` covers what can be told from outside: the address, the served name, where the weights
    were loaded from, the tokenizer, the layout and the image rule.

    Args:
        transport: to the server.
        served: the model there.
        directory: of the served checkpoint; its weights are not read.
        cache_salt: keeps the server's prefix cache apart from other users', None to share.

    Raises:
        CheckpointError: something is missing in `directory`.
        ConfigError: it holds a model of a layout that no chat template writes.
    """

    name: Literal["pooling"] = "pooling"

    def __init__(
        self,
        transport: ServerTransport,
        served: ServedModel,
        directory: Path,
        cache_salt: str | None,
    ) -> None:
        self.served = served
        self.prompts = StockPrompts(directory)
        self.layout = self.prompts.layout
        if self.layout.own_step_turns or self.layout.header_end or not self.layout.reads_images:
            raise ConfigError(
                "route 'pooling' knows the conversation of VisualPRM only; start the server with "
                "`vprm-search serve`"
            )
        names = (transport.address, served.name, served.root)
        self.identity = digest("vllm-stock", self.prompts.identity, *names).hex()
        self._transport = transport
        self._salt = {} if cache_salt is None else {"cache_salt": cache_salt}
        self._images = ImageShipping(transport)
        self._losses = transport.losses

    @property
    def model(self) -> str:
        """The served model's name."""
        return self.served.name

    async def try_out(self, end: float) -> None:
        """Score a plain text; raises `RequestFailed` with status 400 where that cannot work.

        A server that tells its tokens must have the very tokens of the prompt built here; one that
        does not is judged by their number alone.
        """
        question, path = "How many?", ("First, 1 + 1 = 2.", "The answer is 2.")
        prompt = self.prompts.build(question, path, ())
        await self._ask(question, path, (), prompt, end)
        body = {
            "model": self.model,
            "messages": conversation(self.layout, question, path, ()),
            "add_generation_prompt": False,
        }
        read = _tokens_reader(prompt.ids)
        try:
            await self._transport.post(_TOKENIZE, json.dumps(body).encode(), read, end)
        except RequestFailed as failure:
            if failure.status not in _NOT_TOLD:
                raise

    async def score(self, round_: ProblemRound, end: float) -> None:
        """Give every path of a round its values or a reason; `end` is of `time.monotonic`.

        A path that fails does not touch the others. Raises `ModelChangedError` when the server
        came back with another model.
        """
        await all_done(self._score_path(round_, path, end) for path in round_.paths)

    async def _score_path(self, round_: ProblemRound, path: Steps, end: float) -> None:
        steps = tuple(map(self.prompts.harmless, path))
        try:
            question, prompt = self._prompt(round_, steps)
            values = await self._ask(question, steps, round_.images, prompt, end)
            await self._same_model(end)
        except RequestFailed as failure:
            round_.fail([path], failure.reason)
            return
        state = round_.paths[path]
        state.values[:] = values
        state.prefix_tokens, state.step_tokens = prompt.prefix_tokens, prompt.step_tokens

    def _prompt(self, round_: ProblemRound, steps: Steps) -> tuple[str, ScoringPrompt]:
        """Return the question as it is sent, and the whole prompt. Raises `RequestFailed`."""
        try:
            question = self.prompts.harmless_question(round_.question, len(round_.images))
            prompt = self.prompts.build(question, steps, round_.images)
        except InputError as error:
            raise RequestFailed(BAD_INPUT, str(error)) from error
        limit = self.served.max_model_len
        if limit is not None and len(prompt.ids) > limit:
            raise RequestFailed(
                TOO_LONG,
                f"problem and solution take {len(prompt.ids)} tokens, the server's limit is "
                f"{limit}; use fewer tiles, or merge or shorten the steps",
            )
        return question, prompt

    async def _ask(
        self,
        question: str,
        steps: Steps,
        images: tuple[ImageData, ...],
        prompt: ScoringPrompt,
        end: float,
    ) -> list[float]:
        """Return P('+') of every step; images the server holds are named by their digests only."""
        read = _rows_reader(len(prompt.ids))

        async def ask(digests: frozenset[str]) -> array.array[float]:
            shown = [(i.digest, _data_url(i) if i.digest in digests else None) for i in images]
            body = {
                "model": self.model,
                "task": "token_classify",
                "use_activation": True,
                "encoding_format": "base64",
                "embed_dtype": "float32",
                "endianness": "little",
                "add_generation_prompt": False,
                "messages": conversation(self.layout, question, steps, shown),
                **self._salt,
            }
            try:
                return await self._transport.post(_POOLING, json.dumps(body).encode(), read, end)
            except RequestFailed as failure:
                if failure.status == 400 and _CACHE_MISS in failure.reason:
                    raise ImagesMissing([image.digest for image in images]) from failure
                raise

        rows = await self._images.deliver(images, ask)
        return [rows[place - len(prompt.ids)] for place in prompt.read_positions]

    async def _same_model(self, end: float) -> None:
        """Compare the server's model again if the server was away since the last time."""
        losses = self._transport.losses
        if losses == self._losses:
            return
        try:
            served = await served_model(self._transport, self.served.name, end)
        except ConfigError as error:
            raise ModelChangedError(f"the server came back without its model: {error}") from error
        if served != self.served:
            raise ModelChangedError(
                f"the server at {self._transport.address} came back with {served}, before it was "
                f"{self.served}; make a new scorer and start the search again"
            )
        self._losses = losses


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One line of a server's list: `root` is the path or repository the model was loaded from."""

    name: str
    root: str = ""
    max_model_len: int | None = None
    parent: str | None = None


async def served_model(transport: ServerTransport, wanted: str | None, end: float) -> ServedModel:
    """Return the model called `wanted`, or the only one there is.

    Raises `ConfigError` when there is none of that name, or several and none was named, and
    `RequestFailed` when the server does not answer.
    """
    models = await transport.get(_MODELS, _read_models, end)
    if wanted is not None:
        found = [model for model in models if model.name == wanted]
    else:
        found = [model for model in models if model.parent is None]
        found = found[:1] if len({model.root for model in found}) == 1 else found  # other names
    if len(found) == 1:
        return found[0]
    names = ", ".join(repr(model.name) for model in models[:20]) or "none"
    what = f"no model {wanted!r}" if wanted is not None else "more than one model, or none"
    raise ConfigError(f"{transport.address} serves {what}; name one with model=…: {names}")


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


def _tokens_reader(ids: Sequence[int]) -> Callable[[bytes], None]:
    """Return the reader of a reply that must hold exactly these token ids."""

    def read(body: bytes) -> None:
        try:
            told = list(read_json(body)["tokens"])
        except (KeyError, TypeError):
            raise bad_reply("the reply holds no 'tokens'") from None
        if told != list(ids):
            places = zip(told, ids, strict=False)
            place = next((i for i, (a, b) in enumerate(places) if a != b), min(len(told), len(ids)))
            raise RequestFailed(
                BAD_INPUT,
                f"the server makes other tokens of a conversation, from token {place} on: its chat "
                "template or tokenizer is not this checkpoint's",
                status=400,
            )

    return read


def _rows_reader(tokens: int) -> Callable[[bytes], array.array[float]]:
    """Return the reader of a reply that must hold `tokens` rows of one probability each."""

    def read(body: bytes) -> array.array[float]:
        reply = read_json(body)
        try:
            (item,) = reply["data"]
            data, counted = item["data"], reply["usage"]["prompt_tokens"]
        except (KeyError, TypeError, ValueError):
            raise bad_reply("the reply holds no single 'data' and 'usage'") from None
        if counted != tokens:
            raise RequestFailed(
                BAD_INPUT,
                f"the server counts {counted!r} tokens where {tokens} were counted here: its chat "
                "template or tokenizer is not this checkpoint's, or a text holds a control token",
                status=400,
            )
        rows = _floats(data)
        if len(rows) != tokens or not all(0 <= row <= 1 for row in rows):
            raise RequestFailed(
                BAD_INPUT,
                f"the server gives {len(rows)} numbers for {tokens} tokens, or numbers outside "
                "[0, 1]: it is not set up to classify every token as '-' or '+'",
                status=400,
            )
        return rows

    return read


def _floats(data: Any) -> array.array[float]:
    try:
        rows = array.array("f", base64.b64decode(data, validate=True))
    except (TypeError, ValueError, binascii.Error):
        raise bad_reply("'data' is no base64 of float32 numbers") from None
    if sys.byteorder == "big":
        rows.byteswap()
    return rows


def _data_url(image: ImageData) -> str:
    return "data:image/png;base64," + base64.b64encode(image.png).decode()
