"""Scorers around scorers: outcome scores of whole answers, and calibrated probabilities."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, islice, pairwise
from pathlib import Path
from typing import Self

from vprm_search.calibration.maps import Calibration, CalibrationFile
from vprm_search.errors import ConfigError, RecordError
from vprm_search.ids import digest
from vprm_search.images.normalise import blank_image
from vprm_search.steps import STEP_SEPARATOR
from vprm_search.types import Counts, ScoreRequest, ScoreResult, StepScore, StepScorer

MAX_FILE_BYTES = 16_000_000


class ScorerWrapper:
    """A scorer around another one, with what every such scorer passes on of it.

    A search asks `has_prefix_cache` whether it must bring back earlier rounds when it is resumed;
    who opens or closes a wrapper opens or closes what is inside. `identity` is each wrapper's own:
    its scores are other ones.

    Attributes:
        inner: the scorer inside.
    """

    def __init__(self, inner: StepScorer) -> None:
        self.inner = inner

    @property
    def has_prefix_cache(self) -> bool:
        """Whether the scorer inside keeps what it computed for later calls."""
        return bool(getattr(self.inner, "has_prefix_cache", False))

    async def aclose(self) -> None:
        """Close the scorer inside, if it can be closed."""
        close = getattr(self.inner, "aclose", None)
        if close is not None:
            await close()

    async def __aenter__(self) -> Self:
        """Open the scorer inside, if it can be opened."""
        enter = getattr(self.inner, "__aenter__", None)
        if enter is not None:
            await enter()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the scorer inside."""
        await self.aclose()


def name_of(scorer: StepScorer, given: str | None) -> str:
    """Return the given name of a scorer, or its `identity`.

    Raises:
        ConfigError: there is neither: two scorers must never share scores.
    """
    name = given or getattr(scorer, "identity", "")
    if not isinstance(name, str) or not name:
        raise ConfigError(
            f"{type(scorer).__name__} has no 'identity'; pass identity=..., a name that changes "
            "whenever the scores would"
        )
    return name


class BlankImages(ScorerWrapper):
    """Shows the scorer inside a grey picture in place of each of the problem's.

    Scores that stay as good as they were have nothing to do with the picture.

    Args:
        inner: the scorer that is shown grey pictures.
    """

    def __init__(self, inner: StepScorer) -> None:
        super().__init__(inner)
        self.identity = f"{getattr(inner, 'identity', '')}/blank"
        self._grey = blank_image()

    async def score(self, requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
        """Score all requests with their pictures blank: same length, same order."""
        return await self.inner.score([self._blanked(request) for request in requests])

    def _blanked(self, request: ScoreRequest) -> ScoreRequest:
        grey = (self._grey,) * len(request.images)
        problem = replace(request.problem, images=tuple(image.digest for image in grey))
        return replace(request, problem=problem, images=grey)


class OutcomeScorer(ScorerWrapper):
    """Wraps a scorer that scores steps and gives the scores of answers instead.

    The answer so far is scored as one step, whatever it is cut into: VisualPRM's own ORM mode puts
    the whole response into one user turn. The score of step i is that of the first i steps, joined
    by blank lines; it depends on them alone, so a search can use it like any step score, and the
    score of the last step is that of the whole answer. Aggregate with `last`.

    Args:
        inner: any step scorer.
        identity: a name of its scores, for a scorer that has no `identity`.

    Raises:
        ConfigError: there is no name: a step's score must never stand for an answer's.
    """

    def __init__(self, inner: StepScorer, *, identity: str | None = None) -> None:
        super().__init__(inner)
        self.identity = f"{name_of(inner, identity)}/orm"

    async def score(self, requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
        """Score the answers so far of all requests: same length, same order."""
        return step_results(requests, await self.inner.score(whole_answers(requests)))


def whole_answers(requests: Sequence[ScoreRequest]) -> list[ScoreRequest]:
    """Return for every step of every request the request that scores the answer up to it."""
    return [
        replace(request, steps=(answer,))
        for request in requests
        for answer in accumulate(request.steps, lambda a, b: f"{a}{STEP_SEPARATOR}{b}")
    ]


def step_results(
    requests: Sequence[ScoreRequest], results: Sequence[ScoreResult]
) -> list[ScoreResult]:
    """Put the results of `whole_answers` together again, one per request."""
    found = iter(results)
    return [_together(list(islice(found, len(request.steps)))) for request in requests]


def _together(answers: list[ScoreResult]) -> ScoreResult:
    """Return one result; a step's tokens are those its answer has more than the one before."""
    totals = [0, *(sum(answer.step_tokens) for answer in answers)]
    return ScoreResult(
        tuple(score for answer in answers for score in answer.scores),
        answers[0].prefix_tokens if answers else 0,
        tuple(max(0, b - a) for a, b in pairwise(totals)),
        sum((answer.cost for answer in answers), Counts()),
    )


class CalibratedScorer(ScorerWrapper):
    """Wraps a scorer and maps each P('+') by a calibration of steps.

    Whatever reads step scores then reads calibrated ones: thresholds of a verifier, pruning, an
    adaptive number of samples, selectors and reports. Step scores keep their order (an isotonic
    map may make ties). Unknown scores stay unknown.

    Args:
        inner: any step scorer.
        calibration: a map of step scores, as `read_calibration` gives them.
        any_scorer: take it also if it was fitted on a scorer of another `identity`.

    Raises:
        ConfigError: a calibration of paths, or one fitted on another scorer.
    """

    def __init__(
        self, inner: StepScorer, calibration: Calibration, *, any_scorer: bool = False
    ) -> None:
        if calibration.target != "step":
            raise ConfigError(
                f"a scorer takes a calibration of steps, this one is of {calibration.target}s "
                f"({calibration.aggregate}); use Calibration.as_aggregation for it"
            )
        name = str(getattr(inner, "identity", ""))
        if calibration.scorer and name and calibration.scorer != name and not any_scorer:
            raise ConfigError(
                f"the calibration was fitted on scorer {calibration.scorer!r}, this one is "
                f"{name!r}; fit it again, or pass any_scorer=True"
            )
        super().__init__(inner)
        self.calibration = calibration

    @property
    def identity(self) -> str:
        """The inner scorer's identity and the map's: calibrated and raw scores never mix."""
        name = str(getattr(self.inner, "identity", ""))
        if not name:
            return ""
        mapped = digest("calibration", self.calibration.map.model_dump_json())[:8].hex()
        return f"{name}+calibration-{mapped}"

    async def score(self, requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
        """Score all requests as the inner scorer does, and map every score."""
        return [
            replace(result, scores=tuple(map(self._mapped, result.scores)))
            for result in await self.inner.score(requests)
        ]

    def _mapped(self, score: StepScore) -> StepScore:
        if score.value is None or not 0.0 <= score.value <= 1.0:
            return score
        return replace(score, value=self.calibration.apply(score.value))


def read_calibration(path: str | os.PathLike[str]) -> CalibrationFile:
    """Read a file written by `vprm-search calibrate`. Raises `RecordError` if it cannot be used."""
    place = Path(path)
    try:
        with place.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise RecordError(f"{place} cannot be read: {error.strerror}") from error
    if len(data) > MAX_FILE_BYTES:
        raise RecordError(f"{place} has more than {MAX_FILE_BYTES} bytes: it is no calibration")
    return CalibrationFile.loads(data.decode("utf-8", "replace"), str(place))
