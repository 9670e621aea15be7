"""The prefix cache is really used, and what it leaves out is said and can be asked again."""

from __future__ import annotations

import pytest

from tests.serving.problems import world_round
from tests.serving.server import PrmServer, scoring_body
from vprm_search.cli.vllm_server import CPU_BLOCK_TOKENS
from vprm_search.scoring.transformers_scorer import TransformersScorer

pytestmark = pytest.mark.slow

BLOCK = CPU_BLOCK_TOKENS


def test_a_repeated_request_is_read_from_the_cache_and_left_out(
    prm_server: PrmServer, in_process: TransformersScorer
) -> None:
    round_ = world_round(20, paths=1)
    long = tuple(f"{step} So far so good." for step in round_.paths[0] * 4)
    body = scoring_body(round_.question, round_.images, [long], cache_salt="repeat")

    def ask(**changed: object) -> tuple[list[float | None], float]:
        before = prm_server.metrics()["prefix_cache_hits_total"]
        scores = prm_server.post({**body, **changed})["scores"][0]
        return scores, prm_server.metrics()["prefix_cache_hits_total"] - before

    fresh, hits = ask()
    assert None not in fresh
    assert hits == 0
    again, hits = ask()
    assert hits >= BLOCK
    assert hits % BLOCK == 0
    left_out = [number for number, score in enumerate(again) if score is None]
    assert left_out
    assert left_out == list(range(len(left_out)))  # exactly the beginning
    for before, after in zip(fresh, again, strict=True):
        assert after is None or after == pytest.approx(before, rel=0, abs=1e-5)

    for other in ({"cache_salt": "another"}, {"use_prefix_cache": False}):
        whole, hits = ask(**other)
        assert hits == 0
        assert whole == pytest.approx(fresh, rel=0, abs=1e-5)


def test_siblings_share_their_prefix_and_fill_each_other(
    prm_server: PrmServer, in_process: TransformersScorer
) -> None:
    """Eight children of one path: the engine skips the shared part, and no score is missing."""
    round_ = world_round(21, paths=1)
    trunk = tuple(f"{step} That was easy." for step in round_.paths[0] * 3)
    paths = [(*trunk, f"So the answer is {number}.") for number in range(8)]
    body = scoring_body(round_.question, round_.images, paths, cache_salt="siblings")
    before = prm_server.metrics()
    reply = prm_server.post(body)
    after = prm_server.metrics()
    assert all(None not in scores for scores in reply["scores"])
    tokens = reply["prefix_tokens"] + sum(reply["step_tokens"][0])
    asked = after["prefix_cache_queries_total"] - before["prefix_cache_queries_total"]
    hits = after["prefix_cache_hits_total"] - before["prefix_cache_hits_total"]
    assert asked == pytest.approx(8 * tokens, rel=0.05)
    assert hits >= 7 * (tokens // BLOCK - 1) * BLOCK  # all but the first read the shared blocks


def test_the_next_round_of_a_search_computes_little_more_than_its_new_steps(
    prm_server: PrmServer,
) -> None:
    round_ = world_round(22, paths=1)
    steps = tuple(f"{step} As the picture shows." for step in round_.paths[0] * 3)
    seen: list[float] = []
    for depth in range(1, len(steps) + 1):
        body = scoring_body(round_.question, round_.images, [steps[:depth]], cache_salt="rounds")
        before = prm_server.metrics()["prompt_tokens_cached_total"]
        reply = prm_server.post(body)
        assert reply["scores"][0][-1] is not None  # the new step is never left out
        total = reply["prefix_tokens"] + sum(reply["step_tokens"][0])
        cached = prm_server.metrics()["prompt_tokens_cached_total"] - before
        seen.append(total - cached)
        if depth > 1:
            assert total - cached <= reply["step_tokens"][0][-1] + 2 * BLOCK
    assert max(seen[1:]) < sum(seen) / 2


def test_tenants_with_their_own_salt_share_nothing(prm_server: PrmServer) -> None:
    round_ = world_round(23, paths=2)
    long = [tuple(step * 6 for step in path) for path in round_.paths]
    hits = []
    for salt in ("tenant one", "tenant two", "tenant one"):
        before = prm_server.metrics()["prefix_cache_hits_total"]
        prm_server.post(scoring_body(round_.question, round_.images, long[:1], cache_salt=salt))
        hits.append(prm_server.metrics()["prefix_cache_hits_total"] - before)
    assert hits[:2] == [0, 0]
    assert hits[2] > 0
