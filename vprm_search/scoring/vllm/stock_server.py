"""What the routes to a server without our plugin share: paths, images, the same model."""

from __future__ import annotations

import base64
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from vprm_search.errors import ConfigError, InputError, ModelChangedError
from vprm_search.ids import digest
from vprm_search.scoring.prompt.layout import ScoringPrompt
from vprm_search.scoring.reasons import BAD_INPUT, REFUSED, TOO_LONG
from vprm_search.scoring.vllm.calls import ServerCalls, T
from vprm_search.scoring.vllm.failures import RequestFailed
from vprm_search.scoring.vllm.images import ImageLedger
from vprm_search.scoring.vllm.round import Path, ProblemRound
from vprm_search.scoring.vllm.served_model import ServedModel, served_model
from vprm_search.scoring.vllm.stock_prompt import StockPrompts
from vprm_search.scoring.vllm.together import all_done
from vprm_search.types import ImageData

Ask = Callable[[ProblemRound, Path, ScoringPrompt, float], Awaitable[list[float]]]
"""Scores one path: the round, the path, its prompt, the time to end; raises `RequestFailed`."""

Images = Sequence[tuple[str, str | None]]
"""The images of a request: digest, and a data URL, or None for one that the server holds."""

_SHIPMENTS = 4


class StockServer:
    """A stock vLLM server and one model on it, seen through prompts that are built here.

    Its `identity` covers what can be told from outside: the address, the served name, where the
    weights were loaded from, the tokenizer, the layout and the image rule.
    """

    def __init__(
        self, calls: ServerCalls, served: ServedModel, prompts: StockPrompts, cache_salt: str | None
    ) -> None:
        self.calls = calls
        self.served = served
        self.prompts = prompts
        self.salt = {} if cache_salt is None else {"cache_salt": cache_salt}
        names = (calls.connection.address, served.name, served.root)
        self.identity = digest("vllm-stock", prompts.identity, *names).hex()
        self._ledger = ImageLedger()
        self._losses = calls.losses

    async def score(
        self, round_: ProblemRound, ask: Ask, end: float, *, text: Callable[[str], str] = str
    ) -> None:
        """Score all paths of a round by `ask`; a path that fails does not touch the others.

        `text` is applied to the question and to every step before prompts are built. Raises
        `ModelChangedError` when the server came back with another model.
        """
        await all_done(self._score_path(round_, path, ask, end, text) for path in round_.paths)

    async def _score_path(
        self,
        round_: ProblemRound,
        path: Path,
        ask: Ask,
        end: float,
        text: Callable[[str], str],
    ) -> None:
        try:
            prompt = self._prompt(text(round_.question), tuple(map(text, path)), round_.images)
            values = await ask(round_, path, prompt, end)
            await self._same_model(end)
        except RequestFailed as failure:
            round_.fail([path], failure.reason)
            return
        state = round_.paths[path]
        state.values[:] = values
        state.prefix_tokens, state.step_tokens = prompt.prefix_tokens, prompt.step_tokens

    def _prompt(self, question: str, path: Path, images: tuple[ImageData, ...]) -> ScoringPrompt:
        try:
            prompt = self.prompts.build(question, path, images)
        except InputError as error:
            raise RequestFailed(BAD_INPUT, str(error)) from error
        limit = self.served.max_model_len
        if limit is not None and len(prompt.ids) > limit:
            raise RequestFailed(
                TOO_LONG,
                f"problem and solution take {len(prompt.ids)} tokens, the server's limit is "
                f"{limit}; use fewer tiles, or merge or shorten the steps",
            )
        return prompt

    async def _same_model(self, end: float) -> None:
        """Compare the server's model again if the server was away since the last time."""
        losses = self.calls.losses
        if losses == self._losses:
            return
        try:
            served = await served_model(self.calls, self.served.name, end)
        except ConfigError as error:
            raise ModelChangedError(f"the server came back without its model: {error}") from error
        if served != self.served:
            raise ModelChangedError(
                f"the server at {self.calls.connection.address} came back with {served}, before it "
                f"was {self.served}; make a new scorer and start the search again"
            )
        self._losses = losses

    async def post(
        self,
        path: str,
        images: tuple[ImageData, ...],
        body: Callable[[Images], dict[str, Any]],
        read: Callable[[bytes], T],
        end: float,
    ) -> T:
        """POST `body(images)`; images the server holds are named by their digests only.

        Raises `RequestFailed`.
        """
        digests = [image.digest for image in images]
        moving = self.calls.connection.state.images_moving
        for number in range(1, _SHIPMENTS + 1):
            everything = number > 2  # replicas behind one address hold different images
            async with self._ledger.shipment(digests, moving, everything=everything) as shipment:
                shown = [(i.digest, self._url(i, i.digest in shipment.digests)) for i in images]
                data = json.dumps(body(shown)).encode()
                try:
                    reply = await self.calls.post(path, data, read, end)
                except RequestFailed as failure:
                    if failure.status != 400 or "ache miss" not in failure.reason:
                        raise
                    self._ledger.missing(digests, shipment)
                else:
                    self._ledger.arrived(shipment)
                    return reply
        raise RequestFailed(REFUSED, "the server asks for images that it was just sent")

    def _url(self, image: ImageData, with_pixels: bool) -> str | None:
        if not with_pixels:
            return None
        self.calls.meter.add(
            images_sent=1,
            images_resent=int(self._ledger.sent_before(image.digest)),
            image_bytes_sent=len(image.png),
        )
        return "data:image/png;base64," + base64.b64encode(image.png).decode()
