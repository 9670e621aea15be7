"""The policy: a chat model that proposes reasoning steps."""

from vprm_search.policy.capabilities import ModelCapabilities, capabilities_of
from vprm_search.policy.chat_model_policy import ChatModelPolicy
from vprm_search.policy.retry import RetryRules

__all__ = ["ChatModelPolicy", "ModelCapabilities", "RetryRules", "capabilities_of"]
