"""Which call arguments a chat client takes, and how they reach it.

LangChain has common names for a few settings and no rule where a client reads them. What is known:
a client of a provider package (`langchain_…`) reads its own fields, so those are set on a copy of
it; any other class may read a field, an argument of the call, or both, and gets both. A class that
names the arguments of a call is given those and no others.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from langchain_core.language_models.chat_models import BaseChatModel

from vprm_search.chat.failures import causes_of, status_of

LIMITS = (
    "max_tokens",
    "max_completion_tokens",
    "max_output_tokens",
    "num_predict",
    "max_new_tokens",
    "max_tokens_to_sample",
)
"""Names of the most tokens of an answer, the likeliest first."""
SEEDS = ("seed", "random_seed")
MANY = ("n",)

_ALIASES: dict[str, tuple[str, ...]] = {
    "n": ("candidate_count", "candidateCount", "num_return_sequences"),
    "stop": ("stop_sequences", "stopSequences", "stop_words"),
    "seed": ("random_seed",),
    "temperature": (),
}
_NOT_TAKEN = re.compile(
    r"unexpected keyword|unexpected (?:argument|parameter|field)|unsupported|not support"
    r"|unrecogni[sz]ed|unknown (?:arg|param|field|name|key|option)|invalid (?:arg|param|field|key)"
    r"|not permitted|extra[ _](?:inputs?|fields?|forbidden)|not allowed|not enabled|not accept"
    r"|not (?:a )?valid|deprecated|must be (?:at most )?(?:1|one)\b|only (?:supports? )?(?:1|one)\b"
    r"|cannot be (?:used|set|specified)|not available|additional propert",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class CallSettings:
    """What one call is asked with: fields of a copy of the client, and arguments of the call."""

    fields: dict[str, Any] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def names(self) -> frozenset[str]:
        """The names of all of them."""
        return frozenset(self.fields) | frozenset(self.arguments)

    def configured(self, model: BaseChatModel) -> BaseChatModel:
        """Return `model` with the fields: the model itself, or a copy of it."""
        return model.model_copy(update=self.fields) if self.fields else model


def own_name(model: BaseChatModel, names: Iterable[str]) -> str | None:
    """Return which of `names` the class of `model` knows, as an argument or a field, or None."""
    explicit, _ = _signature(type(model))
    for known in (explicit, type(model).model_fields):
        for name in names:
            if name in known:
                return name
    return None


def takes_anything(model: BaseChatModel) -> bool:
    """Tell whether a call of `model` takes arguments that its class does not name."""
    return _signature(type(model))[1]


def of_provider(model: BaseChatModel) -> bool:
    """Tell whether the class is a provider package's, or derived from one."""
    return any(map(is_provider, packages_of(model)))


def is_provider(package: str) -> bool:
    """Tell whether a package of this name holds clients that read their own fields at a call.

    IBM's reads them once, when it is made.
    """
    return package.startswith("langchain_") and package not in ("langchain_core", "langchain_ibm")


def packages_of(model: BaseChatModel) -> list[str]:
    """Return the packages of the classes of `model`, from its own to the base."""
    names = [kind.__module__.partition(".")[0] for kind in type(model).__mro__]
    return list(dict.fromkeys(names))


def settings_for(
    model: BaseChatModel, wanted: Mapping[str, Any], by_call: Iterable[str], refused: Iterable[str]
) -> CallSettings:
    """Return how to ask `model` with the `wanted` settings.

    Args:
        model: the client.
        wanted: settings under the names that the client has for them.
        by_call: names that are arguments of the call whatever the class says: they were bound, or
            the user said so.
        refused: arguments that the client has refused.
    """
    explicit, anything = _signature(type(model))
    own, provider = type(model).model_fields, of_provider(model)
    told, not_taken = set(by_call), set(refused)
    found = CallSettings()
    for name, value in wanted.items():
        is_field = name in own and name not in told
        taken = name in explicit or name in told or (anything and not (is_field and provider))
        if is_field and (provider or name not in explicit):
            found.fields[name] = value
        if taken and name not in not_taken:
            found.arguments[name] = value
    return found


def refused_argument(error: BaseException, sent: Iterable[str]) -> str | None:
    """Return which of the arguments `sent` an error is about, or None.

    An argument is refused by a client that does not know it (`TypeError`, `ValueError`) or a
    server that answers 400 or 422, in a sentence that names it and says that it is not taken.
    """
    causes = list(causes_of(error))
    status = next((s for s in map(status_of, causes) if s is not None), None)
    if status not in (400, 422) and not (
        status is None and any(isinstance(c, TypeError | ValueError) for c in causes)
    ):
        return None
    text = " ".join(f"{cause} {_answered(cause)}" for cause in causes)
    if not _NOT_TAKEN.search(text):
        return None
    named = {str(getattr(cause, "param", None)) for cause in causes}
    for name in sorted(sent, key=len, reverse=True):
        for alias in (name, *_ALIASES.get(name, ())):
            if alias in named or re.search(_mention(alias), text):
                return name
    return None


def _answered(error: BaseException) -> str:
    """Return what the server wrote, which httpx's own errors do not say."""
    try:
        return str(error.response.text)[:10_000]  # type: ignore[attr-defined]
    except Exception:  # no response, or one whose body was never read
        return ""


def _mention(name: str) -> str:
    """Return a pattern for the name of an argument, not for the same word in a sentence."""
    word = re.escape(name)
    quoted = rf"['\"`\[(.]{word}['\"`\]),.=:]"
    said = rf"\b(?:arguments?|param(?:eter)?s?|fields?|option|key|propert(?:y|ies))[ :]+{word}\b"
    listed = rf"(?:^|[,:]\s?){word}(?=\s*(?:,|$|[:=]| is | are | must | not ))"
    whole = rf"|\b{word}\b" if "_" in name else ""
    return f"{quoted}|{said}|{listed}{whole}"


def _signature(kind: type) -> tuple[frozenset[str], bool]:
    """Return the arguments a class names for a call, and whether it takes any others.

    A class answers with `_agenerate`, or with `_generate` where it has no other. One that hands
    `*args, **kwargs` on to another class takes what that one takes: anything, as far as is known.
    """
    method = getattr(kind, "_agenerate", None)
    if method is None or method is BaseChatModel._agenerate:
        method = getattr(kind, "_generate", None)
    try:
        parameters = inspect.signature(method).parameters.values()  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return frozenset(), True
    base = {"self", "messages", "stop", "run_manager"}
    names = frozenset(
        p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)
    )
    return names - base, any(p.kind is p.VAR_KEYWORD for p in parameters)
