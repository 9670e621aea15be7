"""What may be given as a policy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vprm_search.types import Policy

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel
    from langchain_core.runnables import Runnable


def as_policy(policy: Policy | BaseChatModel | Runnable[Any, Any]) -> Policy:
    """Return `policy` itself, or the adapter around a chat model (`model.bind(...)` included).

    Raises `ConfigError` for anything else.
    """
    if isinstance(policy, Policy):
        return policy
    from vprm_search.policy.chat_model_policy import ChatModelPolicy

    return ChatModelPolicy(policy)
