"""What `VllmScorer` sends, and what it makes of a well-behaved server's answers."""

from __future__ import annotations

from tests.scoring.vllm_double import expected_of, picture, request, serving
from vprm_search.scoring import VllmOptions, VllmScorer
from vprm_search.scoring.reasons import IMAGE_MISSING, NO_SCORE
from vprm_search.types import Problem, ScoreRequest, ScoreResult, StepScorer

QUICK = VllmOptions(first_wait_s=0.0, poll_s=0.01, startup_wait_s=0.3)


def values(results: list[ScoreResult]) -> list[list[float | None]]:
    return [[score.value for score in result.scores] for result in results]


async def test_a_problem_travels_in_one_post_and_results_keep_their_places() -> None:
    image, other = picture("one"), picture("two")
    asked = [
        request("first?", ["a", "b"], image),
        request("second?", ["a"], image, other),
        request("first?", ["a"], image),  # the beginning of another path
        request("first?", ["a", "b"], image),  # the same path again
        request("first?", ["a", "b"]),  # the same question without its picture
        request("first?", [], image),
        request("second?", ["x", "y", "z"], image, other),
    ]
    with serving() as server:
        async with VllmScorer(server.url, options=QUICK) as scorer:
            assert isinstance(scorer, StepScorer)
            results = await scorer.score(asked)
        assert values(results) == [expected_of(one) for one in asked]
        assert [r.prefix_tokens for r in results] == [15, 20, 15, 15, 10, 0, 20]
        assert results[0].step_tokens == (8, 8)
        assert sorted(len(data["paths"]) for data in server.asked) == [1, 2, 2]
        assert scorer.meter.requests == 4  # one of them asked what the server is


async def test_the_bytes_of_an_image_travel_once_and_its_digest_afterwards() -> None:
    image = picture("shared")
    with serving(work_s=0.02) as server:
        async with VllmScorer(server.url, options=QUICK) as scorer:
            first = [request(f"question {n}?", ["a"], image) for n in range(8)]
            again = [request(f"question {n}?", ["a", "b"], image) for n in range(8)]
            for asked in (first, again):
                assert values(await scorer.score(asked)) == [expected_of(one) for one in asked]
        assert server.pixels_sent == [image.digest]
        assert scorer.meter.image_bytes_sent == len(image.png)
        assert (scorer.meter.images_sent, scorer.meter.images_resent) == (1, 0)


async def test_images_the_server_lost_are_sent_again_once_for_all_who_need_them() -> None:
    image, other = picture("lost"), picture("kept")
    with serving(work_s=0.02) as server:
        async with VllmScorer(server.url, options=QUICK) as scorer:
            await scorer.score([request("warm?", ["a"], image, other)])
            server.forget()
            asked = [request(f"{n}?", ["a"], image, other) for n in range(6)]
            assert values(await scorer.score(asked)) == [expected_of(one) for one in asked]
        assert sorted(server.pixels_sent) == sorted([image.digest, other.digest] * 2)
        assert scorer.meter.images_resent == 2


async def test_two_replicas_behind_one_address_get_all_images_in_the_end() -> None:
    image, other = picture("left"), picture("right")
    with serving() as server:

        def two_stores(data: dict[str, object]) -> None:
            stores = (left, right)[len(server.asked) % 2]
            server.images = stores

        left: dict[str, bytes] = {}
        right: dict[str, bytes] = {image.digest: image.png}
        server.refuses = lambda data: two_stores(data)
        async with VllmScorer(server.url, options=QUICK) as scorer:
            for number in range(5):
                asked = [request(f"{number}?", ["a"], image, other)]
                assert values(await scorer.score(asked)) == [expected_of(asked[0])]


async def test_a_search_fills_what_the_prefix_cache_leaves_out_from_its_own_memory() -> None:
    path: list[str] = []
    image = picture("deep")
    with serving(caches=True) as server:
        async with VllmScorer(server.url, options=QUICK) as scorer:
            for step in "abcdef":
                path.append(step)
                asked = [request("deep?", [*path, end], image) for end in ("x", "y")]
                assert values(await scorer.score(asked)) == [expected_of(one) for one in asked]
                path.append("x")
        assert len(server.asked) == 6  # never a second request for old steps
        assert scorer.meter.paths_reasked == 0
        assert scorer.meter.steps_filled > 0


async def test_rows_nobody_remembers_are_asked_again_under_a_fresh_salt() -> None:
    image = picture("resumed")
    asked = [request("q?", ["a", "b", "c"], image), request("q?", ["a", "d"], image)]
    with serving(caches=True) as server:
        for round_ in range(2):
            async with VllmScorer(server.url, options=QUICK, cache_salt="mine") as scorer:
                assert values(await scorer.score(asked)) == [expected_of(one) for one in asked]
                assert scorer.meter.paths_reasked == 2 * round_
        assert [data["cache_salt"] for data in server.asked[:2]] == ["mine", "mine"]
        again = server.asked[2]
        assert again["cache_salt"] not in (None, "", "mine")
        assert again["use_prefix_cache"] is False
        assert again["image_data"] == {}


async def test_only_the_steps_up_to_the_last_missing_one_are_asked_again() -> None:
    with serving(caches=True) as server:
        async with VllmScorer(server.url, options=QUICK) as scorer:
            await scorer.score([request("q?", ["a", "b"])])
        async with VllmScorer(server.url, options=QUICK) as scorer:
            asked = [request("q?", ["a", "b", "c", "d"])]
            assert values(await scorer.score(asked)) == [expected_of(asked[0])]
        assert server.asked[-1]["paths"] == [["a", "b"]]


async def test_a_step_without_a_score_has_a_reason_and_leaves_the_others_theirs() -> None:
    asked = [request("q?", ["a", "bad", "c"]), request("q?", ["d"])]
    with serving(never=lambda step: step == "bad") as server:
        async with VllmScorer(server.url, options=QUICK) as scorer:
            first, second = await scorer.score(asked)
    right = expected_of(asked[0])
    assert [s.value for s in first.scores] == [right[0], None, right[2]]
    assert first.scores[1].reason.startswith(NO_SCORE)
    assert [s.value for s in second.scores] == expected_of(asked[1])


async def test_without_the_prefix_cache_the_own_salt_stays() -> None:
    with serving(caches=True) as server:
        options = {"use_prefix_cache": False, "cache_salt": "mine"}
        async with VllmScorer(server.url, options=QUICK, **options) as scorer:
            await scorer.score([request("q?", ["a"])])
            assert values(await scorer.score([request("q?", ["a"])])) == [
                expected_of(request("q?", ["a"]))
            ]
        assert {data["cache_salt"] for data in server.asked} == {"mine"}
        assert {data["use_prefix_cache"] for data in server.asked} == {False}


async def test_images_that_are_not_the_problems_cost_that_request_only() -> None:
    wrong = ScoreRequest(Problem("q?", ("sha256-" + "1" * 64,)), ("a", "b"), ())
    right = request("q?", ["a"])
    with serving() as server:
        async with VllmScorer(server.url, options=QUICK) as scorer:
            results = await scorer.score([wrong, right])
    assert [s.value for s in results[0].scores] == [None, None]
    assert results[0].scores[0].reason.startswith(IMAGE_MISSING)
    assert values(results[1:]) == [expected_of(right)]


async def test_requests_are_bounded_in_number_and_connections_are_used_again() -> None:
    options = QUICK.model_copy(update={"max_concurrency": 3})
    with serving(work_s=0.02) as server:
        async with VllmScorer(server.url, options=options) as scorer:
            for _ in range(3):
                await scorer.score([request(f"{n}?", ["a"]) for n in range(12)])
        assert server.most_at_once == 3
        assert len(server.asked) == 36
        assert server.connections <= 4


async def test_more_paths_than_the_server_takes_are_sent_in_parts() -> None:
    asked = [request("q?", [f"step {n}"]) for n in range(10)]
    with serving(limits={"max_paths": 4}) as server:
        async with VllmScorer(server.url, options=QUICK) as scorer:
            assert values(await scorer.score(asked)) == [expected_of(one) for one in asked]
        assert sorted(len(data["paths"]) for data in server.asked) == [2, 4, 4]


async def test_lone_surrogates_are_replaced_before_they_are_sent() -> None:
    with serving() as server:
        async with VllmScorer(server.url, options=QUICK) as scorer:
            (result,) = await scorer.score([request("q \ud83d?", ["a \udc00"])])
        assert server.asked[0]["question"] == "q \ufffd?"
        assert server.asked[0]["paths"] == [["a \ufffd"]]
        assert result.scores[0].value is not None
