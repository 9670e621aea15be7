"""The packed tree pass gives the scores of one forward pass per step, to 1e-5."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.scoring.oracle import Oracle
from tests.scoring.random_internvl import Size, write_checkpoint
from vprm_search.images import ImageLimits, normalise_image
from vprm_search.scoring import PreprocessConfig, PrmLayout, TransformersScorer
from vprm_search.types import ImageData, Problem, ScoreRequest

TOLERANCE = 1e-5
WORDS = (
    "the red bar is 3 so x = 2",
    "Step 1: compute the base",
    "Step 1: compute the height",
    "",
    "\nanswer",
    "  12 + 3 - 4",
    "+",
    "因此 x = 7",
    "the area is 11.\n",
)


def picture(seed: int, width: int, height: int) -> ImageData:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return normalise_image(Image.fromarray(pixels), limits=ImageLimits(min_side=1))


PICTURES = (picture(0, 56, 56), picture(1, 130, 50), picture(2, 40, 90))

steps = st.lists(st.sampled_from(WORDS), min_size=1, max_size=4).map(tuple)
# few words and short paths: prefixes are shared, repeated, and contained in one another
problems = st.tuples(
    st.sampled_from(("What is x?", "How high is the blue bar?")),
    st.lists(st.sampled_from(PICTURES), max_size=3).map(tuple),
)
batches = st.lists(problems, min_size=1, max_size=2).flatmap(
    lambda chosen: st.lists(st.tuples(st.sampled_from(chosen), steps), min_size=1, max_size=6)
)


@pytest.fixture(scope="module", params=["qwen2", "qwen3", "llama"])
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TransformersScorer, Oracle]:
    path = tmp_path_factory.mktemp("model")
    write_checkpoint(path, Size(text_model=request.param), seed=3)
    return TransformersScorer.from_pretrained(path), Oracle(path, side=56, max_tiles=4)


def as_request(question: str, images: tuple[ImageData, ...], path: tuple[str, ...]) -> ScoreRequest:
    return ScoreRequest(Problem(question, tuple(i.digest for i in images)), path, images)


def largest_difference(
    scorer: TransformersScorer, oracle: Oracle, requests: list[ScoreRequest]
) -> float:
    worst = 0.0
    known: dict[ScoreRequest, list[float]] = {}
    for request, result in zip(requests, scorer.score_sync(requests), strict=True):
        if request not in known:
            pngs = [image.png for image in request.images]
            known[request] = oracle.score(request.problem.question, request.steps, pngs)
        assert len(result.scores) == len(request.steps)
        for score, expected in zip(result.scores, known[request], strict=True):
            assert score.value is not None, score.reason
            worst = max(worst, abs(score.value - expected))
    return worst


@given(batch=batches)
@settings(max_examples=25)
def test_equals_one_forward_per_step(
    pair: tuple[TransformersScorer, Oracle],
    batch: list[tuple[tuple[str, tuple[ImageData, ...]], tuple[str, ...]]],
) -> None:
    scorer, oracle = pair
    requests = [as_request(question, images, path) for (question, images), path in batch]
    assert largest_difference(scorer, oracle, requests) <= TOLERANCE


def test_wide_and_deep_trees_cross_the_block_size(
    pair: tuple[TransformersScorer, Oracle],
) -> None:
    scorer, oracle = pair
    long = "the base and the height of the triangle, so the answer is 12 + 3 - 4 = 11. " * 4
    stem = (long, "so x = 2")
    paths = [(*stem, f"{long} {a}", *(f"{b} " * 40 for b in range(a))) for a in range(4)]
    paths += [stem, (long,), *((*stem, f"short {c}") for c in range(6))]
    before = scorer.meter.forward_passes
    requests = [as_request("What is x?", PICTURES[1:], path) for path in paths]
    assert largest_difference(scorer, oracle, requests) <= TOLERANCE
    assert scorer.meter.forward_passes == before + 1


def test_scores_spread(pair: tuple[TransformersScorer, Oracle]) -> None:
    """The tests above would pass on a model that answers one half to everything."""
    scorer, _ = pair
    requests = [
        as_request(f"What is {n} + x?", PICTURES[n % 3 : n % 3 + 1], (f"x = {n * n}", word))
        for n in range(8)
        for word in WORDS
    ]
    values = [s.value for r in scorer.score_sync(requests) for s in r.scores if s.value is not None]
    same_step = [r.scores[1].value or math.nan for r in scorer.score_sync(requests)][:: len(WORDS)]
    assert max(values) - min(values) > 0.5
    assert max(same_step) - min(same_step) > 0.02  # history and image matter, not the step alone


@pytest.mark.parametrize("bound", [1, 60, 150, 400])
def test_token_bound_changes_passes_but_not_scores(
    pair: tuple[TransformersScorer, Oracle], bound: int
) -> None:
    scorer, _ = pair
    paths = [(a, b, c) for a in WORDS[:2] for b in WORDS[1:4] for c in WORDS[4:6]]
    requests = [as_request("What is x?", PICTURES[:1], path) for path in paths]
    bounded = TransformersScorer(scorer.checkpoint, max_batch_tokens=bound)
    for ours, whole in zip(bounded.score_sync(requests), scorer.score_sync(requests), strict=True):
        for a, b in zip(ours.scores, whole.scores, strict=True):
            assert a.value == pytest.approx(b.value, abs=TOLERANCE)
    assert bounded.meter.forward_passes > 1
    if bound == 1:
        assert bounded.meter.forward_passes == len(paths)


def test_bfloat16_is_close(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, seed=3)
    exact = TransformersScorer.from_pretrained(path)
    rough = TransformersScorer.from_pretrained(path, dtype="bfloat16")
    requests = [
        as_request("What is x?", PICTURES[:2], (w, f"x = {n}")) for n, w in enumerate(WORDS)
    ]
    pairs = [
        (a.value, b.value)
        for x, y in zip(exact.score_sync(requests), rough.score_sync(requests), strict=True)
        for a, b in zip(x.scores, y.scores, strict=True)
    ]
    differences = [abs(a - b) for a, b in pairs if a is not None and b is not None]
    assert len(differences) == 2 * len(WORDS)
    assert 0 < max(differences) < 0.15


def test_half_precision_weights_compute_in_float32(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, dtype=torch.float16, seed=3)
    scorer = TransformersScorer.from_pretrained(path, device="cpu")
    assert scorer.checkpoint.model.dtype == torch.float32
    oracle = Oracle(path, side=56, max_tiles=4)
    requests = [as_request("What is x?", PICTURES[:1], WORDS[:3])]
    assert largest_difference(scorer, oracle, requests) <= TOLERANCE


def test_layout_and_image_rule_come_from_the_checkpoint(tmp_path: Path) -> None:
    rule = PreprocessConfig(tile_size=56, max_tiles=1, mean=(0.5,) * 3, std=(0.25,) * 3)
    path = write_checkpoint(tmp_path, layout=PrmLayout(system_prompt=None), preprocess=rule, seed=4)
    scorer = TransformersScorer.from_pretrained(path)
    oracle = Oracle(path, side=56, max_tiles=1, mean=(0.5,) * 3, std=(0.25,) * 3, system=None)
    requests = [as_request("What is x?", PICTURES, WORDS[:3])]
    assert largest_difference(scorer, oracle, requests) <= TOLERANCE


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_agrees_with_cpu(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, seed=3)
    requests = [
        as_request("What is x?", PICTURES[:2], (w, f"x = {n}")) for n, w in enumerate(WORDS)
    ]
    cpu = TransformersScorer.from_pretrained(path, device="cpu").score_sync(requests)
    gpu = TransformersScorer.from_pretrained(path, device="cuda", dtype="float32")
    for x, y in zip(cpu, gpu.score_sync(requests), strict=True):
        for a, b in zip(x.scores, y.scores, strict=True):
            assert a.value == pytest.approx(b.value, abs=1e-3)


def test_the_shipped_model_equals_one_forward_per_step() -> None:
    """The trained tiny reward model, if the package has it, on its own problems."""
    from vprm_search.errors import CheckpointError
    from vprm_search.tiny.weights import weights_path
    from vprm_search.tiny.world import generate, render

    try:
        path = weights_path("prm")
    except CheckpointError as error:
        pytest.skip(str(error))
    scorer = TransformersScorer.from_pretrained(path, device="cpu")
    rule, layout = scorer.checkpoint.preprocess, scorer.layout
    oracle = Oracle(
        path,
        side=rule.tile_size,
        max_tiles=rule.max_tiles,
        mean=rule.mean,
        std=rule.std,
        thumbnail=rule.thumbnail,
        system=layout.system_prompt,
    )
    requests = []
    for number in range(3):
        problem = generate("tiles", "validation", number)
        image = normalise_image(render(problem))
        right = tuple(problem.solution.split("\n\n"))
        wrong = (right[0].replace("=", "= 9", 1), *right[1:])
        for steps in (right, wrong, right[:1]):
            requests.append(as_request(problem.question, (image,), steps))
    assert largest_difference(scorer, oracle, requests) <= TOLERANCE
    assert scorer.meter.forward_passes == 1
