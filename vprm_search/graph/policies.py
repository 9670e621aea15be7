"""What may be given as a policy."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vprm_search.errors import ConfigError
from vprm_search.types import Policy, Proposal, ProposeRequest

if TYPE_CHECKING:
    from langchain_core.language_models import BaseChatModel
    from langchain_core.runnables import Runnable

    OnePolicy = Policy | BaseChatModel | Runnable[Any, Any]


def as_policy(policy: OnePolicy | Mapping[str, OnePolicy]) -> Policy:
    """Return `policy` itself, or the adapter around a chat model (`model.bind(...)` included).

    A mapping names several policies; a strategy such as `Cascade` says which one proposes, and the
    first proposes where it does not. Raises `ConfigError` for anything else.
    """
    if isinstance(policy, Mapping):
        return NamedPolicies({name: as_policy(one) for name, one in policy.items()})
    if isinstance(policy, Policy):
        return policy
    from vprm_search.policy.chat_model_policy import ChatModelPolicy

    return ChatModelPolicy(policy)


class NamedPolicies:
    """Several policies behind one: each request goes to the one it names; implements `Policy`.

    Raises `ConfigError` if there is none, or a request names one that is not there.
    """

    def __init__(self, policies: Mapping[str, Policy]) -> None:
        if not policies or "" in policies:
            raise ConfigError(f"policies need at least one name, none empty; got {list(policies)}")
        self._policies = {"": next(iter(policies.values())), **policies}

    async def propose(self, requests: Sequence[ProposeRequest]) -> list[list[Proposal]]:
        """Answer all requests, the policies side by side."""
        places: dict[str, list[int]] = {}
        for place, request in enumerate(requests):
            if request.policy not in self._policies:
                known = ", ".join(name for name in self._policies if name)
                raise ConfigError(f"no policy is named {request.policy!r}; there are: {known}")
            places.setdefault(request.policy, []).append(place)
        asked = [
            self._policies[name].propose([requests[place] for place in where])
            for name, where in places.items()
        ]
        replies: list[list[Proposal]] = [[] for _ in requests]
        for where, answers in zip(places.values(), await asyncio.gather(*asked), strict=True):
            for place, answer in zip(where, answers, strict=True):
                replies[place] = answer
        return replies
