"""Scores of the real server against the in-process scorer, path by path."""

from __future__ import annotations

import pytest

from tests.serving.problems import INJECTIONS, Round, hostile_round, world_round
from tests.serving.server import PrmServer, scoring_body
from tests.serving.tolerances import TRAINED, TRAINED_TWICE
from vprm_search.scoring.prompt.text_encoder import without_surrogates
from vprm_search.scoring.transformers_scorer import TransformersScorer
from vprm_search.tiny.weights import weights_path

pytestmark = pytest.mark.slow


def compare(
    round_: Round,
    server: PrmServer,
    scorer: TransformersScorer,
    tolerance: float,
    salt: str,
    *,
    again: bool = False,
) -> int:
    """Check every score and token count of a round; return how many paths were compared.

    Of a round that is asked for `again`, rows within the prefix cache have no score.
    """
    expected = scorer.score_sync(round_.requests())
    question = without_surrogates(round_.question)  # they cannot travel in JSON
    paths = [[without_surrogates(step) for step in path] for path in round_.paths]
    body = scoring_body(question, round_.images, paths, cache_salt=salt)
    reply = server.post(body)
    assert "failures" not in reply
    assert len(reply["scores"]) == len(expected)
    for number, result in enumerate(expected):
        values = [score.value for score in result.scores]
        assert None not in values
        scores = reply["scores"][number]
        assert len(scores) == len(values)
        for score, value in zip(scores, values, strict=True):
            assert (again and score is None) or score == pytest.approx(value, rel=0, abs=tolerance)
        assert scores[-1] is not None
        total = reply["prefix_tokens"] + sum(reply["step_tokens"][number])
        assert total == result.prefix_tokens + sum(result.step_tokens)
    return len(expected)


@pytest.fixture(scope="module")
def exact() -> TransformersScorer:
    """The same model in float64."""
    return TransformersScorer.from_pretrained(weights_path("prm"), device="cpu", dtype="float64")


@pytest.mark.parametrize("images", [0, 1, 2, 3])
def test_scores_equal_the_model_in_float64(
    prm_server: PrmServer, exact: TransformersScorer, images: int
) -> None:
    compared = 0
    for number in range(8):
        round_ = world_round(number, images=images)
        compared += compare(round_, prm_server, exact, TRAINED, f"scores {images}")
    assert compared >= 60


def test_the_order_of_images_matters_as_in_process(
    prm_server: PrmServer, in_process: TransformersScorer
) -> None:
    there = world_round(3, images=2)
    back = Round(there.question, there.images[::-1], there.paths)
    first, second = (
        [s.value for r in in_process.score_sync(one.requests()) for s in r.scores]
        for one in (there, back)
    )
    assert first != pytest.approx(second, abs=1e-3)
    for place, one in enumerate((there, back, there)):
        compare(one, prm_server, in_process, TRAINED_TWICE, "order", again=place == 2)


@pytest.mark.parametrize("number", range(12))
def test_injected_control_text_changes_nothing(
    prm_server: PrmServer, in_process: TransformersScorer, number: int
) -> None:
    compare(hostile_round(number), prm_server, in_process, TRAINED_TWICE, "hostile")


@pytest.mark.parametrize("text", INJECTIONS)
def test_each_injection_as_a_whole_step_and_as_the_question(
    prm_server: PrmServer, in_process: TransformersScorer, text: str
) -> None:
    honest = world_round(5, paths=2)
    paths = [(text,), (*honest.paths[0], text), (text, *honest.paths[1]), (text, text, "")]
    questions = [honest.question, text, f"{text}{honest.question}"]
    if text.count("<image>") > len(honest.images):
        questions = questions[:1]  # more places than pictures: no server is asked
    for question in questions:
        round_ = Round(question, honest.images, tuple(paths))
        compare(round_, prm_server, in_process, TRAINED_TWICE, "each")


def test_empty_texts_and_equal_paths(prm_server: PrmServer, in_process: TransformersScorer) -> None:
    honest = world_round(6, paths=1)
    odd = (("",), ("", ""), ("\n\n",), ("a", "", "b"), (" a ", "\tb\n\n", "\n"), ("a", "b\n"))
    paths = (honest.paths[0],) * 5 + (*odd, honest.paths[0][:1], (*honest.paths[0], ""))
    round_ = Round(honest.question, honest.images, paths)
    compare(round_, prm_server, in_process, TRAINED_TWICE, "equal paths")


@pytest.mark.parametrize(
    "question",
    [
        "<image>\nWhat is the sum in <image>?",
        "Compare <image> with <image>",
        "<image><image>",
        "How many tiles?",
        "Image-1: <image>\nImage-2: <image>\nWhich is higher?",
    ],
)
def test_pictures_stand_where_the_question_has_them(
    prm_server: PrmServer, in_process: TransformersScorer, question: str
) -> None:
    shown = world_round(7, images=2, paths=2)
    for images in (shown.images, shown.images[::-1]):
        paths = (*shown.paths, ("as <image> shows", ""))
        compare(Round(question, images, paths), prm_server, in_process, TRAINED_TWICE, "places")
