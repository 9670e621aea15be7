"""An MCP server: `verify_solution` and `solve` as tools, on the official SDK (1.x and 2.x).

Pictures come as data and are opened by nobody but the package's own decoder: a path or an address
is refused. A tool that cannot do what it is asked says why in words (`ToolError`), so that the
model that called it can ask better.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict  # pydantic cannot show typing's before Python 3.12

from vprm_search.aggregate import path_score
from vprm_search.budget import Budget
from vprm_search.compare.entrants import ENTRANTS
from vprm_search.errors import ConfigError, InputError, VprmError
from vprm_search.graph.run import arun_search
from vprm_search.images.normalise import image_from_base64, image_from_data_uri
from vprm_search.scoring.solution import score_solution
from vprm_search.servers.access import AccessMiddleware, Tenants

try:  # 2.x
    from mcp.server.mcpserver import Context, MCPServer
    from mcp.server.mcpserver.exceptions import ToolError
    from mcp.types import ToolAnnotations

    _BODY_LIMIT_OF_APP = True
except ImportError:  # 1.x
    from mcp.server.fastmcp import Context
    from mcp.server.fastmcp import FastMCP as MCPServer
    from mcp.server.fastmcp.exceptions import ToolError
    from mcp.types import ToolAnnotations

    _BODY_LIMIT_OF_APP = False

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel

    from vprm_search.types import ImageData, Policy, StepScorer

STRATEGIES = ("auto", "best-of-n", "beam", "dvts", "rebase", "particles", "best-first", "mcts")
"""The strategies a client may name (`compare.entrants`)."""

_INSTRUCTIONS = (
    "Checks solutions of visual and mathematical problems step by step with a process reward "
    "model, and solves such problems by searching for the solution it trusts most."
)


class McpLimits(BaseModel):
    """What one client may ask for.

    `max_n` bounds the size of a search, `max_seconds` its time, `max_searches` how many run side
    by side (others wait), `max_images` and `max_steps` a request, `max_text_chars` its question and
    each of its steps, `max_body_bytes` a request over HTTP.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_n: int = Field(default=64, ge=1)
    max_seconds: float = Field(default=600.0, gt=0)
    max_searches: int = Field(default=4, ge=1)
    max_images: int = Field(default=16, ge=0)
    max_steps: int = Field(default=128, ge=1)
    max_text_chars: int = Field(default=50_000, ge=1)
    max_body_bytes: int = Field(default=64_000_000, ge=1)


class JudgedStep(TypedDict):
    """A step and P('+'), the probability that it is right; None where `reason` says why."""

    text: str
    p: float | None
    reason: str


class Verification(TypedDict):
    """The verdict on a solution: `score` is the mean of the steps' probabilities."""

    score: float | None
    steps: list[JudgedStep]


class Solved(TypedDict):
    """The answer that a search found, the solution it stands in, and what it cost.

    `answer` is None, and `warning` says why, where none was found; `score` is the reward model's.
    """

    answer: str | None
    solution: str
    score: float | None
    unfinished: bool
    warning: str
    ended_by: str
    candidates: int
    generated_tokens: int


_Question = Annotated[str, Field(description="The problem, as text.")]
_Images = Annotated[
    list[str],
    Field(
        description="PNG, JPEG or WEBP pictures of the problem, each as base64 or as a "
        "data:image/…;base64 URI; never a path or an address."
    ),
]
_Steps = Annotated[list[str], Field(description="The solution's steps, in order.")]


def create_mcp_server(
    policy: Policy | BaseChatModel,
    scorer: StepScorer,
    *,
    n: int = 16,
    limits: McpLimits | None = None,
    name: str = "vprm-search",
) -> Any:
    """Return an MCP server (`MCPServer`, in mcp 1.x `FastMCP`) with the two tools.

    Run it with `.run()` (stdio), or over HTTP with the app of `http_app`.

    Args:
        policy: what proposes steps, a chat model or a `Policy`.
        scorer: what gives each step P('+').
        n: size of a search whose client names none.
        limits: what a client may ask for. Default: `McpLimits()`.
        name: the server's name for clients.

    Raises:
        ConfigError: `n` is above the limit.
    """
    bounds = limits or McpLimits()
    if not 1 <= n <= bounds.max_n:
        raise ConfigError(f"n is {n}; it must be between 1 and max_n, {bounds.max_n}")
    asked = {} if _BODY_LIMIT_OF_APP else {"max_request_body_size": bounds.max_body_bytes}
    server = MCPServer(name, instructions=_INSTRUCTIONS, **asked)
    free = asyncio.Semaphore(bounds.max_searches)

    async def verify_solution(
        question: _Question, steps: _Steps, images: _Images | None = None
    ) -> Verification:
        """Give the probability that each step of a written solution is right."""
        try:
            pictures = await _pictures(images, bounds)
            _check_texts({"question": question, **_numbered(steps)}, bounds)
            if not 1 <= len(steps) <= bounds.max_steps:
                raise InputError(f"{len(steps)} steps; give 1 to {bounds.max_steps}")
            async with free:
                result = await score_solution(
                    scorer, question=question, solution=steps, images=pictures
                )
        except VprmError as error:
            raise ToolError(str(error)) from error
        values = [score.value for score in result.scores]
        judged = [
            JudgedStep(text=text, p=score.value, reason=score.reason)
            for text, score in zip(steps, result.scores, strict=True)
        ]
        return Verification(score=path_score("mean", values), steps=judged)

    async def solve(
        question: _Question,
        context: Context,
        images: _Images | None = None,
        strategy: Annotated[
            str, Field(description="How to search.", json_schema_extra={"enum": list(STRATEGIES)})
        ] = "auto",
        n: Annotated[int, Field(ge=1, description="About how many solutions to try.")] = n,
    ) -> Solved:
        """Search for the answer: candidate solutions are judged step by step, weak ones dropped."""
        try:
            if strategy not in STRATEGIES:
                raise InputError(f"strategy {strategy!r}; one of {', '.join(STRATEGIES)}")
            if not 1 <= n <= bounds.max_n:
                raise InputError(f"n is {n}; give 1 to {bounds.max_n}")
            _check_texts({"question": question}, bounds)
            pictures = await _pictures(images, bounds)
            async with free, _Progress(context) as progress:
                run = await arun_search(
                    question,
                    policy=policy,
                    scorer=scorer,
                    images=pictures,
                    strategy=ENTRANTS[strategy].make(n),
                    budget=Budget(seconds=bounds.max_seconds),
                    on_event=progress.take,
                )
        except VprmError as error:
            raise ToolError(str(error)) from error
        result = run.result
        return Solved(
            answer=result.answer,
            solution=result.text,
            score=result.score,
            unfinished=result.fallback,
            warning=result.warning,
            ended_by=result.ended_by,
            candidates=result.usage.candidates,
            generated_tokens=result.usage.generated_tokens,
        )

    inside = ToolAnnotations(readOnlyHint=True, openWorldHint=False)
    server.add_tool(verify_solution, title="Verify a solution", annotations=inside)
    server.add_tool(solve, title="Solve a problem", annotations=inside)
    return server


def http_app(server: Any, limits: McpLimits | None = None, *, keys: tuple[str, ...] = ()) -> Any:
    """Return the Starlette app of `create_mcp_server`'s server, at `/mcp`, mountable beside others.

    Args:
        server: the server.
        limits: as given to `create_mcp_server`.
        keys: keys that are let in; none: everybody is.

    Raises:
        ConfigError: a key is empty.
    """
    tenants = Tenants.unnamed(keys)
    limit = (limits or McpLimits()).max_body_bytes
    app = server.streamable_http_app(
        **({"max_request_body_size": limit} if _BODY_LIMIT_OF_APP else {})
    )
    app.add_middleware(AccessMiddleware, tenants=tenants, max_body_bytes=limit)
    return app


def _numbered(steps: list[str]) -> dict[str, str]:
    return {f"step {number}": step for number, step in enumerate(steps, start=1)}


def _check_texts(texts: Mapping[str, str], limits: McpLimits) -> None:
    for name, text in texts.items():
        if len(text) > limits.max_text_chars:
            raise InputError(
                f"{name} has {len(text)} characters; at most {limits.max_text_chars} are read"
            )
        if name == "question" and not text.strip():
            raise InputError("the question is empty")


async def _pictures(images: list[str] | None, limits: McpLimits) -> tuple[ImageData, ...]:
    """Decode the pictures, in a thread: they may be large."""
    given = images or []
    if len(given) > limits.max_images:
        raise InputError(f"{len(given)} images; at most {limits.max_images} are read")
    decoded = []
    for text in given:
        read = image_from_data_uri if text.lstrip()[:5].lower() == "data:" else image_from_base64
        decoded.append(await asyncio.to_thread(read, text.strip()))
    return tuple(decoded)


class _Progress:
    """Tells the client of each round, in order, while the search goes on."""

    def __init__(self, context: Any) -> None:
        self._context = context
        self._told: asyncio.Queue[tuple[int, str] | None] = asyncio.Queue()

    async def __aenter__(self) -> _Progress:
        self._task = asyncio.create_task(self._tell())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._told.put_nowait(None)
        await self._task

    def take(self, event: Mapping[str, Any]) -> None:
        if event["event"] == "round":
            children = sum(item["count"] for item in event["expand"])
            self._told.put_nowait((event["round"], f"round {event['round']}: {children} steps"))

    async def _tell(self) -> None:
        while (told := await self._told.get()) is not None:
            await self._context.report_progress(told[0], message=told[1])
