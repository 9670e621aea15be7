"""`vprm-search serve` as an operator runs it, with two tenants: one real server for all tests."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.serving.problems import world_round
from tests.serving.server import CPU_ENVIRONMENT, free_port, metrics, scoring_body
from tests.serving.test_served_contract import noise
from vprm_search.errors import ScorerError
from vprm_search.scoring import TransformersScorer, VllmOptions, VllmScorer
from vprm_search.tiny.weights import weights_path

pytestmark = pytest.mark.slow

ANN, BOB = "canary-of-ann", "canary-of-bob"
SHARED_MEMORY = Path("/dev/shm")


@dataclass
class Operated:
    """A server that runs under `vprm-search serve`, and what belongs to it."""

    url: str
    port: int
    child: subprocess.Popen[bytes]
    log: Path
    said: Path

    def post(self, key: str, body: dict[str, Any]) -> httpx.Response:
        headers = {"Authorization": f"Bearer {key}"}
        return httpx.post(f"{self.url}/pooling", json=body, headers=headers, timeout=120)

    def score(self, key: str, data: dict[str, Any]) -> dict[str, Any]:
        reply = self.post(key, {"model": "prm", "data": data})
        assert reply.status_code == 200, reply.text
        found: dict[str, Any] = reply.json()["data"]
        return found

    def cached_tokens(self, key: str) -> float:
        headers = {"Authorization": f"Bearer {key}"}
        return metrics(httpx.get(f"{self.url}/metrics", headers=headers).text)[
            "prompt_tokens_cached_total"
        ]


def serve_words(port: int, *more: str) -> list[str]:
    words = ["serve", str(weights_path("prm")), "--port", str(port), *more]
    return [sys.executable, "-c", "from vprm_search.cli import main; main()", *words]


@pytest.fixture(scope="module")
def operated(vllm_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operated]:
    """The server."""
    folder, port = tmp_path_factory.mktemp("operated"), free_port()
    log, said = folder / "vllm.log", folder / "said"
    more = ["--log", str(log), "--vllm-python", str(vllm_python), "--all-routes"]
    more += ["--dtype", "float32", "--enforce-eager"]
    tenants = {"VPRM_SEARCH_VLLM_TENANTS": json.dumps({"ann": ANN, "bob": BOB})}
    with said.open("wb") as output:
        child = subprocess.Popen(
            serve_words(port, *more),
            env={**os.environ, **CPU_ENVIRONMENT, **tenants},
            stderr=output,
        )
    try:
        end = time.monotonic() + 600
        while "ready after" not in said.read_text():
            assert child.poll() is None, said.read_text()
            assert time.monotonic() < end
            time.sleep(0.2)
        yield Operated(f"http://127.0.0.1:{port}", port, child, log, said)
    finally:
        if child.poll() is None:
            child.send_signal(signal.SIGTERM)
            child.wait(60)


def test_a_second_server_on_the_port_is_refused_at_once_and_the_first_lives_on(
    operated: Operated,
) -> None:
    done = subprocess.run(serve_words(operated.port), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"port {operated.port} of 127.0.0.1 is taken" in " ".join(done.stderr.split())
    assert "ready" not in done.stderr
    assert httpx.get(f"{operated.url}/health").status_code == 200


def test_a_key_is_wanted_and_a_wrong_one_is_told_as_such(operated: Operated) -> None:
    body = {"model": "prm", "data": scoring_body("What is 2 + 3?", (), [["2 + 3 = 5"]])}
    for key in ("none", "wrong", ANN.upper()):
        assert operated.post(key, body).status_code == 401
    assert httpx.post(f"{operated.url}/v1/chat/completions", json={}).status_code == 401
    assert 0 <= operated.score(ANN, body["data"])["scores"][0][0] <= 1
    options = VllmOptions(startup_wait_s=1)
    with pytest.raises(ScorerError, match="the key it was started with") as refused:
        assert VllmScorer(operated.url, api_key="wrong", options=options).identity
    assert "vprm-search serve" not in str(refused.value)
    assert VllmScorer(operated.url, api_key=BOB, options=options).route == "plugin"


def test_a_tenant_learns_nothing_of_the_pictures_of_another(
    operated: Operated, in_process: TransformersScorer
) -> None:
    round_ = world_round(50, paths=1)
    body = scoring_body(round_.question, round_.images, [round_.paths[0] * 4], cache_salt="salt")
    expected = [s.value for s in in_process.score_sync(round_.requests())[0].scores]
    alone = {**body, "image_data": {}}
    for _ in range(2):
        assert operated.score(ANN, body)["scores"][0]  # kept, and in the prefix cache
    (digest,) = (image.digest for image in round_.images)
    for salt in (None, "salt", "other"):
        asked = {**alone, "cache_salt": salt}
        assert operated.score(BOB, asked) == {"version": 1, "missing_images": [digest]}
    counts = [
        operated.score(key, {"version": 1, "describe": True})["images_kept"] for key in (ANN, BOB)
    ]
    assert counts == [1, 0]
    before = operated.cached_tokens(ANN)
    found = operated.score(BOB, body)["scores"][0]  # the very request, with its salt
    assert None not in found  # every row was computed
    assert operated.cached_tokens(ANN) == before
    assert found[: len(expected)] == pytest.approx(expected, rel=0, abs=1e-5)
    assert "scores" in operated.score(ANN, alone)
    text = scoring_body("What is 2 + 3?" * 30, (), [["2 + 3 = 5"] * 20])
    for key, shared in ((ANN, False), (BOB, False), (ANN, True)):  # without a picture as well
        before = operated.cached_tokens(ANN)
        operated.score(key, text)
        assert (operated.cached_tokens(ANN) > before) == shared


def test_a_name_chosen_on_another_route_does_not_poison_an_image(
    operated: Operated, in_process: TransformersScorer
) -> None:
    """vLLM's chat route, open here, lets clients name images; none of those names is ours."""
    fresh = world_round(41, paths=1)
    (image,) = fresh.images
    url = f"data:image/png;base64,{base64.b64encode(noise(5).png).decode()}"
    part = {"type": "image_url", "image_url": {"url": url}, "uuid": image.digest}
    chat = {"model": "prm", "messages": [{"role": "user", "content": [part]}]}
    assert operated.post(ANN, chat).status_code == 200
    assert operated.post(ANN, {**chat, "data": {}}).status_code == 400
    expected = [s.value for s in in_process.score_sync(fresh.requests())[0].scores]
    found = operated.score(ANN, scoring_body(fresh.question, fresh.images, fresh.paths))
    assert found["scores"][0] == pytest.approx(expected, rel=0, abs=1e-5)


def test_the_user_ends_it_and_nothing_is_left(operated: Operated) -> None:
    """The last test here: the log is its owner's, without a key, and shared memory is free."""
    ours = shared_memory_below(operated.child.pid)
    assert ours  # between the engine and its worker
    operated.child.send_signal(signal.SIGTERM)
    assert operated.child.wait(60) == 0
    assert stat.S_IMODE(operated.log.stat().st_mode) == 0o600
    assert "canary" not in operated.log.read_text() + operated.said.read_text()
    with pytest.raises(httpx.ConnectError):
        httpx.get(operated.url)
    assert not [name for name in ours if (SHARED_MEMORY / name).exists()]


def shared_memory_below(parent: int) -> set[str]:
    """Return the names of the shared memory that descendants of a process have mapped."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    found: set[str] = set()
    for child in map(int, children):
        maps = Path(f"/proc/{child}/maps").read_text()
        found |= set(re.findall(r"/dev/shm/(psm_\w+)$", maps, re.MULTILINE))
        found |= shared_memory_below(child)
    return found
