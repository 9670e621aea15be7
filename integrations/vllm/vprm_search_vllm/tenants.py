"""Whose request it is: a server's tenants, told apart by their API keys."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
from collections.abc import Mapping

API_KEY_VARIABLE = "VLLM_API_KEY"
TENANTS_VARIABLE = "VPRM_SEARCH_VLLM_TENANTS"


class Tenants:
    """The tenants of a server by name, each with its key; what each sent stays its own.

    Without tenants there is one, named "", for everybody or for whoever has the one key.

    Args:
        keys: the key of each tenant; empty for a server that asks for none.

    Raises:
        ValueError: two tenants have the same key, or a name or a key is empty.
    """

    def __init__(self, keys: Mapping[str, str]) -> None:
        if len(set(keys.values())) < len(keys) or "" in keys.values():
            raise ValueError("each tenant needs a key of its own")
        self._hashes = {name: _hash(key.encode()) for name, key in keys.items()}

    @classmethod
    def from_environment(cls) -> Tenants:
        """Return those of `VPRM_SEARCH_VLLM_TENANTS`, `{"name": "key", …}`, or of `VLLM_API_KEY`.

        Raises `ValueError` when both are set, or when the former is no such object.
        """
        key, text = os.environ.get(API_KEY_VARIABLE), os.environ.get(TENANTS_VARIABLE)
        if not text:
            return cls({"": key} if key else {})
        if key:
            raise ValueError(f"{API_KEY_VARIABLE} and {TENANTS_VARIABLE} are both set; unset one")
        needed = f'{TENANTS_VARIABLE} must be a JSON object like {{"name": "key"}}'
        try:
            keys = json.loads(text)
        except ValueError:
            raise ValueError(needed) from None  # the text holds keys
        if not isinstance(keys, dict) or not keys or "" in keys:
            raise ValueError(needed)
        if not all(isinstance(one, str) for one in keys.values()):
            raise ValueError(needed)
        return cls(keys)

    def __len__(self) -> int:
        """Return how many there are, at least one."""
        return max(1, len(self._hashes))

    def find(self, authorization: bytes) -> str | None:
        """Return the name of the tenant with this header's bearer token, None if there is none."""
        if not self._hashes:
            return ""
        scheme, _, token = authorization.partition(b" ")
        given, found = _hash(token.strip()), None
        for name, wanted in self._hashes.items():  # all of them, whichever it is
            if hmac.compare_digest(given, wanted):
                found = name
        return found if scheme.lower() == b"bearer" else None


def _hash(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
