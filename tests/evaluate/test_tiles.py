"""Pictures as VLMEvalKit shows them to a reward model: tiles are shared, one picture is doubled."""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from tests.scoring.oracle import Oracle
from tests.scoring.random_internvl import Size, write_checkpoint
from tests.scoring.test_oracle import PICTURES, as_request
from vprm_search.cli.options import scorer_maker
from vprm_search.evaluate.tiles import TiledScorer, Tiling
from vprm_search.images.normalise import normalise_image
from vprm_search.types import ImageData, Problem, ScoreRequest

STEPS = ("bar two is", "so x")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_checkpoint(folder, Size(), seed=3)
    return folder


def doubled(image: ImageData) -> bytes:
    """Twice its width and height, bilinear."""
    picture = Image.open(io.BytesIO(image.png))
    buffer = io.BytesIO()
    picture.resize((picture.width * 2, picture.height * 2), Image.Resampling.BILINEAR).save(
        buffer, "PNG"
    )
    return buffer.getvalue()


async def test_scores_are_those_of_pictures_cut_and_doubled_by_hand(path: Path) -> None:
    make = scorer_maker(str(path), "cpu")
    tiled = partial(lambda most, make: make(max_tiles=most), make=make)
    rule = Tiling(4, together=6, doubled=True)
    scorer = TiledScorer(tiled, rule)
    sets = [PICTURES[:count] for count in (1, 2, 3, 0)] + [PICTURES[::-1]]
    asked = [as_request("What is x?", images, STEPS) for images in sets]
    results = await scorer.score(asked)
    alone = [(await TiledScorer(tiled, rule).score([one]))[0] for one in asked]
    for images, result, own in zip(sets, results, alone, strict=True):
        oracle = Oracle(path, side=56, max_tiles=max(1, min(4, 6 // max(1, len(images)))))
        pngs = [doubled(image) if not n else image.png for n, image in enumerate(images)]
        wanted = oracle.score("What is x?", STEPS, pngs)
        assert [s.value for s in result.scores] == pytest.approx(wanted, abs=1e-5)
        assert [s.value for s in own.scores] == pytest.approx(wanted, abs=1e-5)
    plain = await make(max_tiles=4).score(asked[:1])
    assert plain[0].prefix_tokens < results[0].prefix_tokens  # a small square gets more tiles


def test_scores_by_different_rules_have_different_names(path: Path) -> None:
    make = scorer_maker(str(path), "cpu")
    names = {
        TiledScorer(lambda most: make(max_tiles=most), rule).identity
        for rule in (Tiling(4), Tiling(2), Tiling(4, together=64), Tiling(4, 64, doubled=True))
    }
    assert len(names) == 4
    assert TiledScorer(lambda most: make(max_tiles=most), Tiling(2)).identity == (
        make(max_tiles=2).identity  # type: ignore[attr-defined]
    )


async def test_a_picture_too_large_to_be_doubled_stays_as_it_is() -> None:
    large = normalise_image(Image.new("RGB", (5000, 30)))
    seen: list[ScoreRequest] = []

    class Scorer:
        async def score(self, requests: list[ScoreRequest]) -> list[object]:
            seen.extend(requests)
            return [None for _ in requests]

    asked = ScoreRequest(Problem("?", (large.digest,)), ("so",), (large,))
    await TiledScorer(lambda _: Scorer(), Tiling(6, doubled=True)).score([asked])  # type: ignore[arg-type,return-value]
    assert seen == [asked]
