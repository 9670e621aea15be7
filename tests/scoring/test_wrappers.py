"""What scorers around scorers pass on."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from vprm_search.calibration.maps import Calibration, LogitMap
from vprm_search.images.normalise import blank_image
from vprm_search.scoring import CachedScorer, OutcomeScorer
from vprm_search.scoring.reasons import CODES, NO_SERVER, code_of
from vprm_search.scoring.wrappers import BlankImages, CalibratedScorer
from vprm_search.testing import ScriptedScorer
from vprm_search.types import ImageData, Problem, ScoreRequest, StepScorer


class OpenedScorer(ScriptedScorer):
    """A user's scorer that keeps a prefix cache and must be opened and closed."""

    def __init__(self, keeps: bool) -> None:
        super().__init__(lambda _: 0.5)
        self.has_prefix_cache = keeps
        self.calls: list[str] = []

    async def __aenter__(self) -> OpenedScorer:
        self.calls.append("open")
        return self

    async def aclose(self) -> None:
        self.calls.append(f"close after {len(self.batches)}")


def calibrated(inner: StepScorer) -> CalibratedScorer:
    return CalibratedScorer(inner, Calibration(policy="p", map=LogitMap(temperature=2.0)))


WRAPPERS: list[Callable[[StepScorer], StepScorer]] = [
    OutcomeScorer,
    CachedScorer,
    BlankImages,
    calibrated,
]


@pytest.mark.parametrize("wrap", WRAPPERS)
@pytest.mark.parametrize("keeps", [True, False])
async def test_every_wrapper_passes_on_the_prefix_cache_and_the_end(
    wrap: Callable[[StepScorer], StepScorer], keeps: bool
) -> None:
    """A resumed search brings the prefix cache back only where it hears that there is one."""
    inner = OpenedScorer(keeps)
    for nested in (wrap(inner), OutcomeScorer(wrap(inner)), CachedScorer(wrap(inner))):
        assert nested.has_prefix_cache is keeps
    async with wrap(inner) as scorer:
        assert scorer is not inner
        await scorer.score([ScoreRequest(Problem("q"), ("a", "b"))])
    assert inner.calls == ["open", "close after 1"]
    assert len({inner.identity, wrap(inner).identity, OutcomeScorer(wrap(inner)).identity}) >= 2


@pytest.mark.parametrize("wrap", WRAPPERS)
async def test_a_wrapper_needs_no_more_than_a_scorer(
    wrap: Callable[[StepScorer], StepScorer],
) -> None:
    async with wrap(ScriptedScorer(lambda _: f"{NO_SERVER}: x")) as scorer:
        assert not scorer.has_prefix_cache
        [result] = await scorer.score([ScoreRequest(Problem("q"), ("a",))])
    assert code_of(result.scores[0].reason) == NO_SERVER


async def test_an_empty_step_stays_in_the_outcomes_answer() -> None:
    inner = OpenedScorer(True)
    await OutcomeScorer(inner).score([ScoreRequest(Problem("q"), ("", " a ", ""))])
    assert [r.steps for r in inner.asked] == [("",), ("\n\n a ",), ("\n\n a \n\n",)]


def test_codes_are_read_and_words_are_not() -> None:
    assert all(code_of(f"{code}: {code} more") == code_of(code) == code for code in CODES)
    assert code_of("the answer was too_long") == code_of("") == ""


async def test_a_scorer_of_blank_images_sees_as_many_grey_pictures() -> None:
    inner = ScriptedScorer(lambda _: 0.5)
    pictures = (ImageData("sha256-a", b"a"), ImageData("sha256-b", b"b"))
    asked = ScoreRequest(Problem("q", tuple(p.digest for p in pictures)), ("a",), pictures)
    assert [s.value for s in (await BlankImages(inner).score([asked]))[0].scores] == [0.5]
    (shown,) = inner.asked
    assert (shown.problem.question, shown.steps) == ("q", ("a",))
    assert shown.images == (blank_image(),) * 2
    assert shown.problem.images == tuple(image.digest for image in shown.images)
