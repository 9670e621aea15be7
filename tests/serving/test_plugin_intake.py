"""The plugin's way in, without vLLM: images, tenants, requests read and planned in threads."""

from __future__ import annotations

import asyncio
import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.serving.plugin_parts import PLUGIN, in_base64, load, picture
from tests.serving.server import scoring_body
from vprm_search.types import ImageData

pytestmark = pytest.mark.usefixtures("plugin_package")

# --- images -------------------------------------------------------------------------------------


def test_an_image_is_kept_under_the_digest_of_its_pixels_only() -> None:
    images, contract = load("images"), load("shared.scoring.vllm.contract")
    cat, dog = picture(40, 30, 1), picture(40, 30, 2)
    cache = images.ImageCache(contract.Limits())
    both = [cat.digest, dog.digest]
    assert cache.take(both, {}) == {}
    for known in (False, True):  # bytes of an image that is kept are checked, too
        for data in (dog.png, b"GIF89a", cat.png[:-400]):
            with pytest.raises(contract.RequestError) as refused:
                cache.checked(cat.digest, in_base64(data))
            assert refused.value.status == 400
        with pytest.raises(contract.RequestError, match="not base64"):
            cache.checked(cat.digest, "!")
        assert len(cache) == known
        right = cache.checked(cat.digest, in_base64(cat.png))
        found = cache.take(both, {cat.digest: right})
        assert set(found) == {cat.digest}
        assert (found[cat.digest].width, found[cat.digest].height) == (40, 30)
    assert cache.take(both, {}) == found
    other_file = png_again(cat)
    assert other_file != cat.png
    assert cache.checked(cat.digest, in_base64(other_file)).data.digest == cat.digest


def png_again(image: ImageData) -> bytes:
    """Return the same pixels in another file."""
    buffer = io.BytesIO()
    Image.open(io.BytesIO(image.png)).save(buffer, "PNG", compress_level=0)
    return buffer.getvalue()


def test_the_image_cache_is_bounded_in_bytes() -> None:
    images, contract = load("images"), load("shared.scoring.vllm.contract")
    pictures = [picture(40, 30, seed) for seed in range(6)]
    room = 3 * len(pictures[0].png) + 200
    cache = images.ImageCache(contract.Limits(kept_image_bytes=room))
    for one in pictures:
        checked = {one.digest: cache.checked(one.digest, in_base64(one.png))}
        assert set(cache.take([one.digest], checked)) == {one.digest}
        assert cache.kept_bytes <= room
    assert len(cache) == 3
    assert set(cache.take([p.digest for p in pictures], {})) == {p.digest for p in pictures[3:]}


def test_a_picture_bomb_is_refused_before_it_is_decoded() -> None:
    images, contract = load("images"), load("shared.scoring.vllm.contract")
    bomb = picture(600, 500)  # 300,000 pixels, one more than the limit below allows
    cache = images.ImageCache(contract.Limits(max_image_pixels=299_999))
    with pytest.raises(contract.RequestError, match="at most 299999 pixels") as refused:
        cache.checked(bomb.digest, in_base64(bomb.png))
    assert refused.value.status == 400


# --- tenants ------------------------------------------------------------------------------------


def test_a_tenant_is_known_by_its_key_only(monkeypatch: pytest.MonkeyPatch) -> None:
    access = load("access_middleware")
    both = access.access.Tenants({"ann": "a", "bob": "b"})
    assert len(both) == 2
    given = (b"Bearer a", b"bearer  b ", b"Bearer c", b"Bearer", b"", b"Basic a", b"a")
    assert list(map(both.find, given)) == ["ann", "bob", None, None, None, None, None]
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    monkeypatch.delenv("VPRM_SEARCH_VLLM_TENANTS", raising=False)
    alone = access.tenants()
    assert (len(alone), alone.find(b""), alone.find(b"Bearer x")) == (1, "", "")
    monkeypatch.setenv("VLLM_API_KEY", "k")
    alone = access.tenants()
    assert (len(alone), alone.find(b"Bearer k"), alone.find(b"Bearer x")) == (1, "", None)
    monkeypatch.setenv("VPRM_SEARCH_VLLM_TENANTS", '{"ann": "a"}')
    with pytest.raises(ValueError, match="both set"):
        access.tenants()


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "{}", '{"": "a"}', '{"a": ""}', '{"a": 1}', '{"a": "canary", "b": "canary"}'],
)
def test_tenants_that_cannot_be_told_apart_are_refused_without_a_word_of_their_keys(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    monkeypatch.setenv("VPRM_SEARCH_VLLM_TENANTS", text)
    with pytest.raises(ValueError, match=r"tenant|TENANTS") as refused:
        load("access_middleware").tenants()
    assert "canary" not in str(refused.value)


def test_names_and_salts_of_tenants_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VPRM_SEARCH_VLLM_KEY", "k")
    names = load("images").ImageNames("rule")
    found = {names.name(d, t) for d in ("x", "y") for t in ("", "ann", "bob", 'ann", "x')}
    found |= {names.salt(s, t) for s in (None, "x", "y") for t in ("ann", "bob")}
    assert len(found) == 8 + 6
    assert names.salt(None) is None  # one tenant: what the client chose
    assert names.salt("x") == "x"


def test_names_depend_on_key_rule_and_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    names = load("images").ImageNames
    monkeypatch.setenv("VPRM_SEARCH_VLLM_KEY", "k")
    assert names("rule").name("sha256-a") == names("rule").name("sha256-a")
    others = {names("rule").name("sha256-a"), names("rule").name("sha256-b")}
    others |= {names("other rule").name("sha256-a")}
    monkeypatch.setenv("VPRM_SEARCH_VLLM_KEY", "l")
    others |= {names("rule").name("sha256-a")}
    monkeypatch.delenv("VPRM_SEARCH_VLLM_KEY")
    others |= {names("rule").name("sha256-a"), names("rule").name("sha256-a")}
    assert len(others) == 6  # without a key every process has its own names


REGISTER = """
import os, subprocess, sys, vprm_search_vllm
vprm_search_vllm.register_model()
print(os.environ["VPRM_SEARCH_VLLM_KEY"], flush=True)
if sys.argv[1:]:
    subprocess.run([sys.executable, __file__], check=True)
"""


def test_all_processes_of_a_server_have_the_key_that_the_first_one_drew(tmp_path: Path) -> None:
    (tmp_path / "vllm.py").write_text("class ModelRegistry:\n    register_model = print\n")
    (tmp_path / "register.py").write_text(REGISTER)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{PLUGIN}"}
    environment.pop("VPRM_SEARCH_VLLM_KEY", None)
    keys = []
    for _ in range(2):
        words = [sys.executable, str(tmp_path / "register.py"), "and a child"]
        said = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
        first, child = (line for line in said.stdout.splitlines() if " " not in line)
        assert first == child
        keys.append(first)
    assert keys[0] != keys[1]  # of another server


# --- the way in ---------------------------------------------------------------------------------


class Asked:
    """A planner that remembers what it was given, and an intake for it."""

    def __init__(self, tenants: int = 1) -> None:
        self.known: list[tuple[str, set[str]]] = []
        contract = load("shared.scoring.vllm.contract")
        limits = contract.Limits(max_images=2, kept_image_bytes=8_000_000)
        self.intake = load("intake").RequestIntake(limits, tenants, self.plan)

    def plan(self, body: Any, tenant: str, known: dict[str, Any]) -> Any:
        self.known.append((tenant, set(known)))
        return load("intake").PreparedRequest(load("scoring_requests").RequestPlan())

    async def ask(self, tenant: str, data: Any, **more: Any) -> None:
        raw = json.dumps({"model": "m", "data": data, **more}).encode()
        async with self.intake.prepared(raw, tenant, others=False) as stand_in:
            body = json.loads(stand_in.body)
            assert body["model"] == "m"
            assert self.intake.take(body["data"]) is self.intake.take(body["data"])
        with pytest.raises(load("shared.scoring.vllm.contract").RequestError):
            self.intake.take(body["data"])  # the ticket is used up


async def test_each_tenant_has_its_own_pictures() -> None:
    asked, cat = Asked(tenants=2), picture(40, 30, 1)
    data = scoring_body("q", [cat], [["s"]])
    await asked.ask("ann", data)
    await asked.ask("bob", {**data, "image_data": {}})
    await asked.ask("ann", {**data, "image_data": {}})
    assert asked.known == [("ann", {cat.digest}), ("bob", set()), ("ann", {cat.digest})]
    large = [picture(900, 900, seed) for seed in (1, 2)]  # 2.4 MB each: one fits into half of 8 MB
    await asked.ask("ann", scoring_body("q", large, [["s"]]))
    assert len(asked.intake.images("ann")) == 1
    assert len(asked.intake.images("bob")) == 0


async def test_what_is_refused_on_the_way_in_leaves_nothing() -> None:
    asked, error = Asked(), load("shared.scoring.vllm.contract").RequestError
    good = scoring_body("q", (), [["s"]])
    for data, more in (({}, {}), (good, {"input": 1}), ({**good, "version": True}, {})):
        with pytest.raises(error):
            await asked.ask("", data, **more)
    others = asked.intake.prepared(b'{"messages": []}', "", others=True)
    async with others as passed_on:
        assert passed_on.body == b'{"messages": []}'
    assert asked.known == []


async def test_two_pictures_are_decoded_at_a_time_while_the_event_loop_goes_on() -> None:
    cache, decoders = load("images").ImageCache, load("intake").DECODERS
    asked, lock, running, most = Asked(), threading.Lock(), 0, 0

    class Counting(cache):  # type: ignore[misc, valid-type]
        def checked(self, digest: str, text: str) -> Any:
            nonlocal running, most
            with lock:
                running += 1
                most = max(most, running)
            try:
                return super().checked(digest, text)
            finally:
                with lock:
                    running -= 1

    contract = load("shared.scoring.vllm.contract")
    asked.intake._images[""] = Counting(contract.Limits())
    pictures = [picture(700, 700, seed) for seed in range(8)]
    asking = asyncio.gather(
        *(asked.ask("", scoring_body("q", pictures[n : n + 2], [["s"]])) for n in range(0, 8, 2))
    )
    turns = 0
    while not asking.done():
        await asyncio.sleep(0)
        turns += running > 0
    await asking
    assert most == decoders
    assert turns > 100
    assert all(len(known) == 2 for _, known in asked.known)


# --- requests under way -------------------------------------------------------------------------


async def test_nothing_stays_of_a_request_however_it_ends() -> None:
    pending = load("scoring_requests").RequestsInFlight()
    error = load("shared.scoring.vllm.contract").RequestError
    started = asyncio.Event()

    async def request(name: str, end: str) -> str:
        pending.add(name, name + "!")
        started.set()
        if end == "hang":
            await asyncio.sleep(60)
        if end == "fail":
            raise ValueError(name)
        return str(pending.get(name))

    assert await asyncio.create_task(request("a", "answer")) == "a!"
    with pytest.raises(ValueError, match="b"):
        await asyncio.create_task(request("b", "fail"))
    started.clear()
    hanging = asyncio.create_task(request("c", "hang"))
    await started.wait()
    assert len(pending) == 1
    with pytest.raises(error, match="in use") as refused:
        await asyncio.create_task(request("c", "answer"))
    assert refused.value.status == 409
    assert pending.get("c") == "c!"  # the refused twin has taken nothing away
    hanging.cancel()
    with pytest.raises(asyncio.CancelledError):
        await hanging
    await asyncio.sleep(0)
    assert len(pending) == 0


# --- access -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/pooling", {}, 401),  # vLLM itself asks for the key on /v1 only
        ("/pooling", {b"Authorization": b"Bearer wrong"}, 401),
        ("/pooling", {b"Authorization": b"Basic right"}, 401),
        ("/pooling", {b"authorization": b"right"}, 401),
        ("/metrics", {}, 401),
        ("/v1/models", {b"authorization": b"Bearer "}, 401),
        ("/pooling", {b"authorization": b"Bearer right"}, 503),  # there is no model here
        ("/pooling", {b"authorization": b"Bearer right", b"content-type": b"text/plain"}, 415),
        ("/pooling", {b"authorization": b"Bearer right", b"content-length": b"99"}, 413),
        ("/v1/models", {b"authorization": b"bearer right"}, 200),
        ("/v1/completions", {b"authorization": b"bearer right"}, 404),
        ("/health", {}, 200),
    ],
)
async def test_the_door_of_the_served_model(
    path: str, headers: dict[bytes, bytes], status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VPRM_SEARCH_VLLM_TENANTS", raising=False)
    monkeypatch.setenv("VLLM_API_KEY", "right")
    monkeypatch.setenv("VPRM_SEARCH_VLLM_SERVER", "ours")
    monkeypatch.setenv("VPRM_SEARCH_VLLM_LIMITS", '{"max_body_bytes": 98}')

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"{}", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    given_headers = list({b"content-type": b"application/json", **headers}.items())
    scope = {"type": "http", "path": path, "method": "POST", "headers": given_headers}
    await load("access_middleware").AccessMiddleware(app)(scope, receive, send)
    assert sent[0]["status"] == status
    named = (b"vprm-search-server", b"ours") in sent[0]["headers"]
    assert named == (path == "/health")


def answer_of(status: int, text: bytes) -> list[dict[str, Any]]:
    """Return the messages of a reply, its body in two pieces."""
    return [
        {"type": "http.response.start", "status": status, "headers": []},
        {"type": "http.response.body", "body": text[:9], "more_body": True},
        {"type": "http.response.body", "body": text[9:]},
    ]


RIGHT = answer_of(200, b'{"data": "scores"}')
LOST = answer_of(503, b'{"error": {"message": "Multi-modal processor cache miss."}}')
BUSY = answer_of(503, b'{"error": {"message": "The engine is currently busy."}}')


@pytest.mark.parametrize(
    ("answers", "pictures", "seen"),
    [
        ([RIGHT], 1, RIGHT),
        ([LOST, RIGHT], 1, RIGHT),
        ([LOST, RIGHT], 2, RIGHT),
        ([LOST, BUSY], 1, BUSY),
        ([LOST, LOST], 1, LOST),  # no third time: a server that cannot do it says so
        ([BUSY], 1, BUSY),
        ([LOST], 0, LOST),  # no picture, nothing to send again
    ],
)
async def test_a_picture_that_the_engine_lacks_is_sent_again_under_another_name(
    answers: list[Any], pictures: int, seen: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("VLLM_API_KEY", "VPRM_SEARCH_VLLM_TENANTS", "VPRM_SEARCH_VLLM_LIMITS"):
        monkeypatch.delenv(variable, raising=False)
    intake, contract = load("intake"), load("shared.scoring.vllm.contract")
    shown = {"multi_modal_uuids": {"image": [f"picture {n}" for n in range(pictures)]}}
    prompts = tuple({"prompt_token_ids": [n], **(shown if pictures else {})} for n in range(3))

    def plan(body: Any, tenant: str, known: Any) -> Any:
        return intake.PreparedRequest(load("scoring_requests").RequestPlan(), prompts)

    kept = intake.RequestIntake(contract.Limits(), 1, plan)
    monkeypatch.setattr(intake, "_intake", kept)
    asked: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert "route" not in scope
        scope["route"] = "vLLM's"
        asked.append(kept.take(json.loads((await receive())["body"])["data"]))
        assert await receive() == {"type": "http.disconnect"}
        for message in answers[len(asked) - 1]:
            await send(message)

    raw = json.dumps({"data": scoring_body("q", (), [["s"]])}).encode()
    coming = [{"type": "http.disconnect"}] * 2 + [{"type": "http.request", "body": raw}]
    sent: list[Any] = []

    async def receive() -> Any:
        return coming.pop()

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "path": "/pooling", "method": "POST", "headers": headers}
    await load("access_middleware").AccessMiddleware(app)(scope, receive, send)
    assert sent == seen
    assert len(asked) == len(answers)
    assert asked[0].prompts == prompts
    names = [
        {tuple(p["multi_modal_uuids"]["image"]) for p in request.prompts}
        for request in asked
        if pictures
    ]
    assert all(len(found) == 1 for found in names)  # one picture's name in all prompts
    assert len(set.union(set(), *names)) == len(names)  # and never again
    for request in asked:
        assert [p["prompt_token_ids"] for p in request.prompts] == [[0], [1], [2]]
