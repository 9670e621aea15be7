"""`vprm-search proxy`: an OpenAI-compatible server whose every chat completion is a search."""

from __future__ import annotations

from dataclasses import asdict, fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import BaseModel, ConfigDict, Field
from rich.text import Text

from vprm_search.cli import console, options
from vprm_search.errors import ConfigError, need

if TYPE_CHECKING:
    from vprm_search.guided.chat_model import GuidedChatModel

DEFAULT_NAME = "vprm-search"
_OF_POLICY = {field.name for field in fields(options.PolicyOptions)}


class ProxyModel(BaseModel):
    """What a model's name stands for: the options of `solve`, in a file."""

    model_config = ConfigDict(extra="forbid")

    policy: str = options.TINY
    base_url: str | None = None
    continuation: options.Continuation = "auto"
    temperature: float = Field(default=0.7, ge=0)
    step_tokens: int = Field(default=512, ge=1)
    scorer: str = options.TINY
    scorer_tokenizer: Path | None = None
    device: str = "auto"
    strategy: str = "auto"
    n: int = Field(default=16, ge=1)
    selector: options.SelectorName | None = None
    aggregate: str | None = None
    max_seconds: float | None = Field(default=None, gt=0)
    progress: bool = True


class ProxyFile(BaseModel):
    """A file of `vprm-search proxy`: models by name, and the limits of one request."""

    model_config = ConfigDict(extra="forbid")

    models: dict[str, ProxyModel] = Field(min_length=1)
    limits: dict[str, Any] = Field(default_factory=dict)


def proxy(
    *,
    config: Annotated[
        Path | None,
        typer.Option(help="YAML file of models by name; without it one, of the options below."),
    ] = None,
    policy: options.PolicyOptions,
    scorer: options.ScorerOptions,
    strategy: Annotated[str, typer.Option(help="A strategy of compare.")] = "auto",
    n: Annotated[int, typer.Option("--n", min=1, help="About how many solutions to try.")] = 16,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8080,
    api_key: Annotated[
        list[str] | None,
        typer.Option(envvar="VPRM_SEARCH_PROXY_KEY", help="A key that is let in; repeatable."),
    ] = None,
) -> None:
    """Serve searches to OpenAI clients: /v1/chat/completions and /v1/models."""
    for package in ("starlette", "uvicorn", "yaml"):
        need(package, "server")
    import uvicorn

    from vprm_search.servers.openai_server import OpenAILimits, create_openai_app

    if config is None:
        one = {**asdict(policy), **asdict(scorer), "strategy": strategy, "n": n}
        del one["scorer_api_key"]  # of the process, not of a model
        file = ProxyFile(models={DEFAULT_NAME: options.checked(ProxyModel, one)})
    else:
        file = read_proxy_file(config)
    app = create_openai_app(
        load_models(file, scorer.scorer_api_key),
        limits=options.checked(OpenAILimits, file.limits),
        keys=tuple(api_key or ()),
    )
    where = f"{console.address(host, port)}/v1"
    console.ERR.print(Text(f"{', '.join(file.models)} at {where}"), soft_wrap=True)
    uvicorn.run(app, host=host, port=port, log_level="warning")


def read_proxy_file(path: Path) -> ProxyFile:
    """Read a file of models. Raises `ConfigError` that names what is wrong in it."""
    import yaml

    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    if not isinstance(given, dict):
        raise ConfigError(f"{path} holds no mapping; it begins with 'models:'")
    try:
        return options.checked(ProxyFile, given)
    except ConfigError as error:
        raise ConfigError(f"{path}: {str(error).removeprefix('--')}") from error


def load_models(file: ProxyFile, scorer_api_key: str | None) -> dict[str, GuidedChatModel]:
    """Return the models of a file; those that name the same reward model share it."""
    from vprm_search.budget import Budget
    from vprm_search.compare.entrants import ENTRANTS
    from vprm_search.guided.chat_model import GuidedChatModel

    @cache
    def scorer(name: str, device: str, tokenizer: Path | None) -> Any:
        return options.load_scorer(name, device, api_key=scorer_api_key, tokenizer=tokenizer)

    models = {}
    for name, asked in file.models.items():
        if asked.strategy not in ENTRANTS:
            raise ConfigError(
                f"{name}: strategy {asked.strategy!r} is not known; one of {', '.join(ENTRANTS)}"
            )
        proposes = asked.model_dump(include=_OF_POLICY)
        models[name] = GuidedChatModel(
            policy=options.load_policy(**options.PolicyOptions(**proposes).arguments),
            scorer=scorer(asked.scorer, asked.device, asked.scorer_tokenizer),
            strategy=ENTRANTS[asked.strategy].make(asked.n),
            selector=options.selector_of(asked.selector, asked.aggregate),
            budget=Budget(seconds=asked.max_seconds),
            progress=asked.progress,
        )
    return models
