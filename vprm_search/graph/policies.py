"""What may be given as a policy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vprm_search.errors import ConfigError
from vprm_search.types import Policy

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel


def as_policy(policy: Policy | BaseChatModel) -> Policy:
    """Return `policy` itself, or the adapter around a chat model. Raises `ConfigError`."""
    if isinstance(policy, Policy):
        return policy
    from langchain_core.language_models import BaseChatModel

    if isinstance(policy, BaseChatModel):
        from vprm_search.policy.chat_model_policy import ChatModelPolicy

        return ChatModelPolicy(policy)
    raise ConfigError(
        f"policy is a {type(policy).__name__}; it must be a LangChain chat model or have "
        "`async def propose(requests)`"
    )
