"""The route through our own plugin: one request carries a problem and all its paths."""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Sequence
from typing import Literal

from pydantic import ValidationError

from vprm_search.errors import ModelChangedError
from vprm_search.scoring.prompt.layout import PrmLayout
from vprm_search.scoring.prompt.text_encoder import without_surrogates
from vprm_search.scoring.reasons import BAD_REPLY
from vprm_search.scoring.vllm.calls import ServerCalls
from vprm_search.scoring.vllm.failures import RequestFailed
from vprm_search.scoring.vllm.images import ImageLedger, Shipment
from vprm_search.scoring.vllm.reply import (
    CONTRACT_VERSION,
    PluginScores,
    ServerDescription,
    read_description,
    scores_reader,
)
from vprm_search.scoring.vllm.round import Path, ProblemRound, StepMemory
from vprm_search.scoring.vllm.together import all_done

POOLING = "/pooling"
_SHIPMENTS = 4
_SPLIT_STATUS = frozenset({400, 413, 422, 500})
"""Replies that one path of many may have caused: the others are asked without it."""


class PluginRoute:
    """Scores rounds with a server that runs the `vprm-search` plugin.

    The server leaves out the rows that lie inside its prefix cache. Those are filled from other
    paths of the round and from earlier rounds; what is still open is asked once more, without the
    cache and under a fresh salt.
    """

    name: Literal["plugin"] = "plugin"

    def __init__(
        self,
        calls: ServerCalls,
        model: str,
        description: ServerDescription,
        *,
        cache_salt: str | None,
        use_prefix_cache: bool,
    ) -> None:
        self.description = description
        self.identity = description.identity
        self.model = model
        self._calls = calls
        self._salt = cache_salt
        self._cached = use_prefix_cache
        self._ledger = ImageLedger()
        self._memory = StepMemory(calls.options.remembered_steps)

    @property
    def layout(self) -> PrmLayout | None:
        """The server's prompt layout."""
        try:
            return PrmLayout.model_validate(self.description.layout)
        except ValidationError:  # a newer server's; it builds the prompts, so scores are right
            return None

    async def score(self, round_: ProblemRound, end: float) -> None:
        """Score all paths of a round; `end` is a time of `time.monotonic`.

        Raises `ModelChangedError` when another model answers.
        """
        await self._ask(round_, list(round_.paths), end, cached=self._cached)
        round_.spread()
        filled = self._memory.fill(self.identity, round_)
        self._calls.meter.add(steps_filled=filled)
        again = round_.left_out()
        if again.paths:
            self._calls.meter.add(paths_reasked=len(again.paths))
            await self._ask(again, list(again.paths), end, cached=False)
            round_.adopt(again)
        self._memory.remember(self.identity, round_)

    async def _ask(
        self, round_: ProblemRound, paths: list[Path], end: float, *, cached: bool
    ) -> None:
        salt = self._salt if cached or not self._cached else f"once-{secrets.token_hex(16)}"
        size = self.description.limits.get("max_paths", len(paths)) or 1
        parts = [paths[start : start + size] for start in range(0, len(paths), size)]
        await all_done(self._part(round_, part, end, salt, cached) for part in parts)

    async def _part(
        self,
        round_: ProblemRound,
        paths: list[Path],
        end: float,
        salt: str | None,
        cached: bool,
        attempts: int | None = None,
    ) -> None:
        """Ask for some paths in one request, and for halves of them when it is refused."""
        try:
            reply = await self._request(round_, paths, end, salt, cached, attempts)
        except RequestFailed as failure:
            if len(paths) == 1 or failure.status not in _SPLIT_STATUS:
                round_.fail(paths, failure.reason)
                return
            self._calls.meter.add(splits=1)
            half = len(paths) // 2
            tries = 1 if failure.status == 500 else attempts  # it was tried often enough
            await all_done(
                self._part(round_, part, end, salt, cached, tries)
                for part in (paths[:half], paths[half:])
            )
        else:
            self._take(round_, paths, reply)

    async def _request(
        self,
        round_: ProblemRound,
        paths: Sequence[Path],
        end: float,
        salt: str | None,
        cached: bool,
        attempts: int | None,
    ) -> PluginScores:
        """Send one request, with the images the server lacks. Raises `RequestFailed`."""
        digests = [image.digest for image in round_.images]
        read = scores_reader(paths, digests)
        moving = self._calls.connection.state.images_moving
        for number in range(1, _SHIPMENTS + 1):
            everything = number > 2  # replicas behind one address hold different images
            async with self._ledger.shipment(digests, moving, everything=everything) as shipment:
                body = self._body(round_, paths, shipment, salt, cached)
                reply = await self._calls.post(POOLING, body, read, end, attempts=attempts)
                self._ledger.arrived(shipment)
                if isinstance(reply, PluginScores):
                    return reply
                self._ledger.missing(reply.digests, shipment)
        raise RequestFailed(BAD_REPLY, "the server asks for images that it was just sent")

    def _body(
        self,
        round_: ProblemRound,
        paths: Sequence[Path],
        shipment: Shipment,
        salt: str | None,
        cached: bool,
    ) -> bytes:
        sent = {image.digest: image.png for image in round_.images}
        sent = {digest: png for digest, png in sent.items() if digest in shipment.digests}
        again = sum(self._ledger.sent_before(digest) for digest in sent)
        self._calls.meter.add(
            images_sent=len(sent),
            images_resent=again,
            image_bytes_sent=sum(map(len, sent.values())),
        )
        data = {
            "version": CONTRACT_VERSION,
            "question": without_surrogates(round_.question),
            "images": [image.digest for image in round_.images],
            "image_data": {d: base64.b64encode(png).decode() for d, png in sent.items()},
            "paths": [[without_surrogates(step) for step in path] for path in paths],
            "cache_salt": salt,
            "use_prefix_cache": cached,
        }
        return plugin_body(self.model, data)

    def _take(self, round_: ProblemRound, paths: Sequence[Path], reply: PluginScores) -> None:
        if reply.identity != self.identity:
            raise ModelChangedError(
                f"the server at {self._calls.connection.address} now serves the model "
                f"{reply.identity}, this scorer began with {self.identity}; make a new scorer and "
                "start the search again, scores of two models must not be mixed"
            )
        for number, path in enumerate(paths):
            state = round_.paths[path]
            for place, value in enumerate(reply.scores[number]):
                if state.values[place] is None and value is not None:
                    state.values[place] = float(value)
            state.prefix_tokens = reply.prefix_tokens
            state.step_tokens = reply.step_tokens[number]
            if number in reply.failures:
                state.reason = reply.failures[number]


async def describe(calls: ServerCalls, model: str, end: float) -> ServerDescription:
    """Ask the plugin for its model. Raises `RequestFailed`: 4xx where there is no plugin."""
    body = plugin_body(model, {"version": CONTRACT_VERSION, "describe": True})
    return await calls.post(POOLING, body, read_description, end)


def plugin_body(model: str, data: dict[str, object]) -> bytes:
    """Return the body of a request to the plugin."""
    return json.dumps({"model": model, "task": "plugin", "data": data}).encode()
