"""Keys and bounds at the door of every HTTP server, the vLLM plugin's own among them."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.servers.serving import served
from vprm_search.errors import ConfigError
from vprm_search.servers import access
from vprm_search.servers.access import AccessMiddleware, Tenants

KEYS = Tenants({"ann": "a", "bob": "b"})


class Door:
    """A guarded app that says who came and with what, and a client that sends pieces."""

    def __init__(self, tenants: Tenants = KEYS, limit: int = 100) -> None:
        self.seen: list[bytes] = []
        self.waited = False
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.app = AccessMiddleware(self._app, tenants=tenants, max_body_bytes=limit)

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            self.seen.append((await receive())["body"])
        await self.go_on.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def ask(
        self, pieces: list[bytes], *, key: str | None = "a", kind: str = "http", **more: Any
    ) -> int:
        """Return the status; a piece that is missing at the end never comes."""
        waiting = [
            {"type": "http.request", "body": piece, "more_body": place < len(pieces) - 1}
            for place, piece in enumerate(pieces)
        ]
        if more.pop("never_ends", False):
            waiting[-1]["more_body"] = True
        sent: list[Any] = []

        async def receive() -> Any:
            if waiting:
                return waiting.pop(0)
            self.waited = True
            await asyncio.sleep(3600)

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [(b"Authorization", f"Bearer {key}".encode())] if key is not None else []
        scope = {"type": kind, "path": "/x", "headers": headers, "method": "POST", **more}
        await self.app(scope, receive, send)
        return int(sent[0]["status"])


@given(pieces=st.lists(st.binary(max_size=60), min_size=1, max_size=8))
def test_a_body_reaches_the_app_whole_or_not_at_all(pieces: list[bytes]) -> None:
    async def run() -> None:
        door, whole = Door(), b"".join(pieces)
        status = await door.ask(pieces)
        assert (status, door.seen) == ((200, [whole]) if len(whole) <= 100 else (413, []))
        assert door.app._held == 0

    asyncio.run(run())


@given(key=st.none() | st.text(st.characters(codec="utf-8", exclude_categories=["Cc"])))
def test_only_a_key_is_let_in(key: str | None) -> None:
    async def run() -> None:
        door = Door()
        right = key is not None and key.strip() in ("a", "b")
        assert await door.ask([b""], key=key) == (200 if right else 401)
        assert await door.ask([b""], key=key, kind="websocket") == (200 if right else 401)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("path", "root", "status"),
    [
        ("/health", "", 200),
        ("/up/health", "/up", 200),
        ("/health/x", "", 401),
        ("/x/health", "", 401),
    ],
)
async def test_health_needs_no_key(path: str, root: str, status: int) -> None:
    assert await Door().ask([b""], key=None, path=path, root_path=root) == status


@pytest.mark.parametrize("announced", [b"101", b"9" * 40, b"0" * 30 + b"7", b"-1", b"x", b"\xb2"])
async def test_what_is_announced_is_no_way_around_the_limit(announced: bytes) -> None:
    headers = [(b"authorization", b"Bearer a"), (b"content-length", announced)]
    assert await Door().ask([b""], headers=headers[:1]) == 200
    door = Door()
    assert await door.ask([b"x" * 60, b"x" * 60], headers=headers) == 413
    assert not door.waited  # the answer does not wait for more than the body


async def test_a_body_that_does_not_come_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(access, "_BODY_S", 0.05)
    monkeypatch.setattr(access, "_PASS_OVER_S", 0.05)
    door = Door()
    assert await door.ask([b"x"], never_ends=True) == 408
    assert (door.seen, door.app._held) == ([], 0)


async def test_many_large_bodies_at_once_are_not_kept() -> None:
    door = Door()
    door.go_on.clear()
    under_way = [asyncio.ensure_future(door.ask([b"x" * 100])) for _ in range(16)]
    while len(door.seen) < 16:  # noqa: ASYNC110 - a plain list
        await asyncio.sleep(0)
    assert await door.ask([b"x"]) == 429
    door.go_on.set()
    assert await asyncio.gather(*under_way) == [200] * 16
    assert await door.ask([b"x" * 100]) == 200


def test_an_empty_key_lets_nobody_in() -> None:
    with pytest.raises(ConfigError, match="a key of its own"):
        Tenants.unnamed(["", "x"])
    assert Tenants.unnamed(["x", "x"]).find(b"Bearer x") is not None
    assert Tenants({"ann": "schlüssel"}).find("Bearer schlüssel".encode()) == "ann"


@pytest.mark.parametrize(("key", "status"), [("a", 413), ("wrong", 401)])
async def test_who_sends_too_much_gets_an_answer_and_no_broken_connection(
    key: str, status: int
) -> None:
    app = AccessMiddleware(Door()._app, tenants=KEYS, max_body_bytes=8_000_000)
    headers = {"authorization": f"Bearer {key}"}
    async with served(app) as url, httpx.AsyncClient() as client:
        for _ in range(3):
            reply = await client.post(url, content=b"x" * 9_000_000, headers=headers)
            assert reply.status_code == status
