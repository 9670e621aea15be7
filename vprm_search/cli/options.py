"""Options that several commands share, and what they stand for."""

from __future__ import annotations

import importlib
import inspect
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_origin, get_type_hints

import typer
from pydantic import ValidationError

from vprm_search.compare.entrants import SELECTORS
from vprm_search.errors import ConfigError, MissingDependencyError, PolicyError, need
from vprm_search.search import (
    DVTS,
    MCTS,
    REBASE,
    AutoSearch,
    BeamSearch,
    BestFirst,
    BestOfN,
    Cascade,
    Lookahead,
    ParticleFilter,
    Selector,
)
from vprm_search.search.stepwise import StepwiseSearch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vprm_search.search import Strategy
    from vprm_search.types import ImageData, Policy, StepScorer

T = TypeVar("T")

StrategyName = Literal[
    "auto", "beam", "best-of-n", "dvts", "rebase", "particles", "best-first", "mcts"
]
SelectorName = Literal["weighted-vote", "best-score", "majority", "hybrid", "knockout"]
Continuation = Literal["auto", "prefill", "instruct"]

_STRATEGIES: dict[StrategyName, type[AutoSearch] | type[BestOfN] | type[StepwiseSearch]] = {
    "auto": AutoSearch,
    "beam": BeamSearch,
    "best-of-n": BestOfN,
    "dvts": DVTS,
    "rebase": REBASE,
    "particles": ParticleFilter,
    "best-first": BestFirst,
    "mcts": MCTS,
}

Images = Annotated[
    list[Path] | None,
    typer.Option(
        "--image",
        metavar="FILE",
        help="PNG, JPEG or WEBP of the problem; repeatable; none: text alone.",
    ),
]
ImageRoot = Annotated[
    Path | None,
    typer.Option("--images", help="Where paths of pictures begin; default: the file's folder."),
]
BaseUrl = Annotated[str | None, typer.Option(help="Address of an OpenAI-compatible server.")]
Device = Annotated[str, typer.Option(help="Where the reward model runs: auto, cpu, cuda, cuda:1.")]
Question = Annotated[str, typer.Option("--question", "-q", help="What is asked.")]
Split = Annotated[
    str,
    typer.Option(
        metavar="exact|auto|blank-lines|numbered|headings|lines|sentences|tokens:N",
        help="What cuts a solution into steps: exact as VisualPRM, auto by a look at the text.",
    ),
]
Seed = Annotated[int, typer.Option(help="Makes all draws.")]
MaxFailed = Annotated[
    float, typer.Option(min=0.0, max=1.0, help="Share of failed calls that a result may have.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
POLICIES = "tiny|openai:MODEL|PROVIDER:MODEL"
JUDGES = "openai:MODEL|PROVIDER:MODEL"
SCORERS = "tiny|PATH|vllm:URL"

# --- groups of options: dataclasses that a command takes as one parameter each


def takes_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that are fields of the dataclasses among its parameters.

    A field whose type is `Annotated` is an option; the others keep their defaults.
    """
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, tuple[type[Any], list[str]]] = {}
    options: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        found = {name: (hints[name], parameter.default)}
        if is_dataclass(hints[name]):
            kinds = get_type_hints(hints[name], include_extras=True)
            found = {f.name: (kinds[f.name], f.default) for f in fields(hints[name])}
            found = {own: kind for own, kind in found.items() if get_origin(kind[0]) is Annotated}
            groups[name] = (hints[name], list(found))
        for own, (kind, default) in found.items():
            option = inspect.Parameter(own, inspect.Parameter.KEYWORD_ONLY, default=default)
            options.append(option.replace(annotation=kind))

    @wraps(command)
    def run(**given: Any) -> None:
        for name, (kind, members) in groups.items():
            given[name] = kind(**{member: given.pop(member) for member in members})
        command(**given)

    kinds = {option.name: option.annotation for option in options}
    vars(run).update(__signature__=inspect.Signature(options))
    run.__annotations__ = kinds
    return run


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyOptions:
    """What proposes steps."""

    policy: Annotated[str, typer.Option(metavar=POLICIES, help="What proposes steps.")] = "tiny"
    base_url: BaseUrl = None
    continuation: Annotated[Continuation, typer.Option(help="How a partial answer goes on.")] = (
        "auto"
    )
    temperature: Annotated[float, typer.Option(min=0.0, help="Of the policy.")] = 0.7
    step_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of one step.")] = 512

    @property
    def arguments(self) -> dict[str, Any]:
        """Those of `load_policy`, as plain JSON."""
        return {
            "name": self.policy,
            "base_url": self.base_url,
            "temperature": self.temperature,
            "max_tokens_per_step": self.step_tokens,
            "continuation": self.continuation,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorerPlace:
    """Where a reward model runs."""

    scorer_api_key: Annotated[
        str | None,
        typer.Option(
            envvar="VPRM_SEARCH_API_KEY", help="Key of the server behind --scorer vllm:URL."
        ),
    ] = None
    scorer_tokenizer: Annotated[
        Path | None,
        typer.Option(help="The served checkpoint's folder, for a vLLM server without the plugin."),
    ] = None
    device: Device = "auto"

    def load(self, name: str) -> StepScorer:
        """Return the scorer `name`. Raises as `load_scorer`."""
        key, tokenizer = self.scorer_api_key, self.scorer_tokenizer
        return load_scorer(name, self.device, api_key=key, tokenizer=tokenizer)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorerOptions(ScorerPlace):
    """Which reward model, and where it runs."""

    scorer: Annotated[
        str,
        typer.Option(
            metavar=SCORERS,
            help="Reward model: the packaged one, a folder, or a vLLM server "
            "(vllm:http://HOST:PORT).",
        ),
    ] = "tiny"


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationOptions:
    """What scores are mapped by."""

    calibration: Annotated[
        Path | None, typer.Option(help="JSON of vprm-search calibrate: scores are mapped by it.")
    ] = None
    calibration_policy: Annotated[
        str | None,
        typer.Option(help="Which policy of the calibration; default: the only one there."),
    ] = None

    def around(self, scorer: StepScorer) -> StepScorer:
        """Return the scorer, wrapped in the calibration if a file is given.

        Raises `RecordError` for a damaged file, `ConfigError` for one that does not fit.
        """
        if self.calibration is None:
            if self.calibration_policy is not None:
                raise ConfigError("--calibration-policy is given without --calibration")
            return scorer
        from vprm_search.scoring.wrappers import CalibratedScorer, read_calibration

        return CalibratedScorer(
            scorer, read_calibration(self.calibration).of(self.calibration_policy)
        )


def strategy_of(
    name: StrategyName,
    given: dict[str, Any],
    settings: Sequence[str] = (),
    *,
    aggregate: str | None = None,
    lookahead: int | None = None,
    threshold: float | None = None,
) -> Strategy:
    """Return a strategy from the options given for it; `None` means not given.

    `settings` are further options as "NAME=VALUE", values in JSON ("particles=32"). `aggregate`
    names the path score that the strategy ranks by, if it ranks paths at all. `lookahead`
    judges steps by rollouts of so many steps, `threshold` makes a `Cascade`. Raises `ConfigError`
    for an option of another strategy or a value out of range.
    """
    kind: type[Any] = _STRATEGIES[name]
    options = {key: value for key, value in given.items() if value is not None}
    options |= dict(map(_setting, settings))
    if "pruning" in kind.model_fields:
        flags = {"below": "prune_below", "margin": "prune_margin"}
        rules = {rule: options.pop(flag) for rule, flag in flags.items() if flag in options}
        options |= {"pruning": rules} if rules else {}
    foreign = sorted(set(options) - set(kind.model_fields))
    if foreign:
        shown = ", ".join(f"--{key.replace('_', '-')}" for key in foreign)
        raise ConfigError(
            f"{shown} is no option of --strategy {name}; "
            f"its options are: {', '.join(kind.model_fields)}"
        )
    if issubclass(kind, StepwiseSearch) or "good_enough" in options:
        options = {"aggregate": aggregate, **options} if aggregate is not None else options
    strategy: AutoSearch | BestOfN | StepwiseSearch = checked(kind, options)
    if lookahead is None and threshold is None:
        return strategy
    if not isinstance(strategy, StepwiseSearch):
        raise ConfigError(
            f"--lookahead and --strong are not for --strategy {name}; take one that goes "
            "step by step as it is told, such as --strategy rebase"
        )
    inside = (
        strategy
        if lookahead is None
        else checked(Lookahead, {"strategy": strategy, "steps": lookahead}, {"steps": "lookahead"})
    )
    if threshold is None:
        return inside
    return checked(Cascade, {"strategy": inside, "threshold": threshold})


def _setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise ConfigError(f"--set {text!r} is not NAME=VALUE")
    try:
        return name.replace("-", "_"), json.loads(value)
    except ValueError:
        return name.replace("-", "_"), value


def selector_of(name: SelectorName | None, aggregate: str | None) -> Selector | None:
    """Return a selector, by default with its own path score; None if neither is named.

    Raises `ConfigError` for an unknown aggregation.
    """
    if name is None:
        return None if aggregate is None else selector_of("weighted-vote", aggregate)
    return checked(SELECTORS[name], {} if aggregate is None else {"aggregate": aggregate})


def checked(
    kind: Callable[..., T], options: dict[str, Any], flags: Mapping[str, str] | None = None
) -> T:
    """Make a configuration; pydantic's report becomes a one-line `ConfigError`.

    `flags` says which option of the command sets a field, where it is not the field's own name.
    """
    try:
        return kind(**options)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        name = (flags or {}).get(name, name).replace("pruning.", "prune_").replace("_", "-")
        where = f"--{name} {first['input']!r}: " if name else ""  # none: options that do not fit
        raise ConfigError(f"{where}{first['msg'].removeprefix('Value error, ')}") from error


def read_images(paths: Sequence[Path] | None) -> tuple[ImageData, ...]:
    """Read and normalise image files. Raises `ImageError`."""
    from vprm_search.images.normalise import normalise_image

    return tuple(normalise_image(path) for path in paths or ())


# --- the models a command names: `tiny`, a folder, a server, or a provider's chat model

TINY = "tiny"
VLLM = "vllm:"


def load_scorer(
    name: str,
    device: str = "auto",
    *,
    api_key: str | None = None,
    tokenizer: Path | None = None,
) -> StepScorer:
    """Return the scorer `name`: "tiny", a reward model's folder, or "vllm:URL".

    `api_key` and `tokenizer` are for a server. Raises `CheckpointError` when a folder holds no
    native InternVL reward model, `MissingDependencyError` without torch, `ConfigError` for an
    address that cannot be used.
    """
    return scorer_maker(name, device, api_key=api_key, tokenizer=tokenizer)()


def scorer_maker(
    name: str,
    device: str = "auto",
    *,
    api_key: str | None = None,
    tokenizer: str | Path | None = None,
) -> Callable[..., StepScorer]:
    """Return what makes scorers that have kept nothing, as `load_scorer`; a folder is read once.

    It takes the options of `TransformersScorer`, which a server has its own of, and `max_tiles` in
    place of the checkpoint's own, for a model that reads tiles.
    """
    if name.startswith(VLLM):
        from vprm_search.scoring.vllm_scorer import VllmScorer

        served = VllmScorer(name.removeprefix(VLLM), api_key=api_key, tokenizer=tokenizer)
        return lambda **_: served
    if tokenizer is not None:
        raise ConfigError("--scorer-tokenizer is for --scorer vllm:URL only")
    need("torch", "local")
    need("transformers", "local")
    from vprm_search.scoring.engine.checkpoint import load_checkpoint
    from vprm_search.scoring.transformers_scorer import TransformersScorer
    from vprm_search.tiny.weights import weights_path

    _silence_loading()
    checkpoint = load_checkpoint(weights_path("prm") if name == TINY else name, device=device)

    def make(*, max_tiles: int | None = None, **told: Any) -> StepScorer:
        tiled = checkpoint if max_tiles is None else checkpoint.with_tiles(max_tiles)
        return TransformersScorer(tiled, **told)

    return make


def load_policy(
    name: str,
    *,
    base_url: str | None = None,
    temperature: float = 0.7,
    max_tokens_per_step: int = 512,
    continuation: Continuation = "auto",
    split: str = "exact",
) -> Policy:
    """Return the policy `name`: "tiny", "openai:MODEL", or another "PROVIDER:MODEL".

    Raises `ConfigError` for a name of another form, `MissingDependencyError` without the
    provider's package, and `PolicyError` when the model cannot be set up (no key, for example).
    """
    from vprm_search.policy.chat_model_policy import ChatModelPolicy

    model = chat_model(name, base_url, temperature)
    return ChatModelPolicy(
        model, max_tokens_per_step=max_tokens_per_step, continuation=continuation, split=split
    )


def chat_model(name: str, base_url: str | None, temperature: float) -> Any:
    """Return the chat model `name`: "tiny", "openai:MODEL", or another "PROVIDER:MODEL".

    Raises as `load_policy`.
    """
    if name == TINY:
        if base_url:
            raise ConfigError("--base-url is for a model on a server, not for --policy tiny")
        need("torch", "local")
        _silence_loading()
        from vprm_search.tiny.chat_model import TinyChatModel, shared_sampler
        from vprm_search.tiny.weights import weights_path

        shared_sampler(weights_path("policy"))  # read now: the first answer's seconds are its own
        return TinyChatModel(temperature=temperature)
    provider, colon, model = name.partition(":")
    if not (provider and colon and model):
        raise ConfigError(
            f"chat model {name!r} is not known; use 'tiny', 'openai:MODEL' or 'PROVIDER:MODEL'"
        )
    options: dict[str, Any] = {"temperature": temperature}
    if base_url:
        options["base_url"] = base_url
    try:
        return _hosted_model(provider, model, options)
    except ImportError as error:
        raise MissingDependencyError(error.name or f"langchain-{provider}", "agents") from error
    except ConfigError:
        raise
    except Exception as error:  # every provider has its own errors for a missing key
        raise PolicyError(f"the chat model {name} cannot be set up: {error}") from error


def _hosted_model(provider: str, model: str, options: dict[str, Any]) -> Any:
    if provider == "openai":
        need("langchain_openai", "openai")
        from langchain_openai import ChatOpenAI

        if "base_url" in options and not os.environ.get("OPENAI_API_KEY"):
            options["api_key"] = "none"  # a server of one's own usually asks for no key
        return ChatOpenAI(model=model, max_retries=0, **options)
    need("langchain", "agents")
    from langchain.chat_models import init_chat_model

    return init_chat_model(model, model_provider=provider, **options)


def _silence_loading() -> None:
    """Switch off the loading bars of transformers."""
    logging = importlib.import_module("transformers.utils.logging")
    logging.disable_progress_bar()
