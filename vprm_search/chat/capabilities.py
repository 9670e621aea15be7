"""What a chat model can do for a search: continue a text, answer many times, draw from a seed.

LangChain has no common way to ask a model for this, so it is told from the model's class and
address. A model of your own may carry the answer itself, as an attribute `policy_capabilities`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, Literal
from urllib.parse import urlsplit

from langchain_core.language_models.chat_models import BaseChatModel

Prefill = Literal["none", "message", "server"]
Seeds = Literal["none", "call", "children"]
StopWords = Literal["any", "non_blank", "none"]


@dataclass(frozen=True, slots=True)
class ModelCapabilities:
    """What one chat model can do.

    `prefill`: how a partial answer is continued — "message" (a trailing AI message is enough),
    "server" (an OpenAI-compatible server that has to be told, as vLLM does with
    `continue_final_message`) or "none". `prefill_whitespace`: such a partial answer may end in
    white space. `many`: `n` answers in one call. `seeds`: no seed, one per call, or one per child
    (a call argument `seeds`). `stop`: which stop strings it takes. `instructions`: it follows
    instructions in the question. `max_tokens_key`: the call argument that limits an answer.
    `in_process`: calls share this process, so there is no reason to limit them. `max_temperature`:
    the highest one it takes. `context_tokens`: what prompt and answer may have together, if known.
    `keep_stop_key`: the field by which a "server" leaves the stop string in its answer.
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


UNKNOWN_MODEL = ModelCapabilities()
OPEN_SERVER = ModelCapabilities(prefill="server", many=True, seeds="call")
SGLANG = replace(OPEN_SERVER, keep_stop_key="no_stop_trim")
OPENAI = ModelCapabilities(many=True, seeds="call")
OPENAI_REASONING = ModelCapabilities(stop="none")
HOSTED = ModelCapabilities()
ANTHROPIC = ModelCapabilities(stop="non_blank", max_temperature=1.0)
ANTHROPIC_PREFILL = replace(ANTHROPIC, prefill="message", prefill_whitespace=False)
OLLAMA = ModelCapabilities(prefill="message", max_tokens_key=None)

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
)
_REASONING = re.compile(r"(?:o\d|gpt-5)", re.IGNORECASE)
# The last family that accepts a trailing assistant message; later models refuse it with a 400.
_CLAUDE_WITH_PREFILL = re.compile(
    r"claude-(?:instant|2|3|(?:opus|sonnet|haiku)-4(?:-[0-5])?(?:-\d{8}|@|$))"
)


def capabilities_of(model: BaseChatModel) -> ModelCapabilities:
    """Return what `model` can do, from its own word, its class and the address it talks to.

    An OpenAI client whose address is none of the known services is taken for a server of your own
    (vLLM, SGLang) that can continue a partial answer. A model nobody knows gets the plainest way.
    """
    declared = getattr(model, "policy_capabilities", None)
    if isinstance(declared, ModelCapabilities):
        return declared
    modules = {kind.__module__.partition(".")[0] for kind in type(model).__mro__}
    name = str(getattr(model, "model_name", None) or getattr(model, "model", None) or "")
    if "langchain_openai" in modules:
        return _openai_compatible(model, name)
    if "langchain_anthropic" in modules:
        return ANTHROPIC_PREFILL if _CLAUDE_WITH_PREFILL.match(name) else ANTHROPIC
    if "langchain_ollama" in modules:
        return OLLAMA
    return UNKNOWN_MODEL


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
    known = _BY_OWNER.get(str(card.get("owned_by")), known)
    window = card.get("max_model_len")
    if isinstance(window, int) and window > 0:
        return replace(known, context_tokens=window)
    return known


def _openai_compatible(model: Any, name: str) -> ModelCapabilities:
    host = _host(model)
    if _within(host, _OPENAI_HOSTS) or not host:
        responses_api = bool(getattr(model, "use_responses_api", None))
        return OPENAI_REASONING if responses_api or _REASONING.match(name) else OPENAI
    return HOSTED if _within(host, _HOSTED) else OPEN_SERVER


def _host(model: Any) -> str:
    address = getattr(getattr(model, "root_client", None), "base_url", None)
    address = address or getattr(model, "openai_api_base", None)
    return urlsplit(str(address)).hostname or "" if address else ""


def _within(host: str, domains: tuple[str, ...]) -> bool:
    return any(host == domain or host.endswith(f".{domain}") for domain in domains)
