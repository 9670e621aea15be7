"""The real server against bad, hostile and vanishing clients: it says what is wrong, lives on."""

from __future__ import annotations

import base64
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.serving.conftest import LIMITS
from tests.serving.problems import world_round
from tests.serving.server import PrmServer, scoring_body
from vprm_search.images import normalise_image
from vprm_search.scoring.transformers_scorer import TransformersScorer
from vprm_search.types import ImageData

pytestmark = pytest.mark.slow

ROUND = world_round(40, paths=3)


def noise(seed: int, side: int = 64) -> ImageData:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return normalise_image(Image.fromarray(pixels))


def good_body(**changed: Any) -> dict[str, Any]:
    return {**scoring_body(ROUND.question, ROUND.images, ROUND.paths), **changed}


@pytest.fixture(autouse=True)
def still_right(prm_server: PrmServer, in_process: TransformersScorer) -> Iterator[None]:
    """Whatever a test did: afterwards the server gives the right scores and holds no request."""
    yield
    expected = [[s.value for s in r.scores] for r in in_process.score_sync(ROUND.requests())]
    reply = prm_server.post(good_body(use_prefix_cache=False))
    for found, values in zip(reply["scores"], expected, strict=True):
        assert found == pytest.approx(values, rel=0, abs=1e-5)
    assert prm_server.post({"version": 1, "describe": True})["requests_under_way"] == 0


def test_it_says_what_it_is(prm_server: PrmServer, in_process: TransformersScorer) -> None:
    found = prm_server.post({"version": 1, "describe": True})
    assert found["version"] == 1
    assert found["model"] == prm_server.model
    assert found["layout"] == in_process.layout.model_dump(mode="json")
    assert found["dtype"] == "float32"
    assert found["max_model_len"] == in_process.checkpoint.max_tokens
    assert found["limits"]["max_images"] == 4
    assert found["limits"].items() >= LIMITS.items()
    assert found["identity"] == prm_server.post(good_body())["identity"] == in_process.identity


def test_missing_images_are_named_and_those_that_came_are_kept(prm_server: PrmServer) -> None:
    cat, dog = noise(1), noise(2)
    body = scoring_body("q", [cat, dog], [["s"]])
    data = body["image_data"]
    missing = prm_server.post({**body, "image_data": {}})
    assert missing == {"version": 1, "missing_images": [cat.digest, dog.digest]}
    half = {**body, "image_data": {cat.digest: data[cat.digest]}}
    assert prm_server.post(half)["missing_images"] == [dog.digest]
    half = {**body, "image_data": {dog.digest: data[dog.digest]}}
    scores = prm_server.post(half)["scores"]
    assert prm_server.post({**body, "image_data": {}, "cache_salt": "x"})["scores"] == [
        pytest.approx(scores[0], rel=0, abs=1e-5)
    ]


def test_bytes_of_another_image_are_refused(prm_server: PrmServer) -> None:
    cat, dog = noise(3), noise(4)
    body = scoring_body("q", [cat], [["s"]])
    wrong = {**body, "image_data": {cat.digest: base64.b64encode(dog.png).decode()}}
    assert "another image" in prm_server.post(wrong, status=400)["message"]
    assert "missing_images" in prm_server.post({**body, "image_data": {}})


def test_bytes_sent_with_a_digest_that_is_kept_are_checked(prm_server: PrmServer) -> None:
    cat, dog = noise(6), noise(7)
    body = scoring_body("q", [cat], [["s"]])
    scores = prm_server.post(body)["scores"]
    wrong = {**body, "image_data": {cat.digest: base64.b64encode(dog.png).decode()}}
    assert "another image" in prm_server.post(wrong, status=400)["message"]
    assert prm_server.post({**body, "cache_salt": "again"})["scores"] == [
        pytest.approx(scores[0], rel=0, abs=1e-5)
    ]


@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({"version": 7}, 400),
        ({"version": True}, 400),
        ({"version": 1.0}, 400),
        ({"paths": []}, 400),
        ({"paths": [[]]}, 400),
        ({"paths": [[3]]}, 400),
        ({"question": None}, 400),
        ({"images": ["../../etc/passwd"]}, 400),
        ({"images": ["http://127.0.0.1:9/x.png"]}, 400),
        ({"image_data": {"sha256-" + "0" * 64: "AAAA"}}, 400),
        ({"surprise": 1}, 400),
        ({"paths": [["s"]] * 257}, 413),
        ({"paths": [["s"] * 257]}, 413),
        ({"paths": [["s" * 64_001]]}, 413),
        ({"question": "q" * 200_001}, 413),
        ({"images": ["sha256-" + str(n) * 64 for n in range(5)], "image_data": {}}, 413),
        ({"paths": [["a b c d e f g h " * 30]] * 256}, 413),  # max_tokens
    ],
)
def test_bad_requests_get_a_4xx_with_a_reason(
    prm_server: PrmServer, changed: dict[str, Any], status: int
) -> None:
    message = prm_server.post(good_body(**changed), status=status)["message"]
    assert len(message) < 500
    assert "Traceback" not in message


def test_a_huge_body_is_refused_without_being_read(prm_server: PrmServer) -> None:
    limit = LIMITS["max_body_bytes"]
    headers = {"content-type": "application/json"}
    with prm_server.client() as client:
        reply = client.post("/pooling", content=b" " * (limit + 1), headers=headers)
        assert reply.status_code == 413

        def chunks() -> Iterator[bytes]:  # no length is announced
            for _ in range(limit // 100_000 + 2):
                yield b" " * 100_000

        assert client.post("/pooling", content=chunks(), headers=headers).status_code == 413


FILE = {"type": "image_url", "image_url": {"url": "file:///etc/hostname"}}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("", "no JSON"),
        ("{", "no JSON"),
        ("[1", "no JSON"),
        ("null", "must be an object"),
        ("\x00", "no JSON"),
        ('{"data": NaN}', "NaN is no number"),
        ('{"data": {}}', "data.version"),
        ('{"data": {"version": 1, "describe": true, "describe": true}}', "'describe' twice"),
        ('{"data": {"version": 1, "describe": true}, "data": {}}', "'data' twice"),
        ({"data": good_body(), "input": "x"}, "holds 'input'"),
        ({"data": good_body(), "truncate_prompt_tokens": 5}, "holds 'truncate_prompt_tokens'"),
        ({"data": good_body(), "mm_processor_kwargs": {}}, "holds 'mm_processor_kwargs'"),
        ({"messages": [{"role": "user", "content": [FILE]}]}, "holds 'messages'"),
        ({"messages": [{"role": "user", "content": "hi"}], "model": "prm"}, "holds 'messages'"),
        ({"input": [1, 2, 3]}, "holds 'input'"),
        ({"data": {"ticket": "0" * 32}}, "data.version"),
    ],
)
def test_what_is_no_scoring_request_is_refused_in_one_line(
    prm_server: PrmServer, body: str | dict[str, Any], said: str
) -> None:
    text = body if isinstance(body, str) else json.dumps(body)
    before = prm_server.log.stat().st_size
    with prm_server.client() as client:
        headers = {"content-type": "application/json"}
        reply = client.post("/pooling", content=text.encode(), headers=headers)
    assert reply.status_code == 400
    message = reply.json()["error"]["message"]
    assert said in message
    assert len(message) < 300
    assert "\n" not in message
    with prm_server.log.open("rb") as log:
        log.seek(before)
        assert b"Traceback" not in log.read()


def test_a_body_that_is_not_called_json_is_refused(prm_server: PrmServer) -> None:
    with prm_server.client() as client:
        reply = client.post("/pooling", content=b"{}", headers={"content-type": "text/plain"})
    assert reply.status_code == 415
    assert "application/json" in reply.json()["error"]["message"]


def test_health_is_answered_while_large_pictures_are_decoded(prm_server: PrmServer) -> None:
    """39 megapixels each; the last one is another picture, so no engine's work is in between."""
    pictures = [normalise_image(Image.new("RGB", (6500, 6000), (n, 0, 0))) for n in range(3)]
    body = scoring_body("q", pictures, [["s"]])
    body["image_data"][pictures[2].digest] = base64.b64encode(noise(8).png).decode()
    answered = 0
    with ThreadPoolExecutor(1) as pool, prm_server.client() as client:
        client.get("/health")
        asking = pool.submit(prm_server.post, body, status=400)
        time.sleep(0.05)
        while not asking.done():
            assert client.get("/health").status_code == 200
            answered += 1
        assert "another image" in asking.result()["message"]
    assert answered > 20


def test_one_path_that_is_too_long_costs_only_itself(
    prm_server: PrmServer, in_process: TransformersScorer
) -> None:
    checkpoint = in_process.checkpoint
    limit = checkpoint.max_tokens
    tokens = checkpoint.tokens_per_tile

    def filled(size: int) -> str:
        """Return a step that makes a path of exactly `size` scored tokens."""
        count = size - len(checkpoint.builder.build("q", ["1"], [tokens]).scored_ids)
        step = "1" * (count + 1)
        assert len(checkpoint.builder.build("q", [step], [tokens]).scored_ids) == size
        return step

    paths = [["1"], [filled(limit)], [filled(limit + 1)], ["2", "3"]]
    reply = prm_server.post(scoring_body("q", ROUND.images, paths, cache_salt="long"))
    assert list(reply["failures"]) == ["2"]
    assert reply["failures"]["2"].startswith(f"too_long: problem and solution take {limit + 1} ")
    assert reply["scores"][2] == [None]
    assert all(None not in reply["scores"][number] for number in (0, 1, 3))
    only = prm_server.post(scoring_body("q", ROUND.images, [paths[2]]))
    assert only["scores"] == [[None]]
    assert list(only["failures"]) == ["0"]


def leave_after(server: PrmServer, body: dict[str, Any], seconds: float) -> None:
    """Send a request and go away without having read a byte of its answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.options.port)
    text = json.dumps({"model": server.model, "data": body})
    connection.request("POST", "/pooling", text, {"content-type": "application/json"})
    time.sleep(seconds)
    connection.close()


def test_clients_that_go_away_leave_nothing_behind(
    prm_server: PrmServer, in_process: TransformersScorer
) -> None:
    """They leave at all times, from before their request is read to after it is answered.

    Two at a time send a new picture each; whoever asks about it next, another client's leaving
    still under way, gets the right scores.
    """
    clients = 24
    rounds = [world_round(400 + number, paths=3) for number in range(clients // 2)]

    def asked(number: int) -> list[list[float]]:
        about = rounds[number]
        body = scoring_body(about.question, about.images, about.paths, use_prefix_cache=False)
        scores: list[list[float]] = prm_server.post(body)["scores"]
        return scores

    def leave_and_ask(client: int) -> list[list[float]]:
        text = f"{client} " * 100
        paths = [[f"{text}{path}"] for path in range(64)]
        body = scoring_body("q", rounds[client // 2].images, paths, cache_salt=f"gone {client}")
        leave_after(prm_server, body, 0.001 * 1000 ** (client / (clients - 1)))  # 1 ms to 1 s
        return asked(client // 2)

    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(leave_and_ask, range(clients)))
    prm_server.wait_until_idle()
    end = time.monotonic() + 30
    while prm_server.post({"version": 1, "describe": True})["requests_under_way"]:
        assert time.monotonic() < end
        time.sleep(0.2)
    assert prm_server.metrics()["kv_cache_usage_perc"] == 0
    for number, about in enumerate(rounds):
        expected = [[s.value for s in r.scores] for r in in_process.score_sync(about.requests())]
        later = asked(number)
        for path, values in enumerate(expected):
            assert later[path] == pytest.approx(values, rel=0, abs=1e-5)
            for client in (2 * number, 2 * number + 1):
                assert found[client][path] == pytest.approx(later[path], rel=0, abs=1e-6)


def test_no_url_is_ever_fetched(prm_server: PrmServer) -> None:
    seen: list[bytes] = []
    with socket.socket() as canary:
        canary.bind(("127.0.0.1", 0))
        canary.listen()
        canary.settimeout(3)
        address = f"127.0.0.1:{canary.getsockname()[1]}"

        def listen() -> None:
            try:
                connection, _ = canary.accept()
            except TimeoutError:
                return
            seen.append(connection.recv(100))
            connection.close()

        thread = threading.Thread(target=listen)
        thread.start()
        with prm_server.client() as client:
            for url in (f"http://{address}/a.png", "file:///etc/hostname"):
                part = {"type": "image_url", "image_url": {"url": url}}
                messages = [{"role": "user", "content": [part]}]
                reply = client.post("/pooling", json={"messages": messages})
                assert reply.status_code >= 400
        thread.join()
    assert not seen


def test_routes_that_scoring_does_not_need_are_gone(prm_server: PrmServer) -> None:
    with prm_server.client() as client:
        for path in ("/tokenize", "/invocations", "/v1/systemone", "/docs", "/openapi.json", "/"):
            assert client.post(path, json={}).status_code == 404
            assert client.get(path).status_code == 404
        for path in ("/health", "/metrics", "/v1/models", "/version"):
            assert client.get(path).status_code == 200
