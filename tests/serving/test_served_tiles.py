"""Converted checkpoints with large images: the server cuts the tiles the in-process scorer cuts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.checkpoints.original_layout import VERSIONS, write_original
from tests.serving.conftest import SERVE
from tests.serving.problems import world_round
from tests.serving.server import PrmServer, free_port, scoring_body, side_by_side
from tests.serving.tolerances import EXACT
from vprm_search.checkpoints import convert_checkpoint
from vprm_search.images import normalise_image
from vprm_search.scoring.transformers_scorer import TransformersScorer
from vprm_search.types import ImageData, Problem, ScoreRequest

pytestmark = pytest.mark.slow

ORIGINALS = ("v1.0", "v1.1")
"""With an InternLM2 and with a Qwen2."""
SIDES = ((56, 56), (300, 100), (97, 331), (224, 113), (1000, 990), (28, 700))


@pytest.fixture(scope="module")
def tiled_servers(
    vllm_python: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, PrmServer]]:
    """A server for either version of VisualPRM's original layout, converted."""
    servers = {}
    for version in ORIGINALS:
        folder = tmp_path_factory.mktemp("tiled")
        # vLLM's attention on the CPU wants heads of at least 32
        shape = replace(VERSIONS[version], hidden=128, heads=4, max_positions=4096)
        convert_checkpoint(write_original(folder / "original", shape), folder / "native")
        options = replace(SERVE, port=free_port())
        servers[version] = PrmServer(folder / "native", vllm_python, folder, options)
    with side_by_side(servers.values()):
        yield servers


@pytest.fixture(params=ORIGINALS)
def tiled_server(request: pytest.FixtureRequest, tiled_servers: dict[str, PrmServer]) -> PrmServer:
    """The server for a version."""
    return tiled_servers[request.param]


@pytest.fixture
def here(tiled_server: PrmServer) -> TransformersScorer:
    """What it serves, in this process."""
    return TransformersScorer.from_pretrained(
        tiled_server.checkpoint, device="cpu", dtype="float32"
    )


def photo(width: int, height: int, seed: int) -> ImageData:
    """Smooth colours with some noise, so that resizing matters."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height)), dtype=np.int16)
    noisy = np.clip(smooth + rng.integers(-20, 21, smooth.shape), 0, 255).astype(np.uint8)
    return normalise_image(Image.fromarray(noisy))


def test_tiles_thumbnails_and_image_order(
    here: TransformersScorer, tiled_server: PrmServer
) -> None:
    images = [photo(width, height, n) for n, (width, height) in enumerate(SIDES)]
    groups = [(one,) for one in images] + [(), tuple(images[:3]), tuple(images[2::-1])]
    paths = (("Step 1: the red bar is higher.", "So x = 2."), ("The answer is 12 + 3.",))
    prefixes = set()
    for group in groups:
        problem = Problem("What is the area?", tuple(image.digest for image in group))
        expected = here.score_sync([ScoreRequest(problem, path, group) for path in paths])
        reply = tiled_server.post(scoring_body(problem.question, group, paths, cache_salt="tiles"))
        for found, result in zip(reply["scores"], expected, strict=True):
            values = [score.value for score in result.scores]
            assert found == pytest.approx(values, rel=0, abs=EXACT)
        assert reply["prefix_tokens"] == min(result.prefix_tokens for result in expected)
        prefixes.add(reply["prefix_tokens"])
    assert len(prefixes) >= 4  # the pictures really had different numbers of tiles


def test_random_paths_with_one_several_and_no_images(
    here: TransformersScorer, tiled_server: PrmServer
) -> None:
    paths = 0
    for number in range(8):
        for images in range(4):
            round_ = world_round(number, images=images)
            body = scoring_body(round_.question, round_.images, round_.paths, cache_salt="random")
            found = tiled_server.post(body)["scores"]
            expected = here.score_sync(round_.requests())
            for mine, result in zip(found, expected, strict=True):
                assert mine == pytest.approx([s.value for s in result.scores], rel=0, abs=EXACT)
                paths += 1
    assert paths >= 200


def test_a_longer_prompt_than_one_batch_of_the_engine(
    here: TransformersScorer, tiled_server: PrmServer
) -> None:
    """Prompts are computed in chunks of 2048 tokens there; no row may be lost between them."""
    problem = Problem("What is the area?")
    steps: list[str] = []
    while not steps or len(here.checkpoint.builder.build(problem.question, steps).ids) < 2200:
        steps += [f"Step {len(steps)}: we compute the base and the height: {len(steps)}."] * 3
    (expected,) = here.score_sync([ScoreRequest(problem, tuple(steps))])
    assert expected.prefix_tokens + sum(expected.step_tokens) > 2100
    reply = tiled_server.post(scoring_body(problem.question, (), [steps], cache_salt="chunks"))
    values = [score.value for score in expected.scores]
    assert reply["scores"][0] == pytest.approx(values, rel=0, abs=EXACT)
