"""Whether a vLLM server is ready."""

from __future__ import annotations

import httpx


def is_healthy(base_url: str, *, timeout_s: float = 2.0) -> bool:
    """Return whether the server at `base_url` answers `GET /health` with 200."""
    try:
        return httpx.get(f"{base_url}/health", timeout=timeout_s).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False
