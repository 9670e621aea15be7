"""The route through a stock pooling server: one chat request per path, a row for every token."""

from __future__ import annotations

import array
import base64
import binascii
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from vprm_search.errors import ConfigError
from vprm_search.scoring.prompt.layout import PrmLayout, ScoringPrompt
from vprm_search.scoring.reasons import BAD_INPUT
from vprm_search.scoring.vllm.calls import ServerCalls
from vprm_search.scoring.vllm.failures import RequestFailed, bad_reply
from vprm_search.scoring.vllm.reply import read_json
from vprm_search.scoring.vllm.round import Path as Steps
from vprm_search.scoring.vllm.round import ProblemRound
from vprm_search.scoring.vllm.served_model import ServedModel
from vprm_search.scoring.vllm.stock_prompt import StockPrompts
from vprm_search.scoring.vllm.stock_server import Images, StockServer

_POOLING = "/pooling"
_TOKENIZE = "/tokenize"


class PoolingRoute:
    """Scores paths as conversations on a server that classifies every token.

    Needed flags of the server: `--runner pooling --convert classify`, `classifier_from_token` over
    the words '-' and '+' with `method: from_2_way_softmax`, and `task: token_classify`.

    The server's chat template writes the control tokens and parses them in the texts too. So every
    name of one is broken by a visible dot in the texts, and the server must count exactly the
    tokens that were counted here: a text that still made a turn of its own, or a template that is
    not the model's, is a failure and never a score. Rows are counted from the end.
    """

    name: Literal["pooling"] = "pooling"

    def __init__(
        self, calls: ServerCalls, served: ServedModel, directory: Path, cache_salt: str | None
    ) -> None:
        self._server = StockServer(calls, served, StockPrompts(directory), cache_salt)
        layout = self._server.prompts.layout
        if layout.own_step_turns or layout.header_end is not None or not layout.reads_images:
            raise ConfigError(
                "route 'pooling' knows the conversation of VisualPRM only; use route='generate' or "
                "start the server with `vprm-search serve`"
            )

    @property
    def model(self) -> str:
        """The served model's name."""
        return self._server.served.name

    @property
    def identity(self) -> str:
        """See `StockServer`."""
        return self._server.identity

    @property
    def layout(self) -> PrmLayout:
        """The layout of the tokenizer's directory."""
        return self._server.prompts.layout

    async def try_out(self, end: float) -> None:
        """Score a plain text; raises `RequestFailed` with status 400 where that cannot work.

        A server that tells its tokens must have the very tokens of the prompt built here; one that
        does not is judged by their number alone.
        """
        round_ = ProblemRound("How many?", ())
        path = ("First, 1 + 1 = 2.", "The answer is 2.")
        prompt = self._server.prompts.build(round_.question, path, ())
        await self._ask(round_, path, prompt, end)
        body = {
            "model": self.model,
            "messages": conversation(self.layout, round_.question, path, ()),
            "add_generation_prompt": False,
        }
        read = _tokens_reader([int(number) for number in prompt.ids])
        try:
            await self._server.post(_TOKENIZE, (), lambda _: body, read, end)
        except RequestFailed as failure:
            if failure.status not in (403, 404, 405, 501):
                raise

    async def score(self, round_: ProblemRound, end: float) -> None:
        """Give every path of a round its values or a reason."""
        await self._server.score(round_, self._ask, end, text=self._server.prompts.harmless)

    async def _ask(
        self, round_: ProblemRound, path: Steps, prompt: ScoringPrompt, end: float
    ) -> list[float]:
        prompts = self._server.prompts
        question = prompts.harmless(round_.question)
        steps = [prompts.harmless(step) for step in path]

        def body(images: Images) -> dict[str, Any]:
            return {
                "model": self.model,
                "task": "token_classify",
                "use_activation": True,
                "encoding_format": "base64",
                "embed_dtype": "float32",
                "endianness": "little",
                "add_generation_prompt": False,
                "messages": conversation(prompts.layout, question, steps, images),
                **self._server.salt,
            }

        read = _rows_reader(len(prompt.ids))
        rows = await self._server.post(_POOLING, round_.images, body, read, end)
        return [rows[place - len(prompt.ids)] for place in prompt.read_positions]


def conversation(
    layout: PrmLayout, question: str, steps: Sequence[str], images: Images
) -> list[dict[str, Any]]:
    """Return the chat messages of a path.

    The uuid of an image, which the server trusts, is the digest of its pixels.
    What a chat template writes after an image is taken to be the layout's `after_image`; the count
    of tokens tells when it is not.
    """
    before, between, after = layout.first_turn_parts()
    text = between + question + after + steps[0]
    parts = [
        {"type": "image_url", "image_url": url and {"url": url}, "uuid": digest}
        for digest, url in images
    ]
    first: list[dict[str, Any]] = [{"type": "text", "text": before}, *parts] if images else []
    first.append({"type": "text", "text": text if images else before + text})
    plus = {"role": "assistant", "content": layout.plus_word}
    messages: list[dict[str, Any]] = []
    if layout.system_prompt is not None:
        messages.append({"role": "system", "content": layout.system_prompt})
    messages += [{"role": "user", "content": first}, plus]
    for step in steps[1:]:
        messages += [{"role": "user", "content": [{"type": "text", "text": step}]}, plus]
    return messages


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
