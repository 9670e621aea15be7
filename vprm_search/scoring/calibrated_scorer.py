"""A scorer whose scores are probabilities for one policy."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vprm_search.calibration.maps import Calibration, CalibrationFile
from vprm_search.errors import ConfigError, RecordError
from vprm_search.ids import digest
from vprm_search.types import ScoreRequest, ScoreResult, StepScore, StepScorer

MAX_FILE_BYTES = 16_000_000


class CalibratedScorer:
    """Wraps a scorer and maps each P('+') by a calibration of steps.

    Whatever reads step scores then reads calibrated ones: thresholds of a verifier, pruning, an
    adaptive number of samples, selectors and reports. Step scores keep their order (an isotonic
    map may make ties). Unknown scores stay unknown. Raises `ConfigError` for a calibration of
    paths, or one fitted on another scorer (`identity`), unless `any_scorer` is True.
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
        self.inner = inner
        self.calibration = calibration

    @property
    def identity(self) -> str:
        """The inner scorer's identity and the map's: calibrated and raw scores never mix."""
        name = str(getattr(self.inner, "identity", ""))
        if not name:
            return ""
        mapped = digest("calibration", self.calibration.map.model_dump_json())[:8].hex()
        return f"{name}+calibration-{mapped}"

    @property
    def has_prefix_cache(self) -> bool:
        """Whether the inner scorer keeps what it computed between rounds."""
        return bool(getattr(self.inner, "has_prefix_cache", False))

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
