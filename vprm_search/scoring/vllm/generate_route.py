"""The route through a stock generate server: one request per step, tokens in, logprobs out."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from vprm_search.scoring.prompt.layout import PrmLayout, ScoringPrompt
from vprm_search.scoring.reasons import BAD_INPUT
from vprm_search.scoring.vllm.calls import ServerCalls
from vprm_search.scoring.vllm.failures import RequestFailed, bad_reply
from vprm_search.scoring.vllm.reply import read_json
from vprm_search.scoring.vllm.round import Path as Steps
from vprm_search.scoring.vllm.round import ProblemRound, StepMemory
from vprm_search.scoring.vllm.served_model import ServedModel
from vprm_search.scoring.vllm.stock_prompt import StockPrompts, folded
from vprm_search.scoring.vllm.stock_server import Images, StockServer
from vprm_search.scoring.vllm.together import all_done

_GENERATE = "/inference/v1/generate"


class GenerateRoute:
    """Scores steps by the first token a server would write after them.

    The server needs `--enable-scale-out`. Prompts are token ids, so no text can become a control
    token, and the tokens the server used come back and are compared. The logprobs of '+' and '-'
    are asked for by id, with a third id beside them: vLLM 0.32 drops the last one of the list.
    A server that answers other requests with logprobs at the same time may mix them up (vLLM's V1
    runner): give the scorer a server of its own. Steps scored before are not asked again.
    """

    name: Literal["generate"] = "generate"

    def __init__(
        self, calls: ServerCalls, served: ServedModel, directory: Path, cache_salt: str | None
    ) -> None:
        self._server = StockServer(calls, served, StockPrompts(directory), cache_salt)
        self._memory = StepMemory(calls.options.remembered_steps)
        builder = self._server.prompts.builder
        self._plus, self._minus = builder.plus_id, builder.minus_id
        other = builder.encoder.control_id(self.layout.im_end)
        self._asked = [self._plus, self._minus, other]

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
        """Score a plain text; raises `RequestFailed` where that cannot work."""
        round_ = ProblemRound("How many?", ())
        path = ("First, 1 + 1 = 2.",)
        round_.want(path)
        await self._ask(round_, path, self._server.prompts.build(round_.question, path, ()), end)

    async def score(self, round_: ProblemRound, end: float) -> None:
        """Give every path of a round its values or a reason."""
        filled = self._memory.fill(self.identity, round_)
        self._server.calls.meter.add(steps_filled=filled)
        try:
            await self._server.score(round_, self._ask, end)
        finally:
            self._memory.remember(self.identity, round_)

    async def _ask(
        self, round_: ProblemRound, path: Steps, prompt: ScoringPrompt, end: float
    ) -> list[float]:
        values = round_.paths[path].values

        async def fill(place: int) -> None:
            values[place] = await self._step(round_, prompt, prompt.read_positions[place], end)

        await all_done(fill(place) for place, value in enumerate(values) if value is None)
        return [value for value in values if value is not None]

    async def _step(
        self, round_: ProblemRound, prompt: ScoringPrompt, read: int, end: float
    ) -> float:
        ids = folded(prompt, read + 1)

        def body(images: Images) -> dict[str, Any]:
            # the address stands beside the type here, not in an object as in a chat
            parts = [{"type": "image_url", "url": url, "uuid": digest} for digest, url in images]
            return {
                "model": self.model,
                "token_ids": ids,
                **({"content_parts": parts} if parts else {}),
                "return_token_ids": True,
                "sampling_params": {
                    "max_tokens": 1,
                    "temperature": 0.0,
                    "logprobs": len(self._asked),
                    "logprob_token_ids": self._asked,
                    "detokenize": False,
                },
                **self._server.salt,
            }

        reader = self._reader(list(prompt.ids[: read + 1]))
        return await self._server.post(_GENERATE, round_.images, body, reader, end)

    def _reader(self, ids: list[int]) -> Callable[[bytes], float]:
        def read(body: bytes) -> float:
            reply = read_json(body)
            try:
                (choice,) = reply["choices"]
                (place,) = choice["logprobs"]["content"]
                rows = [place, *place["top_logprobs"]]
                found = {row["token_id"]: row["logprob"] for row in rows}
            except (KeyError, TypeError, ValueError):
                raise bad_reply("the reply holds no logprobs of one token") from None
            if reply.get("prompt_token_ids") != ids:
                raise RequestFailed(
                    BAD_INPUT,
                    f"the server did not use the {len(ids)} tokens it should have: it expands "
                    "images in another way than this checkpoint's files say",
                    status=400,
                )
            return _probability(found.get(self._plus), found.get(self._minus))

        return read


def _probability(plus: Any, minus: Any) -> float:
    """Return P('+') from the logprobs of '+' and '-': a softmax over the two."""
    for value in (plus, minus):
        if type(value) not in (int, float) or not math.isfinite(value):
            raise bad_reply("the reply lacks a finite logprob of '+' or '-'")
    return 1.0 / (1.0 + math.exp(min(minus - plus, 700.0)))
