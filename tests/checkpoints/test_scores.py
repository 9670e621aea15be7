"""A converted checkpoint scores as the original one: against a plain-torch original."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.checkpoints.original_forward import OriginalModel, internlm2_encoder, qwen2_encoder
from tests.checkpoints.original_layout import VERSIONS, sentencepiece_pieces, write_original
from tests.checkpoints.pictures import png
from vprm_search.checkpoints import convert_checkpoint
from vprm_search.images import normalise_image
from vprm_search.scoring import TransformersScorer
from vprm_search.types import ImageData, Problem, ScoreRequest

TOLERANCE = 1e-5
STEPS = [
    "Step 1: the base is 12 and the height is 3.",
    "So 12 * 3 / 2 = 18.\n  two  blanks,\ta tab, 你 and 书 and \U0001f600",
    "",
    "the answer is 18",
]
PICTURES = [png(100, 60, 1), png(50, 170, 2), png(64, 64, 3)]


class Pair:
    """One checkpoint twice: converted in the scorer, original in the oracle."""

    def __init__(self, root: Path, version: str) -> None:
        shape = VERSIONS[version]
        source = write_original(root / "src", shape)
        convert_checkpoint(source, root / "out")
        if shape.llm == "internlm2":
            encode = internlm2_encoder(source, sentencepiece_pieces())
        else:
            encode = qwen2_encoder(source)
        self.original = OriginalModel(source, encode)
        self.scorer = TransformersScorer.from_pretrained(root / "out", device="cpu")

    def differ(self, question: str, steps: list[str], pngs: list[bytes]) -> float:
        """Return the largest difference of a step's P('+')."""
        images = tuple(_image(data) for data in pngs)
        problem = Problem(question, tuple(image.digest for image in images))
        (result,) = self.scorer.score_sync([ScoreRequest(problem, tuple(steps), images)])
        ours = [score.value for score in result.scores]
        assert None not in ours, result.scores
        theirs = self.original.score(question, steps, [image.png for image in images])
        return max(abs(a - b) for a, b in zip(ours, theirs, strict=True) if a is not None)


def _image(data: bytes) -> ImageData:
    return normalise_image(data)


@pytest.fixture(scope="module", params=list(VERSIONS))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(tmp_path_factory.mktemp("pair"), request.param)


@pytest.mark.parametrize("pictures", [[], [0], [1, 0], [0, 1, 2], [2, 2]], ids=str)
def test_scores_equal_the_original(pair: Pair, pictures: list[int]) -> None:
    question = "What is the area of the triangle?\nAnswer with a number."
    assert pair.differ(question, STEPS, [PICTURES[n] for n in pictures]) < TOLERANCE


@settings(max_examples=15)
@given(data=st.data())
def test_random_texts_score_as_the_original(pair: Pair, data: st.DataObject) -> None:
    # control tokens in a text are another matter: the original reads them as such, we do not
    letters = st.characters(exclude_categories=["Cs"], exclude_characters="<>[]")
    text = st.text(letters, max_size=30)
    question = data.draw(text)
    steps = data.draw(st.lists(text, min_size=1, max_size=4))
    assert pair.differ(question, steps, PICTURES[: data.draw(st.integers(0, 1))]) < TOLERANCE


def test_the_order_of_images_matters(pair: Pair) -> None:
    """Without this, equality over several images would show little."""
    one = pair.original.score("q", ["a step"], [PICTURES[0], PICTURES[1]])
    other = pair.original.score("q", ["a step"], [PICTURES[1], PICTURES[0]])
    assert abs(one[0] - other[0]) > 100 * TOLERANCE


def test_scores_spread(pair: Pair) -> None:
    """A constant would agree with anything."""
    scores = pair.original.score("q", [str(n) * 3 for n in range(12)], [PICTURES[0]])
    assert max(scores) - min(scores) > 0.05
