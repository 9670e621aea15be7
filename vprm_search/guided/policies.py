"""What may be given as the policy of a guided model: its chat model, its arguments, its name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.runnables import RunnableBinding

from vprm_search.chat.calls import unwrap_model
from vprm_search.policy.chat_model_policy import ChatModelPolicy
from vprm_search.types import Policy


def first_policy(policy: Any) -> Any:
    """Return the policy, the first of several."""
    return next(iter(policy.values())) if isinstance(policy, Mapping) else policy


def chat_model_of(policy: Any) -> BaseChatModel | None:
    """Return the chat model of the (first) policy, None if it is a `Policy` of another kind.

    Raises `ConfigError` for what is no policy at all.
    """
    policy = first_policy(policy)
    if isinstance(policy, ChatModelPolicy):
        return policy.model
    return None if isinstance(policy, Policy) else unwrap_model(policy, "policy model")[0]


def bound_arguments(policy: Any) -> dict[str, Any]:
    """Return the arguments bound to the chat model of a policy, none where there is no model."""
    if isinstance(policy, ChatModelPolicy):
        return policy.arguments
    return {} if isinstance(policy, Policy) else unwrap_model(policy, "policy model")[1]


def cache_name(part: Any) -> str:
    """Return a name of a part for caches: the same in every process where that can be known.

    Of what has neither a content nor a name of its own it is the object's, in this process.
    """
    if isinstance(part, Mapping):
        return " ".join(f"{name}={cache_name(one)}" for name, one in part.items())
    if isinstance(part, ChatModelPolicy):
        return f"{cache_name(part.model)} {part.arguments} {id(part)}"
    if isinstance(part, RunnableBinding):
        return f"{cache_name(chat_model_of(part))} {bound_arguments(part)}"
    if isinstance(part, BaseChatModel) and (part.is_lc_serializable() or part._identifying_params):
        return part._get_llm_string()
    if isinstance(part, str):
        return part
    name = str(getattr(part, "identity", None) or getattr(part, "__qualname__", "<"))
    module = getattr(part, "__module__", "")
    return f"{module}.{name}" if "<" not in name else f"{module}.{name} {id(part)}"
