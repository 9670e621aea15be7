"""Every family scores as its convention says: one packed pass equals plain forwards, to 1e-5."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.families.oracle import PROMPT, FamilyOracle
from tests.families.tiny_tokenizers import TOKENIZERS
from tests.scoring.test_oracle import as_request, picture
from vprm_search.scoring import TransformersScorer
from vprm_search.scoring.families import FAMILIES
from vprm_search.types import ImageData

TOLERANCE = 1e-5
WORDS = (
    "the red bar is 3 so x = 2",
    "Step 1: compute the base",
    "Step 1: compute the height.",
    "12 + 3 - 4",
    "+",
    "So the answer is 11.",
    "Yes, x = 7",
)
PICTURES = (picture(0, 56, 56), picture(1, 130, 50), picture(2, 40, 90))
Pair = tuple[TransformersScorer, FamilyOracle]

steps = st.lists(st.sampled_from(WORDS), min_size=1, max_size=4).map(tuple)
problems = st.tuples(
    st.sampled_from(("What is x?", "How high is the bar?")),
    st.lists(st.sampled_from(PICTURES), max_size=2).map(tuple),
)
batches = st.lists(problems, min_size=1, max_size=2).flatmap(
    lambda chosen: st.lists(st.tuples(st.sampled_from(chosen), steps), min_size=1, max_size=5)
)


def load(path: Path, name: str, **options: object) -> TransformersScorer:
    """Load a family's checkpoint as a user would, the unpublished system prompts given."""
    if FAMILIES[name].system_prompt_source:
        options["system_prompt"] = PROMPT
    return TransformersScorer.from_pretrained(path, device="cpu", **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=sorted(TOKENIZERS))
def pair(request: pytest.FixtureRequest, folder_of: Callable[[str], Path]) -> Pair:
    name = request.param
    path = folder_of(name)
    return load(path, name), FamilyOracle(path, name)


def largest_difference(pair: Pair, asked: list[tuple[str, tuple[ImageData, ...], tuple[str, ...]]]):
    scorer, oracle = pair
    worst = 0.0
    for (question, images, path), result in zip(
        asked, scorer.score_sync([as_request(*item) for item in asked]), strict=True
    ):
        expected = oracle.score(question, path, [image.png for image in images])
        assert len(result.scores) == len(expected) == len(path)
        for score, value in zip(result.scores, expected, strict=True):
            assert score.value is not None, score.reason
            worst = max(worst, abs(score.value - value))
    return worst


@given(batch=batches)
@settings(max_examples=8)
def test_equals_the_family_convention(
    pair: Pair,
    batch: list[tuple[tuple[str, tuple[ImageData, ...]], tuple[str, ...]]],
) -> None:
    reads = FAMILIES[pair[1].name].images is not None
    asked = [(question, images if reads else (), path) for (question, images), path in batch]
    # of a whole vocabulary one word has little: its probabilities are small
    limit = TOLERANCE / 50 if pair[1].name == "dreamprm-1.5" else TOLERANCE
    assert largest_difference(pair, asked) <= limit


def test_empty_texts_follow_the_convention_too(pair: Pair) -> None:
    if pair[1].name == "math-shepherd":
        pytest.skip("two blanks before the marker: its authors' code would not find the step")
    asked = [("What is x?", (), ("", "so x = 2")), ("", (), ("so x = 2", ""))]
    assert largest_difference(pair, asked) <= TOLERANCE


INTERLEAVED = (
    ("<image>\nWhat is x?", 1),
    ("What is x in <image>?", 1),
    ("Compare <image> with <image>", 2),
    ("Image-1: <image>\nImage-2: <image>\nWhich bar is higher?", 2),
    ("<image><image>", 2),
    (" <image>\n\n<image>\nA. 3", 2),
)


@pytest.mark.parametrize(("question", "images"), INTERLEAVED)
def test_pictures_stand_where_the_question_has_them(pair: Pair, question: str, images: int) -> None:
    if FAMILIES[pair[1].name].images is None:
        pytest.skip("reads text only")
    path = ("the red bar is 3 so x = 2", "as <image> shows", "")
    places = [(question, order[:images], path) for order in (PICTURES, PICTURES[::-1])]
    assert largest_difference(pair, places) <= TOLERANCE
    plain = (question.replace("<image>", ""), PICTURES[:images], path)
    first, before = pair[0].score_sync([as_request(*places[0]), as_request(*plain)])
    assert first.scores[0] != before.scores[0]  # the place of a picture matters to this model


def test_the_image_tag_is_text_where_there_is_no_picture(pair: Pair) -> None:
    asked = [("What is <image>?", (), ("the <image> says 3", "<image>"))]
    assert largest_difference(pair, asked) <= TOLERANCE


def test_a_question_with_other_tags_than_pictures_is_refused_with_both_counts(pair: Pair) -> None:
    if FAMILIES[pair[1].name].images is None:
        pytest.skip("reads text only")
    request = as_request("<image> or <image>?", PICTURES[:1], ("x = 2",))
    [result] = pair[0].score_sync([request])
    assert result.scores[0].value is None
    assert result.scores[0].reason.startswith("bad_input: ")
    assert "2 times" in result.scores[0].reason
    assert "1 images" in result.scores[0].reason


def test_scores_spread(pair: Pair) -> None:
    """The test above would pass on a model that answers one half to everything."""
    scorer, oracle = pair
    reads = FAMILIES[oracle.name].images is not None
    requests = [
        as_request(f"What is {n} + x?", PICTURES[n % 3 : n % 3 + 1] if reads else (), (word, "x"))
        for n in range(4)
        for word in WORDS
    ]
    values = [s.value for r in scorer.score_sync(requests) for s in r.scores if s.value is not None]
    assert len(values) == 2 * len(requests)
    if oracle.name == "dreamprm-1.5":  # one word of 640 has little of the whole probability
        assert max(values) > 10 * min(values)
    else:
        assert max(values) - min(values) > 0.2


def test_images_count_where_the_family_reads_them(pair: Pair) -> None:
    scorer, oracle = pair
    path = ("the red bar is 3", "so x = 2")
    results = scorer.score_sync([as_request("What is x?", (p,), path) for p in PICTURES])
    if FAMILIES[oracle.name].images is None:
        assert all("reads" in s.reason or "read text only" in s.reason for s in results[0].scores)
        assert all(s.value is None for r in results for s in r.scores)
    else:
        assert len({r.scores[0].value for r in results}) == len(PICTURES)
