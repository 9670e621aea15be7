"""The models a command names: `tiny`, a folder, or a chat model behind a provider's name."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vprm_search.errors import ConfigError, MissingDependencyError, PolicyError

if TYPE_CHECKING:
    from vprm_search.types import Policy, StepScorer

TINY = "tiny"
VLLM = "vllm:"
Continuation = Literal["auto", "prefill", "instruct"]


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
    if name.startswith(VLLM):
        from vprm_search.scoring.vllm_scorer import VllmScorer

        return VllmScorer(name.removeprefix(VLLM), api_key=api_key, tokenizer=tokenizer)
    if tokenizer is not None:
        raise ConfigError("--scorer-tokenizer is for --scorer vllm:URL only")
    _need("torch", "local")
    _need("transformers", "local")
    from vprm_search.scoring.transformers_scorer import TransformersScorer
    from vprm_search.tiny.weights import weights_path

    path = weights_path("prm") if name == TINY else Path(name)
    _silence_loading()
    return TransformersScorer.from_pretrained(path, device=device)


def load_policy(
    name: str,
    *,
    base_url: str | None = None,
    temperature: float = 0.7,
    max_tokens_per_step: int = 512,
    continuation: Continuation = "auto",
) -> Policy:
    """Return the policy `name`: "tiny", "openai:MODEL", or another "PROVIDER:MODEL".

    Raises `ConfigError` for a name of another form, `MissingDependencyError` without the
    provider's package, and `PolicyError` when the model cannot be set up (no key, for example).
    """
    from vprm_search.policy.chat_model_policy import ChatModelPolicy

    model = _chat_model(name, base_url, temperature)
    return ChatModelPolicy(
        model, max_tokens_per_step=max_tokens_per_step, continuation=continuation
    )


def _chat_model(name: str, base_url: str | None, temperature: float) -> Any:
    if name == TINY:
        if base_url:
            raise ConfigError("--base-url is for a model on a server, not for --policy tiny")
        _need("torch", "local")
        _silence_loading()
        from vprm_search.tiny.chat_model import TinyChatModel

        return TinyChatModel(temperature=temperature)
    provider, colon, model = name.partition(":")
    if not (provider and colon and model):
        raise ConfigError(
            f"policy {name!r} is not known; use 'tiny', 'openai:MODEL' or 'PROVIDER:MODEL'"
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
        _need("langchain_openai", "openai")
        from langchain_openai import ChatOpenAI

        if "base_url" in options and not os.environ.get("OPENAI_API_KEY"):
            options["api_key"] = "none"  # a server of one's own usually asks for no key
        return ChatOpenAI(model=model, max_retries=0, **options)
    _need("langchain", "agents")
    from langchain.chat_models import init_chat_model

    return init_chat_model(model, model_provider=provider, **options)


def _need(package: str, extra: str) -> None:
    try:
        importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise MissingDependencyError(package, extra) from error


def _silence_loading() -> None:
    """Switch off the loading bars of transformers."""
    logging = importlib.import_module("transformers.utils.logging")
    logging.disable_progress_bar()
