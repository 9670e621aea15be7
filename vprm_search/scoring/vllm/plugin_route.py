"""The route through our own plugin: one request carries a problem and all its paths."""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ValidationError

from vprm_search.chat.failures import one_line
from vprm_search.errors import ModelChangedError
from vprm_search.recent import Recent
from vprm_search.scoring.prompt.layout import PrmLayout
from vprm_search.scoring.prompt.text_encoder import without_surrogates
from vprm_search.scoring.reasons import BAD_INPUT, NOT_FINITE, OUT_OF_MEMORY, TOO_LONG
from vprm_search.scoring.score_cache import step_keys
from vprm_search.scoring.vllm.contract import (
    VERSION,
    DescribeBody,
    Description,
    MissingImagesReply,
    ScoresReply,
    ScoringBody,
    first_problem,
)
from vprm_search.scoring.vllm.round import (
    ImageShipping,
    ImagesMissing,
    Path,
    ProblemRound,
    all_done,
)
from vprm_search.scoring.vllm.transport import (
    RequestFailed,
    ServerTransport,
    bad_reply,
    read_json,
)
from vprm_search.types import Problem, ScoreRequest

M = TypeVar("M", bound=BaseModel)

_POOLING = "/pooling"
_SPLIT_STATUS = frozenset({400, 413, 422, 500})
"""Replies that one path of many may have caused: the others are asked without it."""
_PATH_REASONS = frozenset({TOO_LONG, BAD_INPUT, NOT_FINITE, OUT_OF_MEMORY})


class PluginRoute:
    """Scores rounds with a server that runs the `vprm-search` plugin.

    The server leaves out the rows that lie inside its prefix cache. Those are filled from other
    paths of the round and from earlier rounds; what is still open is asked once more, without the
    cache and under a fresh salt.

    Args:
        transport: to the server.
        model: served name.
        description: what the server said of itself, see `describe`.
        cache_salt: keeps its prefix cache apart from other users', None to share.
        use_prefix_cache: False computes every row of every request.
    """

    name: Literal["plugin"] = "plugin"

    def __init__(
        self,
        transport: ServerTransport,
        model: str,
        description: Description,
        *,
        cache_salt: str | None,
        use_prefix_cache: bool,
    ) -> None:
        self.description = description
        self.identity = description.identity
        self.model = model
        self._transport = transport
        self._meter = transport.meter
        self._salt = cache_salt
        self._cached = use_prefix_cache
        self._images = ImageShipping(transport)
        self._memory = StepMemory(transport.options.remembered_steps)

    @property
    def layout(self) -> PrmLayout | None:
        """The server's prompt layout, None for a kind this version does not know."""
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
        self._meter.add(steps_filled=filled)
        again = round_.left_out()
        if again.paths:
            self._meter.add(paths_reasked=len(again.paths))
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
            self._meter.add(splits=1)
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
    ) -> ScoresReply:
        """Send one request, with the images the server lacks. Raises `RequestFailed`."""
        pixels = {image.digest: image.png for image in round_.images}
        read = scores_reader(paths, list(pixels))

        async def ask(digests: frozenset[str]) -> ScoresReply:
            body = ScoringBody.model_construct(  # the server is the one that refuses
                version=VERSION,
                question=without_surrogates(round_.question),
                images=[image.digest for image in round_.images],
                image_data={d: base64.b64encode(pixels[d]).decode() for d in digests},
                paths=[[without_surrogates(step) for step in path] for path in paths],
                cache_salt=salt,
                use_prefix_cache=cached,
            )
            data = _request_body(self.model, body)
            return await self._transport.post(_POOLING, data, read, end, attempts=attempts)

        return await self._images.deliver(round_.images, ask)

    def _take(self, round_: ProblemRound, paths: Sequence[Path], reply: ScoresReply) -> None:
        if reply.identity != self.identity:
            raise ModelChangedError(
                f"the server at {self._transport.address} now serves the model {reply.identity}, "
                f"this scorer began with {self.identity}; make a new scorer and start the search "
                "again, scores of two models must not be mixed"
            )
        for number, path in enumerate(paths):
            state = round_.paths[path]
            for place, value in enumerate(reply.scores[number]):
                if state.values[place] is None:
                    state.values[place] = value
            state.prefix_tokens = reply.prefix_tokens
            state.step_tokens = tuple(reply.step_tokens[number])
            if (reason := reply.failures.get(str(number))) is not None:
                known = reason.split(":", 1)[0] in _PATH_REASONS
                state.reason = one_line(reason if known else f"{BAD_INPUT}: {reason}")


class StepMemory:
    """Remembers single steps, to fill the rows that a server's prefix cache leaves out.

    A search sends each path again with one more step; the server has the old steps in its cache
    and does not compute their rows, but their scores are known here.
    """

    def __init__(self, entries: int) -> None:
        self._known: Recent[str, float] = Recent(entries)

    def remember(self, identity: str, round_: ProblemRound) -> None:
        """Keep all values of a round."""
        for path, state in round_.paths.items():
            if any(value is not None for value in state.values):
                keys = self._keys(identity, round_, path)
                for key, value in zip(keys, state.values, strict=True):
                    if value is not None:
                        self._known.put(key, value)

    def fill(self, identity: str, round_: ProblemRound) -> int:
        """Fill missing values of the open paths; return how many."""
        filled = 0
        for path in round_.open_paths():
            values = round_.paths[path].values
            for place, key in enumerate(self._keys(identity, round_, path)):
                known = self._known.get(key)
                if values[place] is None and known is not None:
                    values[place] = known
                    filled += 1
        return filled

    def _keys(self, identity: str, round_: ProblemRound, path: Sequence[str]) -> list[str]:
        problem = Problem(round_.question, tuple(i.digest for i in round_.images))
        return step_keys(identity, ScoreRequest(problem, tuple(path)))


async def describe(transport: ServerTransport, model: str, end: float) -> Description:
    """Ask the plugin for its model. Raises `RequestFailed`: 4xx where there is no plugin."""

    def read(reply: bytes) -> Description:
        return _checked(Description, _plugin_data(reply))

    body = _request_body(model, DescribeBody(version=VERSION, describe=True))
    return await transport.post(_POOLING, body, read, end)


def scores_reader(
    paths: Sequence[Sequence[str]], images: Sequence[str]
) -> Callable[[bytes], ScoresReply]:
    """Return the reader of the reply to a request for `paths` over `images` (digests).

    It raises `RequestFailed` unless there is one score list per path and one score per step, the
    token counts fit, and failures and missing images are of those that were asked for; and
    `ImagesMissing` when the server lacks some.
    """
    counts = [len(path) for path in paths]

    def read(body: bytes) -> ScoresReply:
        data = _plugin_data(body)
        if "missing_images" in data:
            missing = _checked(MissingImagesReply, data).missing_images
            if not set(missing) <= set(images):
                raise bad_reply(f"the server misses images that were not named: {missing!r}")
            raise ImagesMissing(missing)
        reply = _checked(ScoresReply, data)
        for name, rows in (("scores", reply.scores), ("step_tokens", reply.step_tokens)):
            if (found := [len(row) for row in rows]) != counts:
                raise bad_reply(f"{name!r} has rows of {found[:20]}, asked were {counts[:20]}")
        if strangers := [key for key in reply.failures if int(key) >= len(counts)]:
            raise bad_reply(f"'failures' names path {strangers[0]} of {len(counts)}")
        return reply

    return read


def _request_body(model: str, data: BaseModel) -> bytes:
    return json.dumps({"model": model, "task": "plugin", "data": data.model_dump()}).encode()


def _plugin_data(body: bytes) -> dict[str, Any]:
    """Return a reply's `data` if it is of this version. Raises `RequestFailed`."""
    reply = read_json(body)
    data = reply.get("data") if isinstance(reply, dict) else None
    if not isinstance(data, dict):
        raise bad_reply("the reply has no object 'data'")
    version = data.get("version")
    if type(version) is not int:
        raise bad_reply("the reply does not name its version")
    if version != VERSION:
        raise bad_reply(
            f"the server speaks version {version} of the scoring contract, this client version "
            f"{VERSION}; install matching releases on both sides",
            again=False,
        )
    return data


def _checked(kind: type[M], data: dict[str, Any]) -> M:
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise bad_reply(first_problem(error)) from None
