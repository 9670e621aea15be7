"""One request's failure is a value in its place; memory that runs out costs a few more passes."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from tests.scoring.random_internvl import Size, write_checkpoint
from vprm_search.errors import ConfigError, InputError
from vprm_search.images import normalise_image
from vprm_search.scoring import TransformersScorer
from vprm_search.scoring.engine.checkpoint import load_checkpoint
from vprm_search.scoring.engine.forward import TokenBatcher, is_out_of_memory
from vprm_search.scoring.engine.token_tree import TokenPath, build_tree
from vprm_search.types import ImageData, Problem, ScoreRequest, ScoreResult

LIMIT = 400


def picture() -> ImageData:
    return normalise_image(Image.effect_noise((56, 56), 80).convert("RGB"))


PICTURE = picture()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("m"), Size(max_positions=LIMIT), seed=3)


@pytest.fixture
def scorer(path: Path) -> TransformersScorer:
    return TransformersScorer.from_pretrained(path)


def ask(*steps: str, question: str = "What is x?", images: bool = False) -> ScoreRequest:
    if images:
        return ScoreRequest(Problem(question, (PICTURE.digest,)), steps, (PICTURE,))
    return ScoreRequest(Problem(question), steps)


def values(result: ScoreResult) -> list[float | None]:
    return [score.value for score in result.scores]


def assert_scored(result: ScoreResult, steps: int) -> None:
    assert len(result.scores) == steps
    assert all(v is not None and 0 <= v <= 1 for v in values(result))


def assert_failed(result: ScoreResult, steps: int, reason: str) -> None:
    assert values(result) == [None] * steps
    assert all(score.reason.startswith(reason + ":") for score in result.scores)


def longest_that_fits(scorer: TransformersScorer) -> int:
    """Return n so that 'x' * n as the only step gives exactly the limit."""
    build = scorer.checkpoint.builder.build
    sizes = {n: len(build("q", ["9" * n]).scored_ids) for n in range(1, LIMIT)}
    return next(n for n, size in sizes.items() if size == LIMIT)


def test_the_length_limit_is_exact_and_costs_only_that_request(scorer: TransformersScorer) -> None:
    n = longest_that_fits(scorer)
    requests = [
        ask("a", question="q"),
        ask("9" * n, question="q"),
        ask("9" * (n + 1), question="q"),
    ]
    good, exact, over = scorer.score_sync(requests)
    assert_scored(good, 1)
    assert_scored(exact, 1)
    assert_failed(over, 1, "too_long")
    assert str(LIMIT) in over.scores[0].reason
    assert str(LIMIT + 1) in over.scores[0].reason


def test_wrong_or_missing_or_broken_images(scorer: TransformersScorer) -> None:
    digest = PICTURE.digest
    broken = ImageData("sha256-" + "0" * 64, b"no picture")
    requests = [
        ScoreRequest(Problem("q", (digest,)), ("a", "b"), ()),
        ScoreRequest(Problem("q", ()), ("a",), (PICTURE,)),
        ScoreRequest(Problem("q", (broken.digest,)), ("a",), (broken,)),
        ask("a", images=True),
    ]
    missing, extra, bad, good = scorer.score_sync(requests)
    assert_failed(missing, 2, "image_missing")
    assert_failed(extra, 1, "image_missing")
    assert_failed(bad, 1, "bad_image")
    assert_scored(good, 1)


def test_no_steps_and_no_requests(scorer: TransformersScorer) -> None:
    assert scorer.score_sync([]) == []
    empty, full = scorer.score_sync([ask(), ask("a")])
    assert empty.scores == ()
    assert_scored(full, 1)


def test_surrogates_and_nul_are_scored(scorer: TransformersScorer) -> None:
    (result,) = scorer.score_sync([ask("half \ud83d", "\0", question="\udc00")])
    assert_scored(result, 2)


def poison(scorer: TransformersScorer, token: str, value: float) -> None:
    """Make one token's embedding not a number, as broken weights or an overflow would."""
    embedding = scorer.checkpoint.model.get_input_embeddings().weight
    with torch.no_grad():
        embedding[scorer.checkpoint.tokenizer.convert_tokens_to_ids(token)] = value


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_number_that_is_none_fails_the_steps_that_see_it(
    scorer: TransformersScorer, value: float
) -> None:
    poison(scorer, "Z", value)
    paths = [ask("a", "b Z", "c"), ask("a", "b", "c"), ask("Z")]
    poisoned, healthy, short = scorer.score_sync(paths)
    assert_scored(healthy, 3)
    assert poisoned.scores[0] == healthy.scores[0]
    assert values(poisoned)[1:] == [None, None]
    assert poisoned.scores[1].reason.startswith("not_finite:")
    assert_failed(short, 1, "not_finite")


def test_equal_requests_are_computed_once_and_count_what_they_cost(
    scorer: TransformersScorer,
) -> None:
    one = scorer.score_sync([ask("a", "b", images=True)])[0]
    computed = scorer.meter.tokens_computed
    many = scorer.score_sync([ask("a", "b", images=True)] * 5 + [ask("a", images=True)])
    assert many[:5] == [one] * 5
    assert many[5].step_tokens == one.step_tokens[:1]
    assert scorer.meter.tokens_computed == computed  # all is known
    forgetful = TransformersScorer(scorer.checkpoint, prefix_cache_bytes=0)
    forgetful.score_sync([ask("a", "b", images=True)] * 5 + [ask("a", images=True)])
    assert forgetful.meter.tokens_computed == computed  # all six cost what one costs
    assert scorer.meter.images_encoded == 1
    assert one.prefix_tokens + sum(one.step_tokens) == computed + 3  # '+', its end, a line break


# --- memory ------------------------------------------------------------------------------------


def token_paths() -> list[TokenPath]:
    return [
        TokenPath("g", (1, 2, *(3,) * a, *(4 + b,) * 5, c))
        for a in (1, 6)
        for b in range(3)
        for c in range(20, 24)
    ]


def limited(
    paths: Sequence[TokenPath], limit: int, sizes: list[int], error: Callable[[], BaseException]
) -> Callable[[list[int]], list[int]]:
    def compute(chosen: list[int]) -> list[int]:
        size = build_tree([paths[i] for i in chosen]).size
        sizes.append(size)
        if size >= limit:
            raise error()
        return chosen

    return compute


@pytest.mark.parametrize(
    "error",
    [
        lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        lambda: RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
        MemoryError,
    ],
)
@pytest.mark.parametrize("limit", range(1, 130, 3))
def test_out_of_memory_at_every_size(limit: int, error: Callable[[], BaseException]) -> None:
    paths = token_paths()
    sizes: list[int] = []
    batcher = TokenBatcher(10_000)
    results = batcher.run(paths, limited(paths, limit, sizes, error))
    for number, path in enumerate(paths):
        assert results[number] == (number if len(path.ids) < limit else None)
    whole = build_tree(paths).size
    if limit > max(len(path.ids) for path in paths):
        halvings = batcher.out_of_memory
        assert halvings <= math.ceil(math.log2(whole)) + 1
        assert all(size < limit for size in sizes[halvings:])  # the bound was learned at once
        before = len(sizes)
        batcher.run(paths, limited(paths, limit, sizes, error))
        assert all(size < limit for size in sizes[before:])  # and remembered


def test_other_errors_are_not_swallowed() -> None:
    paths = token_paths()

    def compute(chosen: list[int]) -> list[int]:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        TokenBatcher(100).run(paths, compute)
    assert not is_out_of_memory(ValueError("out of memory"))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_every_library_that_is_out_of_memory_is_understood(error: BaseException) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize("limit", [2, 210, 250, 400])
def test_scores_survive_a_model_that_runs_out_of_memory(
    path: Path, scorer: TransformersScorer, limit: int
) -> None:
    """The language model itself fails on long sequences, as a full device would make it."""
    requests = [ask(f"{a} red", f"{b} blue", images=True) for a in range(3) for b in range(3)]
    wanted = scorer.score_sync(requests)
    small = TransformersScorer.from_pretrained(path)
    language_model = small.checkpoint.model.model.language_model

    def full(module: torch.nn.Module, args: object, kwargs: dict[str, torch.Tensor]) -> None:
        if kwargs["inputs_embeds"].shape[1] >= limit:
            raise torch.OutOfMemoryError("CUDA out of memory")

    language_model.register_forward_pre_hook(full, with_kwargs=True)
    got = small.score_sync(requests)
    for ours, theirs in zip(got, wanted, strict=True):
        if limit == 2:
            assert_failed(ours, 2, "out_of_memory")
        else:
            assert values(ours) == pytest.approx(values(theirs), abs=1e-5)
    assert small.meter.out_of_memory > 0 or limit == 400


def test_an_image_that_does_not_fit_fails_its_problem_only(scorer: TransformersScorer) -> None:
    def full(module: torch.nn.Module, args: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    scorer.checkpoint.model.model.vision_tower.embeddings.register_forward_pre_hook(full)
    with_image, without = scorer.score_sync([ask("a", images=True), ask("a")])
    assert_failed(with_image, 1, "out_of_memory")
    assert_scored(without, 1)


class SmallDevice(TorchFunctionMode):
    """Makes every attention of more than `pairs` (query, key) pairs run out of memory."""

    def __init__(self, pairs: int) -> None:
        super().__init__()
        self.pairs = pairs

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        attends = func is scaled_dot_product_attention
        if attends and args[0].shape[2] * args[1].shape[2] > self.pairs:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return func(*args, **(kwargs or {}))


def step(scorer: TransformersScorer, requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
    """Score in this thread, which a torch function mode is bound to."""
    return [result for _, found in scorer._engine.step([requests]) for result in found]


def test_attention_blocks_are_halved_before_a_path_is_given_up(scorer: TransformersScorer) -> None:
    request = ask("x = 3 " * 24, "y = 2 " * 12)
    wanted = TransformersScorer(scorer.checkpoint).score_sync([request])[0]
    assert_scored(wanted, 2)
    with SmallDevice(20_000):  # its nearly 300 tokens have 80,000 pairs
        found = step(scorer, [request])[0]
        failures = scorer.meter.out_of_memory
        assert values(found) == pytest.approx(values(wanted), abs=1e-5)
        assert failures > 0
        again = step(scorer, [ask("z = 3 " * 24, "y = 2 " * 12)])[0]
    assert_scored(again, 2)
    assert scorer.meter.out_of_memory == failures  # the size of the blocks was learned
    with SmallDevice(16):
        assert_failed(step(scorer, [ask("b" * 20)])[0], 1, "out_of_memory")
    assert_scored(step(scorer, [ask("b" * 20)])[0], 1)


def test_an_image_that_does_not_fit_takes_the_place_of_half_the_prefix_cache(
    path: Path, scorer: TransformersScorer
) -> None:
    """Keys and values kept for later calls may be all that fills the device."""
    wide = normalise_image(Image.effect_noise((224, 56), 80).convert("RGB"))
    request = ScoreRequest(Problem("q", (wide.digest,)), ("a",), (wide,))
    wanted = TransformersScorer(load_checkpoint(path)).score_sync([request])[0]
    scorer.score_sync([ask(f"{n} red") for n in range(9)])
    blocks = scorer._engine.cache.blocks
    held = blocks.held_bytes
    sizes: list[int] = []

    def full(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        sizes.append(len(args[0]))
        if blocks.held_bytes or len(args[0]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    scorer.checkpoint.model.model.vision_tower.embeddings.register_forward_pre_hook(full)
    found = scorer.score_sync([request])[0]
    assert values(found) == pytest.approx(values(wanted), abs=1e-5)
    assert sizes[0] == sizes[1] > 2  # first what is kept goes, then fewer tiles are taken
    assert max(sizes[2:]) <= max(2, sizes[0] // 2)
    assert blocks.max_bytes == held // 2


# --- the asynchronous face -----------------------------------------------------------------------


async def test_the_event_loop_stays_free(scorer: TransformersScorer) -> None:
    """The forward pass waits for something that only the event loop can do."""
    ticked = threading.Event()
    waited: list[bool] = []

    def wait_for_loop(module: torch.nn.Module, args: object) -> None:
        waited.append(ticked.wait(timeout=30))

    scorer.checkpoint.model.lm_head  # noqa: B018
    scorer.checkpoint.model.model.language_model.norm.register_forward_pre_hook(wait_for_loop)
    task = asyncio.create_task(scorer.score([ask("a")]))
    await asyncio.sleep(0)
    ticked.set()
    assert_scored((await task)[0], 1)
    assert waited == [True]


async def test_concurrent_calls_give_the_same_scores(scorer: TransformersScorer) -> None:
    requests = [ask(f"x = {n}", "so", images=n % 2 == 0) for n in range(6)]
    alone = [scorer.score_sync([request])[0] for request in requests]
    together = await asyncio.gather(*(scorer.score([request]) for request in requests))
    assert [results[0] for results in together] == alone


async def test_score_solution_cuts_at_blank_lines(scorer: TransformersScorer) -> None:
    text = "x = 1\n\ny = 2\n\nAnswer: 3"
    whole = await scorer.score_solution(question="q", solution=text, images=[PICTURE.png])
    parts = text.split("\n\n")
    listed = await scorer.score_solution(question="q", solution=parts, images=[PICTURE])
    assert whole == listed
    assert_scored(whole, 3)
    with pytest.raises(InputError):
        await scorer.score_solution(question="q", solution="a", images=[b"no picture"])


def test_bounds_are_checked(scorer: TransformersScorer) -> None:
    with pytest.raises(ConfigError, match="max_batch_tokens is 0"):
        TransformersScorer(scorer.checkpoint, max_batch_tokens=0)
    with pytest.raises(ConfigError, match="prefix_cache_bytes -1"):
        TransformersScorer(scorer.checkpoint, prefix_cache_bytes=-1)
