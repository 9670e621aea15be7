"""Round after round of a search: what was computed is kept, and changes no score."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.scoring.oracle import Oracle
from tests.scoring.random_internvl import write_checkpoint
from tests.scoring.test_oracle import PICTURES, TOLERANCE, as_request, problems, steps
from vprm_search.scoring import TransformersScorer
from vprm_search.scoring.engine.checkpoint import PrmCheckpoint, load_checkpoint
from vprm_search.scoring.engine.token_tree import TokenPath
from vprm_search.types import ImageData, ScoreRequest, ScoreResult

ROW_BYTES = 3 * 2 * 2 * 16 * 4
"""Of the random model: layers, keys and values, heads, numbers per head, bytes of a float32."""

Problem = tuple[str, tuple[ImageData, ...]]
Item = tuple[Problem, tuple[str, ...]]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model"), seed=3)


@pytest.fixture(scope="module")
def checkpoint(path: Path) -> PrmCheckpoint:
    return load_checkpoint(path)


@pytest.fixture(scope="module")
def oracle(path: Path) -> Remembering:
    return Remembering(Oracle(path, side=56, max_tiles=4))


class Remembering:
    """The independent oracle, asked once for every (problem, steps)."""

    def __init__(self, oracle: Oracle) -> None:
        self._oracle = oracle
        self._known: dict[tuple[str, tuple[str, ...], tuple[str, ...]], float] = {}

    def score(self, request: ScoreRequest) -> list[float]:
        problem = request.problem
        out = []
        for count in range(1, len(request.steps) + 1):
            key = (problem.question, problem.images, request.steps[:count])
            if key not in self._known:
                pngs = [image.png for image in request.images]
                found = self._oracle.score(problem.question, key[2], pngs)
                for size in range(1, count + 1):
                    self._known[(*key[:2], key[2][:size])] = found[size - 1]
            out.append(self._known[key])
        return out


def values(results: Sequence[ScoreResult]) -> list[float | None]:
    return [score.value for result in results for score in result.scores]


def distinct_tokens(scorer: TransformersScorer, requests: Sequence[ScoreRequest]) -> int:
    """Return what an ideal scorer computes: every token with another past once."""
    seen: set[tuple[tuple[str, ...], tuple[int, ...]]] = set()
    for request in requests:
        counts = [scorer._engine.images.tokens(image) for image in request.images]
        prompt = scorer.checkpoint.builder.build(request.problem.question, request.steps, counts)
        ids = prompt.scored_ids
        seen.update((request.problem.images, ids[:n]) for n in range(1, len(ids) + 1))
    return len(seen)


# --- exactness ---------------------------------------------------------------------------------

WORDS = ("the red bar is 3 so x = 2", "Step 1: compute the base", "12 + 3 - 4", "+", "")


@st.composite
def searches(draw: st.DrawFn) -> list[list[Item]]:
    """Draw the calls of a few searches: beams that are expanded, pruned, repeated and come back."""
    beams: dict[Problem, list[tuple[str, ...]]] = {}
    calls: list[list[Item]] = []
    for _ in range(draw(st.integers(2, 6))):
        chosen = draw(st.lists(problems, min_size=1, max_size=2, unique=True))
        call: list[Item] = []
        for problem in chosen:
            paths = beams.get(problem, [()])
            if draw(st.sampled_from(["expand", "expand", "repeat"])) == "expand" or paths == [()]:
                kept = draw(st.lists(st.sampled_from(paths), min_size=1, max_size=2, unique=True))
                words = draw(st.lists(st.sampled_from(WORDS), min_size=1, max_size=3, unique=True))
                paths = [(*path, word) for path in kept for word in words if len(path) < 4]
                paths = paths or [kept[0]]
            beams[problem] = paths
            call += [(problem, path) for path in paths]
        calls.append(call)
    if draw(st.booleans()):  # the final selection, or an older branch once more
        calls.append(draw(st.sampled_from(calls)))
    return calls


@given(
    calls=searches(),
    kept=st.sampled_from([1 << 30, 900 * ROW_BYTES, 300 * ROW_BYTES, ROW_BYTES, 1]),
    bound=st.sampled_from([16_384, 400]),
)
@settings(max_examples=25)
def test_any_search_gives_the_scores_of_one_forward_per_step(
    checkpoint: PrmCheckpoint, oracle: Remembering, calls: list[list[Item]], kept: int, bound: int
) -> None:
    scorer = TransformersScorer(checkpoint, prefix_cache_bytes=kept, max_batch_tokens=bound)
    asked = []
    for call in calls:
        requests = [as_request(question, images, path) for (question, images), path in call]
        asked += requests
        wanted = [value for request in requests for value in oracle.score(request)]
        assert values(scorer.score_sync(requests)) == pytest.approx(wanted, abs=TOLERANCE)
        assert scorer._engine.cache.blocks.held_bytes <= kept
    if kept == 1 << 30:  # in however many passes, nothing is computed twice
        assert scorer.meter.tokens_computed == distinct_tokens(scorer, asked)


@given(calls=st.lists(st.lists(st.tuples(problems, steps), min_size=1, max_size=3), max_size=4))
@settings(max_examples=10)
def test_unrelated_calls_one_after_another(
    checkpoint: PrmCheckpoint, oracle: Remembering, calls: list[list[Item]]
) -> None:
    scorer = TransformersScorer(checkpoint, prefix_cache_bytes=600 * ROW_BYTES)
    for call in calls:
        requests = [as_request(question, images, path) for (question, images), path in call]
        wanted = [value for request in requests for value in oracle.score(request)]
        assert values(scorer.score_sync(requests)) == pytest.approx(wanted, abs=TOLERANCE)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_gives_the_same_scores(
    checkpoint: PrmCheckpoint, oracle: Remembering
) -> None:
    scorer = TransformersScorer(checkpoint, attention="flex")  # uncompiled on a CPU
    assert scorer.attention == "flex"
    assert TransformersScorer(checkpoint).attention == "blocks"
    for depth in range(2):
        requests = children([("x = 1",) * depth, ("x = 2",) * depth], depth)
        wanted = [value for request in requests for value in oracle.score(request)]
        assert values(scorer.score_sync(requests)) == pytest.approx(wanted, abs=TOLERANCE)


def test_bfloat16_rounds_stay_close_to_one_pass(path: Path) -> None:
    """In bfloat16 the split of a path between passes moves a score by its rounding, below 0.01."""
    from vprm_search.tiny.weights import weights_path
    from vprm_search.tiny.world import generate, render

    rough = load_checkpoint(weights_path("prm"), device="cpu", dtype="bfloat16")
    kept, whole = TransformersScorer(rough), TransformersScorer(rough, prefix_cache_bytes=0)
    from vprm_search.images import normalise_image

    worst = 0.0
    for number in range(4):
        problem = generate("tiles", "validation", number)
        image = normalise_image(render(problem))
        solution = tuple(problem.solution.split("\n\n"))
        for count in range(1, len(solution) + 1):
            request = [as_request(problem.question, (image,), solution[:count])]
            pairs = zip(
                values(kept.score_sync(request)), values(whole.score_sync(request)), strict=True
            )
            worst = max(worst, *(abs((a or 0) - (b or 0)) for a, b in pairs))
    assert worst <= 1e-2


# --- cost --------------------------------------------------------------------------------------


def children(beam: list[tuple[str, ...]], depth: int) -> list[ScoreRequest]:
    paths = [(*path, f"step {depth} with x = {n}") for path in beam for n in range(3)]
    return [as_request("What is x?", PICTURES[:2], path) for path in paths]


@pytest.mark.parametrize("bound", [16_384, 700])
def test_a_beam_search_computes_every_token_once(checkpoint: PrmCheckpoint, bound: int) -> None:
    scorer = TransformersScorer(checkpoint, max_batch_tokens=bound, image_cache_tokens=0)
    forgetful = TransformersScorer(checkpoint, prefix_cache_bytes=0)
    assert scorer.has_prefix_cache
    assert not forgetful.has_prefix_cache
    beam: list[tuple[str, ...]] = [()]
    asked: list[ScoreRequest] = []
    costs = []
    for depth in range(5):
        requests = children(beam, depth)
        asked += requests
        results = scorer.score_sync(requests)
        costs += [result.cost for result in results]
        assert values(results) == pytest.approx(
            values(forgetful.score_sync(requests)), abs=TOLERANCE
        )
        beam = [requests[0].steps, requests[-1].steps]
    meter, ideal = scorer.meter, distinct_tokens(scorer, asked)
    assert meter.tokens_computed == ideal
    assert forgetful.meter.tokens_computed > 2 * ideal
    passes = meter.forward_passes
    again = scorer.score_sync([as_request("What is x?", PICTURES[:2], path) for path in beam])
    assert meter.forward_passes == passes  # the final selection is free
    assert all(result.cost.tokens_computed == 0 for result in again)
    assert meter.images_encoded == 2  # not again, although no embedding is kept
    assert sum(cost.tokens_computed for cost in costs) == ideal
    assert sum(cost.images_encoded for cost in costs) == 2
    assert sum(cost.forward_passes for cost in costs) == pytest.approx(passes)
    assert sum(cost.tokens_sent for cost in costs) == forgetful.meter.tokens_requested


def test_searches_in_turn_do_not_forget_each_other(checkpoint: PrmCheckpoint) -> None:
    scorer = TransformersScorer(checkpoint)
    calls = [
        [as_request("What is x?", PICTURES[:1], ("x = 1",))],
        [as_request("What is y?", PICTURES[1:2], ("y = 1",))],
        [as_request("What is y?", (), ("y = 1",))],
        [as_request("What is x?", PICTURES[:1], ("x = 1", "x = 2"))],
    ]
    for call in calls:
        scorer.score_sync(call)
    before = scorer.meter.tokens_computed
    assert before == distinct_tokens(scorer, [request for call in calls for request in call])
    for call in calls:
        scorer.score_sync(call)
    assert scorer.meter.tokens_computed == before


def cached_tokens(scorer: TransformersScorer, request: ScoreRequest) -> int:
    counts = [scorer._engine.images.tokens(image) for image in request.images]
    prompt = scorer.checkpoint.builder.build(request.problem.question, request.steps, counts)
    return scorer._engine.cache.cached_tokens(TokenPath(request.problem.images, prompt.scored_ids))


def test_what_a_search_pruned_goes_first_and_what_is_unused_goes_next(
    checkpoint: PrmCheckpoint,
) -> None:
    old = as_request("What is x?", PICTURES[:1], ("x = 1",))
    lost = as_request("What is y?", PICTURES[1:2], ("x = 2", "so x = 3 " * 40))
    live = as_request("What is y?", PICTURES[1:2], ("x = 2", "x = 4"))
    whole = TransformersScorer(checkpoint)
    for request in (old, lost, live):
        whole.score_sync([request])
    full = [cached_tokens(whole, request) for request in (old, lost, live)]
    assert full[1] - full[2] > 180  # of `lost` alone
    rows = -(-whole._engine.cache.blocks.used_rows // 256) * 256
    scorer = TransformersScorer(checkpoint, prefix_cache_bytes=rows * ROW_BYTES)
    for request in (old, lost, live):
        scorer.score_sync([request])
    assert [cached_tokens(scorer, request) for request in (old, lost, live)] == full
    scorer._engine.cache.begin_call()
    scorer.score_sync([live])
    scorer.score_sync([as_request("What is z?", PICTURES[2:], ("x = 5",))])
    after = [cached_tokens(scorer, request) for request in (old, lost, live)]
    assert (after[0], after[2]) == (full[0], full[2])
    assert after[1] < full[1]  # what the search has left behind
    scorer.score_sync([live])
    scorer.score_sync([as_request("What is z?", PICTURES[1:], ("x = 6 " * 10,))])
    after = [cached_tokens(scorer, request) for request in (old, lost, live)]
    assert after[0] < full[0]  # what was not asked about for longest
    assert after[2] == full[2]


def test_when_memory_runs_out_what_is_kept_goes_before_passes_get_smaller(
    path: Path, checkpoint: PrmCheckpoint
) -> None:
    scorer = TransformersScorer(load_checkpoint(path))
    for n in range(3):
        scorer.score_sync([as_request(f"q {n}", PICTURES[n % 3 : n % 3 + 1], ("x = 1",))])
    pool = scorer._engine.cache.blocks
    held = pool.held_bytes
    failures = [torch.OutOfMemoryError("CUDA out of memory")]

    def full(module: torch.nn.Module, args: object) -> None:
        if failures:
            raise failures.pop()

    scorer.checkpoint.language_model.norm.register_forward_pre_hook(full)
    # its images are kept, so their embeddings have to be made again
    request = as_request("q 0", PICTURES[:1], ("x = 1", "x = 2"))
    whole = TransformersScorer(checkpoint, prefix_cache_bytes=0).score_sync([request])
    assert values(scorer.score_sync([request])) == pytest.approx(values(whole), abs=TOLERANCE)
    assert 0 < pool.held_bytes <= pool.max_bytes == held // 2
    assert scorer._engine.batcher.max_tokens == 16_384
    assert scorer.meter.out_of_memory == 0


def test_a_pass_with_nan_is_not_kept(checkpoint: PrmCheckpoint) -> None:
    scorer = TransformersScorer(checkpoint)
    embedding = scorer.checkpoint.model.get_input_embeddings().weight
    row = scorer.checkpoint.tokenizer.convert_tokens_to_ids("Z")
    with torch.no_grad():
        healthy = embedding[row].clone()
        embedding[row] = torch.nan
        broken = scorer.score_sync([as_request("q", (), ("a", "Z", "b"))])[0]
        assert [s.value is None for s in broken.scores] == [False, True, True]
        embedding[row] = healthy
    mended = scorer.score_sync([as_request("q", (), ("a", "Z", "b"))])[0]
    assert all(score.value is not None for score in mended.scores)


# --- the same calls, the same bits ----------------------------------------------------------------


@given(
    calls=searches(),
    kept=st.sampled_from([1 << 30, 500 * ROW_BYTES]),
    bound=st.sampled_from([16_384, 400]),
)
@settings(max_examples=10)
def test_the_same_calls_give_the_same_bits_and_costs(
    checkpoint: PrmCheckpoint, calls: list[list[Item]], kept: int, bound: int
) -> None:
    """A search that is resumed replays its calls on a new scorer and goes on as if undisturbed."""

    def run() -> list[tuple[ScoreResult, object]]:
        scorer = TransformersScorer(checkpoint, prefix_cache_bytes=kept, max_batch_tokens=bound)
        out = []
        for call in calls:
            requests = [as_request(question, images, path) for (question, images), path in call]
            out += [(result, result.cost) for result in scorer.score_sync(requests)]
        return out

    assert run() == run()
