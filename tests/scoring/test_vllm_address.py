"""Whom `VllmScorer` talks to: address, key, model, route, event loops."""

from __future__ import annotations

import asyncio
import logging
import threading

import pytest

from tests.scoring.vllm_double import IDENTITY, expected_of, picture, request, serving
from vprm_search.errors import ConfigError, ModelChangedError, ScorerError
from vprm_search.scoring import CachedScorer, PrmLayout, VllmOptions, VllmScorer
from vprm_search.tiny.weights import weights_path
from vprm_search.types import ScoreResult

QUICK = VllmOptions(first_wait_s=0.0, poll_s=0.01, startup_wait_s=0.3)


def values(results: list[ScoreResult]) -> list[list[float | None]]:
    return [[score.value for score in result.scores] for result in results]


def test_the_identity_is_asked_for_when_it_is_needed_and_makes_memo_keys() -> None:
    with serving() as server:
        scorer = VllmScorer(server.url, options=QUICK)
        memo = CachedScorer(scorer)
        assert memo.identity == scorer.identity == IDENTITY
        asked = [request("q?", ["a", "b"])]
        for _ in range(3):
            assert values(asyncio.run(memo.score(asked))) == [expected_of(asked[0])]
        assert len(server.asked) == 1


async def test_the_identity_can_be_asked_for_inside_a_running_loop() -> None:
    with serving() as server:
        assert VllmScorer(server.url, options=QUICK).identity == IDENTITY


async def test_another_model_in_mid_search_is_an_error_and_stays_one() -> None:
    with serving() as server:
        async with VllmScorer(server.url, options=QUICK) as scorer:
            await scorer.score([request("q?", ["a"])])
            server.identity = "model-two"
            for _ in range(2):
                with pytest.raises(ModelChangedError, match="model-two"):
                    await scorer.score([request(f"{n}?", ["a"]) for n in range(4)])
            server.identity = IDENTITY
            assert values(await scorer.score([request("q?", ["b"])])) == [
                expected_of(request("q?", ["b"]))
            ]


async def test_a_named_identity_or_layout_must_be_the_servers() -> None:
    with serving() as server:
        await VllmScorer(server.url, options=QUICK, identity=IDENTITY).connect()
        await VllmScorer(server.url, options=QUICK, layout=PrmLayout()).connect()
        with pytest.raises(ConfigError, match="other-model"):
            await VllmScorer(server.url, options=QUICK, identity="other-model").connect()
        layout = PrmLayout(system_prompt="another")
        with pytest.raises(ConfigError, match="layout"):
            await VllmScorer(server.url, options=QUICK, layout=layout).connect()


async def test_a_model_that_is_not_served_is_named_with_those_that_are() -> None:
    with serving() as server, pytest.raises(ConfigError, match=r"no model 'gpt'.*'prm'"):
        await VllmScorer(server.url, options=QUICK, model="gpt").score([request("q?", ["a"])])


async def test_a_server_without_the_plugin_says_what_is_needed() -> None:
    with serving(plugin=False) as server:
        scorer = VllmScorer(server.url, options=QUICK)
        with pytest.raises(ConfigError, match=r"No IOProcessor.*tokenizer=PATH"):
            await scorer.connect()


async def test_a_server_that_can_only_generate_says_how_to_start_one_that_scores() -> None:
    with serving(pooling=False) as server:
        for tokenizer in (None, weights_path("prm")):
            scorer = VllmScorer(server.url, options=QUICK, tokenizer=tokenizer)
            with pytest.raises(
                ConfigError, match=r"only write text.*`vprm-search serve`.*--runner"
            ):
                await scorer.connect()


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
async def test_the_address_may_end_as_people_write_it(suffix: str) -> None:
    with serving() as server:
        async with VllmScorer(server.url + suffix, options=QUICK) as scorer:
            assert scorer.route == "plugin"


async def test_which_route_is_used_is_told_and_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with serving() as server, caplog.at_level(logging.INFO, logger="vprm_search"):
        scorer = VllmScorer(server.url, options=QUICK)
        await asyncio.gather(*(scorer.score([request(f"{n}?", ["a"])]) for n in range(5)))
        await scorer.aclose()
    assert scorer.route == "plugin"
    lines = [r.getMessage() for r in caplog.records if r.name.startswith("vprm_search")]
    assert lines == [f"{server.url} serves prm by route plugin"]


async def test_the_key_is_sent_and_never_shown(caplog: pytest.LogCaptureFixture) -> None:
    key = "canary-key-0123456789"
    with serving(api_key=key) as server, caplog.at_level(logging.DEBUG):
        async with VllmScorer(server.url, options=QUICK, api_key=key) as scorer:
            assert values(await scorer.score([request("q?", ["a"])])) == [
                expected_of(request("q?", ["a"]))
            ]
        shown = [repr(scorer), repr(vars(scorer)), caplog.text]
        wrong = "wrong-" + key
        with pytest.raises(ScorerError, match="401") as caught:
            await VllmScorer(server.url, options=QUICK, api_key=wrong).connect()
        shown += [str(caught.value), repr(caught.value.__cause__)]
    assert all(key not in text for text in shown)
    with pytest.raises(ConfigError) as refused:
        VllmScorer(server.url, api_key=f"{key}\r\nx-evil: 1")
    assert key not in str(refused.value)


async def test_proxies_of_the_environment_are_not_used_unless_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with serving() as server, serving() as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        async with VllmScorer(server.url, options=QUICK) as scorer:
            await scorer.score([request("q?", ["a"])])
        assert proxy.connections == 0
        through = QUICK.model_copy(update={"env_proxies": True})
        with pytest.raises(ScorerError):  # the double is no proxy, but it was asked
            await VllmScorer(server.url, options=through).connect()
        assert proxy.connections > 0


def test_threads_with_loops_of_their_own_share_one_scorer() -> None:
    image = picture("threads")
    wrong: list[object] = []
    with serving(work_s=0.005) as server:
        scorer = VllmScorer(server.url, options=QUICK)

        def work(number: int) -> None:
            async def rounds() -> None:
                for depth in range(4):
                    asked = [request(f"{number}?", ["s"] * (depth + 1), image)]
                    if values(await scorer.score(asked)) != [expected_of(asked[0])]:
                        wrong.append(number)

            try:
                asyncio.run(rounds())
            except BaseException as error:
                wrong.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        asyncio.run(scorer.aclose())
        assert wrong == []
        assert scorer.meter.requests >= 25
        assert len(server.asked) == 24


async def test_a_closed_scorer_opens_again() -> None:
    with serving() as server:
        scorer = VllmScorer(server.url, options=QUICK)
        for _ in range(2):
            await scorer.score([request("q?", ["a"])])
            await scorer.aclose()
        assert server.connections >= 2


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1:8000",
        "ftp://host",
        "http://",
        "http://user:secret@host:1",
        "http://host:99999",
        "http://host/?key=1",
        "http://host/#x",
        "http://ho st",
        "",
        "file:///etc/passwd",
    ],
)
def test_an_address_that_cannot_be_used_is_refused(address: str) -> None:
    with pytest.raises(ConfigError) as caught:
        VllmScorer(address)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("options", [{"cache_salt": ""}, {"route": "magic"}, {"route": "pooling"}])
def test_options_that_cannot_be_are_refused(options: dict[str, str]) -> None:
    with pytest.raises(ConfigError):
        VllmScorer("http://127.0.0.1:1", **options)  # type: ignore[arg-type]


def test_a_double_is_what_the_tests_say() -> None:
    assert expected_of(request("q", ["a", "b"]))[:1] == expected_of(request("q", ["a"]))
    assert expected_of(request("q", ["a"])) != expected_of(request("q", ["a"], picture("p")))
