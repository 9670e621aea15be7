"""The policy: a chat model that proposes reasoning steps."""

from vprm_search.chat.calls import RetryRules
from vprm_search.chat.capabilities import ModelCapabilities, capabilities_of
from vprm_search.policy.chat_model_policy import ChatModelPolicy

__all__ = ["ChatModelPolicy", "ModelCapabilities", "RetryRules", "capabilities_of"]
