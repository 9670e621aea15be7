"""What a chat model can do for a search: continue a text, answer many times, draw from a seed.

LangChain has no common way to ask a model for this, so it is told from the model's class, its own
fields, and the address it talks to. A model of your own may carry the answer itself, as an
attribute `policy_capabilities`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, Literal
from urllib.parse import urlsplit

from langchain_core.language_models.chat_models import BaseChatModel

from vprm_search.chat.arguments import (
    LIMITS,
    MANY,
    SEEDS,
    is_provider,
    own_name,
    packages_of,
    takes_anything,
)

Prefill = Literal["none", "message", "server"]
Seeds = Literal["none", "call", "children"]
StopWords = Literal["any", "non_blank", "none"]
CacheMarks = Literal["none", "cache_control", "cachePoint"]


@dataclass(frozen=True, slots=True)
class ModelCapabilities:
    """What one chat model can do.

    `prefill`: how a partial answer is continued — "message" (a trailing AI message is enough),
    "server" (an OpenAI-compatible server that has to be told, as vLLM does with
    `continue_final_message`) or "none". `prefill_whitespace`: such a partial answer may end in
    white space. `many`: `n` answers in one call. `seeds`: no seed, one per call, or one per child
    (a call argument `seeds`). `stop`: which stop strings it takes. `instructions`: it follows
    instructions in the question. `max_tokens_key` and `seed_key`: its names for the limit of an
    answer (None: it has none) and for the seed. `in_process`: calls share this process, so there is
    no reason to limit them. `max_temperature`: the highest one it takes. `context_tokens`: what
    prompt and answer may have together, if known. `keep_stop_key`: the field by which a "server"
    leaves the stop string in its answer. `cache_marks`: how the end of a prompt's shared part is
    marked, where a provider remembers prompts only up to a mark. `image_urls`: pictures have to be
    OpenAI's blocks, because the client does not translate LangChain's own.
    """

    prefill: Prefill = "none"
    prefill_whitespace: bool = True
    many: bool = False
    seeds: Seeds = "none"
    stop: StopWords = "any"
    instructions: bool = True
    max_tokens_key: str | None = "max_tokens"
    in_process: bool = False
    max_temperature: float = 2.0
    context_tokens: int | None = None
    keep_stop_key: str = "include_stop_str_in_output"
    seed_key: str = "seed"
    cache_marks: CacheMarks = "none"
    image_urls: bool = False


UNKNOWN_MODEL = ModelCapabilities()
OPEN_SERVER = ModelCapabilities(prefill="server", many=True, seeds="call")
SGLANG = replace(OPEN_SERVER, keep_stop_key="no_stop_trim")
OPENAI = ModelCapabilities(many=True, seeds="call")
OPENAI_REASONING = ModelCapabilities(stop="none")
HOSTED = ModelCapabilities()
ANTHROPIC = ModelCapabilities(stop="non_blank", max_temperature=1.0, cache_marks="cache_control")
ANTHROPIC_PREFILL = replace(ANTHROPIC, prefill="message", prefill_whitespace=False)
BEDROCK = replace(HOSTED, max_temperature=1.0)

# Clients of one provider, by their package. `n` and seeds only where the provider documents them.
_BY_PACKAGE: dict[str, ModelCapabilities] = {
    "langchain_ollama": ModelCapabilities(prefill="message", seeds="call"),
    "langchain_mistralai": replace(HOSTED, seeds="call", max_temperature=1.5),
    "langchain_fireworks": replace(HOSTED, many=True),
    "langchain_together": OPENAI,
    "langchain_xai": OPENAI,
    "langchain_openrouter": replace(HOSTED, seeds="call"),
    "langchain_nvidia_ai_endpoints": replace(HOSTED, seeds="call", max_temperature=1.0),
    "langchain_cohere": replace(HOSTED, max_temperature=1.0, image_urls=True),
    "langchain_perplexity": replace(HOSTED, stop="none", image_urls=True),
    "langchain_huggingface": replace(HOSTED, image_urls=True),
    "langchain_community": replace(HOSTED, image_urls=True),
}

_OPENAI_HOSTS = ("openai.com", "azure.com")
_OPENAI_ITSELF = ("openai.com", "openai.azure.com", "cognitiveservices.azure.com")
_BY_OWNER = {"vllm": OPEN_SERVER, "sglang": SGLANG}
"""Owners in a list of models whose servers continue a partial answer when they are told to."""

_RECOGNITION_S = 5.0  # seconds to wait for a list of models
_HOSTED = (
    "openrouter.ai",
    "groq.com",
    "together.xyz",
    "together.ai",
    "deepseek.com",
    "mistral.ai",
    "fireworks.ai",
    "x.ai",
    "googleapis.com",
    "anthropic.com",
    "perplexity.ai",
    "cerebras.ai",
    "aliyuncs.com",
    "nvidia.com",
    "huggingface.co",
    "cohere.ai",
    "cohere.com",
    "sambanova.ai",
    "deepinfra.com",
    "moonshot.cn",
    "moonshot.ai",
    "bigmodel.cn",
    "amazonaws.com",
)
_REASONING = re.compile(r"(?:o\d|gpt-[5-9](?!-chat))", re.IGNORECASE)
_GROK_REASONING = re.compile(r"grok-(?:3-mini|[4-9]|code)", re.IGNORECASE)
# The last family that accepts a trailing assistant message; later models refuse it with a 400.
_CLAUDE_WITH_PREFILL = re.compile(
    r"claude-(?:instant|v?2|3|(?:opus|sonnet|haiku)-4(?:-[0-5])?(?:-\d{8}|@|$))"
)

# Bedrock refuses marks for earlier ones.
_CLAUDE_WITH_CACHE = re.compile(
    r"claude-(?:3-7|3-5-haiku|3-5-sonnet-20241022|(?:opus|sonnet|haiku)-\d)"
)


def capabilities_of(model: BaseChatModel) -> ModelCapabilities:
    """Return what `model` can do, from its own word, its class and the address it talks to.

    An OpenAI client whose address is none of the known services is taken for a server of your own
    (vLLM, SGLang) that can continue a partial answer. A model nobody knows gets the plainest way,
    with the limit, the seed and `n` under the names that its class has for them.
    """
    declared = getattr(model, "policy_capabilities", None)
    if isinstance(declared, ModelCapabilities):
        return declared
    packages = [name for name in packages_of(model) if is_provider(name)]
    known = _of_client(model, packages) if packages else _of_fields(model)
    seed = own_name(model, SEEDS) or known.seed_key
    return replace(known, max_tokens_key=_limit_key(model), seed_key=seed)


def _limit_key(model: BaseChatModel) -> str | None:
    name = own_name(model, LIMITS)
    return name or (LIMITS[0] if takes_anything(model) else None)


def _of_fields(model: BaseChatModel) -> ModelCapabilities:
    seeds: Seeds = "none" if own_name(model, SEEDS) is None else "call"
    # IBM's client sends them under a name that only another API of IBM's documents
    stop: StopWords = "none" if "langchain_ibm" in packages_of(model) else "any"
    many = own_name(model, MANY) is not None
    return replace(UNKNOWN_MODEL, seeds=seeds, many=many, stop=stop)


def _of_client(model: BaseChatModel, packages: list[str]) -> ModelCapabilities:
    """Return what the client of a provider can do; `packages` are those of its classes."""
    name = _name_of(model)
    if "langchain_anthropic" in packages or "Anthropic" in type(model).__name__:
        can = _CLAUDE_WITH_PREFILL.search(name) and not thinking_of(model)
        return ANTHROPIC_PREFILL if can else ANTHROPIC
    if packages[0] == "langchain_openai":
        return _openai_compatible(model, name)
    if packages[0] == "langchain_litellm":
        return _of_litellm(model, name)
    if packages[0] == "langchain_aws" and "langchain_openai" not in packages:
        return _of_bedrock(model, name)
    known = _BY_PACKAGE.get(packages[0], HOSTED)
    if _responses_api(model) or (packages[0] == "langchain_xai" and _GROK_REASONING.match(name)):
        return replace(known, many=False, seeds="none", stop="none")
    return known


def _name_of(model: Any) -> str:
    names = (getattr(model, key, None) for key in ("model_name", "model", "model_id"))
    return str(next(filter(None, names), ""))


def thinking_of(model: Any, bound: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return what a client was told about the model's thinking, {} if it is off.

    `budget_tokens` in it are tokens on top of what an answer may have.
    """
    given = bound or {}
    more = getattr(model, "additional_model_request_fields", None) or {}
    told = given.get("thinking") or getattr(model, "thinking", None) or more.get("thinking")
    if isinstance(told, dict) and told.get("type") in ("enabled", "adaptive"):
        return told
    budget = given.get("thinking_budget", getattr(model, "thinking_budget", None))
    return {"budget_tokens": budget} if isinstance(budget, int) and budget > 0 else {}


def _of_bedrock(model: BaseChatModel, name: str) -> ModelCapabilities:
    converse = "Converse" in type(model).__name__
    claude = "claude" in name
    known = replace(BEDROCK, stop="non_blank") if claude else BEDROCK
    if not converse:
        return known
    if _CLAUDE_WITH_CACHE.search(name):
        known = replace(known, cache_marks="cachePoint")
    if _CLAUDE_WITH_PREFILL.search(name) and not thinking_of(model):
        return replace(known, prefill="message", prefill_whitespace=False)
    return known


def _of_litellm(model: Any, name: str) -> ModelCapabilities:
    """Return what LiteLLM itself lists for a model's provider."""
    known = ANTHROPIC if "claude" in name else HOSTED
    try:
        listed = model.client.get_supported_openai_params(
            model=name, custom_llm_provider=getattr(model, "custom_llm_provider", None)
        )
    except Exception:  # a provider that LiteLLM does not know, or another client
        listed = None
    if not listed:
        return known
    return replace(
        known,
        many="n" in listed,
        seeds="call" if "seed" in listed else "none",
        stop=known.stop if "stop" in listed else "none",
    )


async def recognised(model: BaseChatModel, known: ModelCapabilities) -> ModelCapabilities:
    """Return what the server behind an OpenAI client says of itself, added to what is `known`.

    vLLM and SGLang name themselves as the owner of what they serve (`/v1/models`), wherever they
    run, and with it the length of the context. Any other server, and one that does not answer,
    leaves `known` as it is. OpenAI and Azure are not asked.
    """
    client = getattr(model, "root_async_client", None)
    host = _host(model)
    if client is None or not host or _within(host, _OPENAI_ITSELF):
        return known
    try:
        listed = await client.with_options(max_retries=0, timeout=_RECOGNITION_S).models.list()
        cards = {card.id: card.model_dump() for card in listed.data}
        name = str(getattr(model, "model_name", ""))
        card = cards.get(name) or (next(iter(cards.values())) if len(cards) == 1 else {})
    except Exception:  # whatever a server of unknown make may answer
        return known
    served = _BY_OWNER.get(str(card.get("owned_by")))
    if served is not None and not _responses_api(model):
        known = replace(served, max_tokens_key=known.max_tokens_key, seed_key=known.seed_key)
    window = card.get("max_model_len")
    if isinstance(window, int) and window > 0:
        return replace(known, context_tokens=window)
    return known


def _openai_compatible(model: Any, name: str) -> ModelCapabilities:
    host = _host(model)
    if _responses_api(model):
        return OPENAI_REASONING
    azure = any("Azure" in kind.__name__ for kind in type(model).__mro__)
    if azure or _within(host, _OPENAI_HOSTS) or not host:
        return OPENAI_REASONING if _REASONING.match(name) else OPENAI
    return HOSTED if _within(host, _HOSTED) else OPEN_SERVER


def _responses_api(model: Any) -> bool:
    """Tell whether an OpenAI client speaks the Responses API, which has no `n`, seed nor stop."""
    try:
        return bool(model._use_responses_api({}))  # by the client's own rule, which is not public
    except Exception:
        return bool(getattr(model, "use_responses_api", None))


def _host(model: Any) -> str:
    address = getattr(getattr(model, "root_client", None), "base_url", None)
    address = address or getattr(model, "openai_api_base", None)
    return urlsplit(str(address)).hostname or "" if address else ""


def _within(host: str, domains: tuple[str, ...]) -> bool:
    return any(host == domain or host.endswith(f".{domain}") for domain in domains)
