"""Where a scoring server is, and how patient, busy and trusting its client is."""

from __future__ import annotations

from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field

from vprm_search.errors import ConfigError


class VllmOptions(BaseModel):
    """The limits of a `VllmScorer`.

    Args:
        timeout_s: of one attempt, from a free slot to the last byte of the reply.
        connect_timeout_s: of opening a connection.
        deadline_s: of everything that one `score` call does, waiting included.
        startup_wait_s: how long a server that was never reached is waited for.
        restart_wait_s: how long a server that was lost is waited for.
        poll_s: pause between two questions to /health meanwhile.
        max_attempts: how often a request that fails for a passing reason is sent.
        first_wait_s: pause after the first failure; it doubles with every further one, and is
            shortened by up to a half at random.
        longest_wait_s: bound of that pause.
        longest_retry_after_s: up to which a server's Retry-After is obeyed.
        max_concurrency: POST requests under way at once, in one event loop.
        max_reply_bytes: a longer reply is refused.
        env_proxies: whether proxies of the environment are used.
        remembered_steps: scores kept to fill the rows that a server's prefix cache leaves out.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    timeout_s: float = Field(default=120.0, gt=0)
    connect_timeout_s: float = Field(default=5.0, gt=0)
    deadline_s: float = Field(default=900.0, gt=0)
    startup_wait_s: float = Field(default=10.0, ge=0)
    restart_wait_s: float = Field(default=300.0, ge=0)
    poll_s: float = Field(default=0.5, gt=0)
    max_attempts: int = Field(default=5, ge=1)
    first_wait_s: float = Field(default=0.5, ge=0)
    longest_wait_s: float = Field(default=30.0, ge=0)
    longest_retry_after_s: float = Field(default=120.0, ge=0)
    max_concurrency: int = Field(default=32, ge=1)
    max_reply_bytes: int = Field(default=32 << 20, ge=1)
    env_proxies: bool = False
    remembered_steps: int = Field(default=50_000, ge=1)


def server_address(base_url: str) -> str:
    """Return the address all paths are appended to: no trailing slash, no "/v1".

    Raises `ConfigError` for anything but a plain http or https address: a name and a password in
    it would end up in messages, and a query could not be kept.
    """
    try:
        parts = urlsplit(base_url)
        host = parts.hostname
        port = parts.port
    except (ValueError, AttributeError) as error:
        raise ConfigError(f"the server's address cannot be read: {error}") from error
    if parts.username is not None or parts.password is not None:
        raise ConfigError(
            "the server's address holds a user name or a password; pass api_key instead"
        )
    plain = not (parts.query or parts.fragment or any(c.isspace() for c in base_url))
    if parts.scheme not in ("http", "https") or not host or not plain or port == 0:
        raise ConfigError(
            f"the server's address is {base_url!r}; give one like 'http://127.0.0.1:8000'"
        )
    return base_url.rstrip("/").removesuffix("/v1").rstrip("/")
