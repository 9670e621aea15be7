"""How a policy asks its chat model: what the client takes, less what it has refused.

What a client does not know it is not sent. Where that could not be told beforehand the client (or
its server) refuses the call and names the argument: the call is made again with another name for
it, or without it, and so are all later ones; one warning says so.
"""

from __future__ import annotations

import asyncio
import re
import warnings
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
from langchain_core.callbacks import AsyncCallbackHandler, AsyncCallbackManager
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import BaseMessage
from langchain_core.outputs import LLMResult
from langchain_core.runnables.config import ensure_config

from vprm_search.chat.arguments import (
    LIMITS,
    SEEDS,
    CallSettings,
    of_provider,
    own_name,
    refused_argument,
    settings_for,
    takes_anything,
)
from vprm_search.chat.calls import HIDDEN, without_cache
from vprm_search.chat.capabilities import ModelCapabilities, Prefill, thinking_of
from vprm_search.chat.failures import causes_of
from vprm_search.chat.tracing import pictures_aside, without_pictures_in_traces
from vprm_search.errors import ClientWarning
from vprm_search.policy.replies import Reply
from vprm_search.types import ProposeRequest

_CALL_SEED_MASK = (1 << 31) - 1  # some servers keep seeds in 32 bits
_CONTINUE = ("continue_final_message", "add_generation_prompt", "extra_body")
_MARKS = ("cache_control", "cachePoint")
_MOST_THREADS = 64
_LIMITS_TRIED = LIMITS[:4]
_WITHOUT = {
    "n": "answers are asked for one by one",
    "stop": "steps are cut here, after they were written",
    "stream": "streaming is switched off on a copy of the client",
    "temperature": "the temperature stays as it is",
}


@dataclass(frozen=True, slots=True)
class Manner:
    """What is known of a client: what it can do, and the arguments it has refused."""

    known: ModelCapabilities
    refused: frozenset[str] = frozenset()

    def without(self, name: str, sent: CallSettings, client: Client, text: str) -> Manner | None:
        """Return the manner without an argument that was refused, None if that is no way on."""
        known, refused = self.known, self.refused | {name}
        if name in _MARKS:
            return Manner(replace(known, cache_marks="none"), refused)
        if name in _CONTINUE:
            if client.continuation == "prefill":
                return None
            return Manner(replace(known, prefill="none"), refused)
        if name in sent.arguments and name in sent.fields:
            return Manner(known, refused)  # the field stays
        if name == known.max_tokens_key:
            return Manner(replace(known, max_tokens_key=_other_limit(text, refused)), refused)
        if name in (known.seed_key, "seeds"):
            known = replace(known, seeds="none")
        elif name == "n":
            known = replace(known, many=False)
        elif name == "stop":
            known = replace(known, stop="none")
        return Manner(known, refused)


def _other_limit(text: str, refused: frozenset[str]) -> str | None:
    """Return the next name to try: the one the refusal advises, or the next one."""
    advised = re.search(rf"\b(?:use|try|mean)\W+({'|'.join(LIMITS)})\b", text, re.IGNORECASE)
    names = ([advised[1]] if advised else []) + list(_LIMITS_TRIED)
    return next((name for name in names if name not in refused), None)


class Client:
    """One chat model with its bound arguments, and how it is asked.

    Args:
        model: the chat model.
        bound: arguments bound to it by `.bind(...)`.
        continuation: how paths are to be continued; see `ChatModelPolicy`.
    """

    def __init__(self, model: BaseChatModel, bound: dict[str, Any], continuation: str) -> None:
        self.model = without_pictures_in_traces(model)
        self.bound, self.continuation = bound, continuation
        # Google's REST client awaits what it did at once, so its asynchronous calls always fail.
        self._synchronous = getattr(model, "transport", None) == "rest"
        self._said: set[str] = set()
        self._strange: weakref.WeakSet[asyncio.AbstractEventLoop] = weakref.WeakSet()
        self._threads: weakref.WeakKeyDictionary[
            asyncio.AbstractEventLoop, anyio.CapacityLimiter
        ] = weakref.WeakKeyDictionary()
        own = getattr(model, "policy_capabilities", None)
        self._declares = isinstance(own, ModelCapabilities)

    def prefill(self, known: ModelCapabilities) -> Prefill:
        """Return how a partial answer is continued."""
        if self.continuation == "auto":
            return known.prefill
        if self.continuation == "instruct":
            return "none"
        return "message" if known.prefill == "none" else known.prefill

    @property
    def limit(self) -> int | None:
        """The most tokens of an answer by the client's own setting, None if it has none."""
        told = [self.bound.get(n) or getattr(self.model, n, None) for n in LIMITS]
        return next((limit for limit in told if isinstance(limit, int)), None)

    def stop(self, own: Sequence[str]) -> list[str] | None:
        """Return the stop strings of a call: the user's and those of the search, at most four.

        A client's own ones are replaced by those of a call, and Ollama's refuses both.
        """
        given = self.bound.get("stop") or getattr(self.model, "stop", None)
        given = given or getattr(self.model, "stop_sequences", None)
        users = [given] if isinstance(given, str) else list(given or [])
        if not own and "stop" not in self.bound:
            return None  # the client sends its own
        return list(dict.fromkeys([*own, *users]))[:4] or None

    def settings(
        self,
        manner: Manner,
        request: ProposeRequest,
        seeds: Sequence[int],
        *,
        stop: Sequence[str],
        tokens: int | None,
    ) -> CallSettings:
        """Return what one call is asked with, beyond its messages and stop strings.

        Without a limit in `tokens` the client's own stays.
        """
        known, refused = manner.known, manner.refused
        bound = {k: v for k, v in self.bound.items() if k not in ("stop", "n", "stream", *SEEDS)}
        wanted: dict[str, Any] = {}
        if known.max_tokens_key and tokens is not None:
            bound = {name: value for name, value in bound.items() if name not in LIMITS}
            extra = thinking_of(self.model, self.bound).get("budget_tokens") or 0
            wanted[known.max_tokens_key] = tokens + int(extra)
        if known.seeds == "call":
            wanted[known.seed_key] = seeds[0] & _CALL_SEED_MASK
        temperature = bound.get("temperature", getattr(self.model, "temperature", None))
        if request.temperature_scale != 1 and temperature and "temperature" not in refused:
            scaled = temperature * request.temperature_scale
            wanted["temperature"] = min(known.max_temperature, scaled)
        if "n" not in refused and (known.many or len(seeds) > 1):
            wanted["n"] = len(seeds)
        by_call = {*bound, *(wanted if self._declares else ())}
        if not of_provider(self.model):
            by_call.add("temperature")
        found = settings_for(self.model, wanted, by_call, refused)
        found.arguments.update({**bound, **found.arguments})
        self._nest(found)
        if known.seeds == "children":
            found.arguments["seeds"] = list(seeds)
        self._switch_off(found, refused)
        if self.prefill(known) == "server" and (body := self._server_body(manner, request, stop)):
            found.arguments["extra_body"] = body
        return found

    def _nest(self, found: CallSettings) -> None:
        """Put settings into bound Ollama `options`, which replace the client's fields."""
        options = found.arguments.get("options")
        if isinstance(options, Mapping) and "num_predict" in type(self.model).model_fields:
            named = {name: found.fields[name] for name in found.fields if name != "cache"}
            found.arguments["options"] = {**options, **named}

    def _switch_off(self, found: CallSettings, refused: frozenset[str]) -> None:
        """Switch off streaming, or a streaming caller would lose `n`, and LangChain's cache.

        The cache would make all siblings of a model without seeds equal.
        """
        model = self.model
        if self._can_stream() and model.disable_streaming is not True:
            named = own_name(model, ("stream",)) or (takes_anything(model) and "stream")
            if of_provider(model) or not named or "stream" in refused or found.fields:
                found.fields["disable_streaming"] = True
                if getattr(model, "streaming", False) and "streaming" in type(model).model_fields:
                    found.fields["streaming"] = False
            else:
                found.arguments["stream"] = False

    def _can_stream(self) -> bool:
        kind, base = type(self.model), BaseChatModel
        return kind._stream is not base._stream or kind._astream is not base._astream

    def _server_body(
        self, manner: Manner, request: ProposeRequest, stop: Sequence[str]
    ) -> dict[str, Any]:
        """Return the extra fields by which a vLLM-like server continues a partial answer.

        A call-time body replaces the client's, so the client's is copied. The stop string is asked
        for in the output because the client drops the server's word on what ended a reply.
        """
        body = dict(self.bound.get("extra_body") or getattr(self.model, "extra_body", None) or {})
        if request.steps:
            body |= {"continue_final_message": True, "add_generation_prompt": False}
        keep = manner.known.keep_stop_key
        if stop and keep not in manner.refused:
            body[keep] = True
        return body

    async def generate(
        self,
        messages: list[BaseMessage],
        settings: CallSettings,
        known: ModelCapabilities,
        stop: Sequence[str],
    ) -> LLMResult:
        """Ask the model once; the run is nested under the caller's (tracing).

        A client that has only synchronous calls makes them in a thread. So does one whose
        connections belong to another event loop: many clients of a process share one pool of
        them, and a synchronous search has a loop of its own.
        """
        model = settings.configured(self.model)
        if known.seeds == "none":
            model = without_cache(model)
        told: dict[str, Any] = {
            "stop": self.stop(stop),
            "callbacks": ensure_config().get("callbacks"),
            "tags": [HIDDEN],
            "run_name": "propose",
            **settings.arguments,
        }
        loop = asyncio.get_running_loop()
        with pictures_aside(model, messages) as light:
            if not self._synchronous and loop not in self._strange:
                try:
                    return await model.agenerate([light], **told)
                except NotImplementedError:
                    self._synchronous = True
                except Exception as error:
                    if not any(map(_of_another_loop, causes_of(error))):
                        raise
                    self._strange.add(loop)
            call = partial(model.generate, [light], **_in_a_thread(told))
            threads = self._threads.setdefault(loop, anyio.CapacityLimiter(_MOST_THREADS))
            return await anyio.to_thread.run_sync(call, limiter=threads, abandon_on_cancel=True)

    def refused(self, error: Exception, settings: CallSettings, stop: Sequence[str]) -> str | None:
        """Return which argument of a call an error refuses, or None."""
        body = settings.arguments.get("extra_body") or {}
        names = [name for name in (*settings.names, *body) if name not in self.bound]
        return refused_argument(error, [*names, *_MARKS, *(["stop"] if stop else [])])

    def note_ends(self, replies: Iterable[Reply]) -> None:
        """Warn once of every reason for an end that nobody knows."""
        for reason in {r.reason for r in replies if r.ending == "unknown" and r.reason}:
            if reason not in self._said:
                self._said.add(reason)
                message = (
                    f"{type(self.model).__name__} ended a reply for the reason {reason!r}, which "
                    "is not known: it counts as cut unless it states a final answer"
                )
                warnings.warn(message, ClientWarning, stacklevel=2)

    def warn(self, name: str, before: Manner, after: Manner, text: str) -> None:
        """Say once that an argument is not taken, and what is done instead."""
        if name in self._said:
            return
        self._said.add(name)
        instead = _WITHOUT.get(name, "it is left out")
        if name == before.known.max_tokens_key and after.known.max_tokens_key != name:
            other = after.known.max_tokens_key
            instead = f"{other} is sent instead" if other else "answers have no limit of tokens"
        elif name in _CONTINUE:
            instead = "paths are continued by asking for the next step"
        message = f"{type(self.model).__name__} does not take {name!r}: {instead} ({text})"
        warnings.warn(message, ClientWarning, stacklevel=2)


def _of_another_loop(error: BaseException) -> bool:
    """Tell whether an error says that connections belong to another loop, or to a closed one."""
    return isinstance(error, RuntimeError) and "loop" in str(error)


def _in_a_thread(told: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a synchronous call: its callbacks are those that need no loop."""
    callbacks = told["callbacks"]
    if not isinstance(callbacks, AsyncCallbackManager):
        return told
    handlers = callbacks.inheritable_handlers
    return {**told, "callbacks": [h for h in handlers if not isinstance(h, AsyncCallbackHandler)]}
