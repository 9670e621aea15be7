"""A calibrated scorer maps what the scorer says, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vprm_search.calibration.maps import Calibration, CalibrationFile, LogitMap
from vprm_search.errors import ConfigError, RecordError
from vprm_search.scoring.score_cache import CachedScorer
from vprm_search.scoring.wrappers import CalibratedScorer, read_calibration
from vprm_search.testing import ScriptedScorer
from vprm_search.types import Problem, ScoreRequest

HALF = Calibration(policy="p", scorer="told", map=LogitMap(temperature=2.0, bias=-0.5))


def told(scores: Sequence[float | None], identity: str = "told") -> ScriptedScorer:
    return ScriptedScorer(lambda asked: scores[len(asked.steps) - 1], identity=identity)


def request(steps: int) -> ScoreRequest:
    return ScoreRequest(Problem("q"), tuple(f"s{n}" for n in range(steps)))


@given(st.lists(st.none() | st.floats(0, 1), min_size=1, max_size=6))
async def test_scores_are_mapped_and_all_else_stays(scores: list[float | None]) -> None:
    (raw,) = await told(scores).score([request(len(scores))])
    (mapped,) = await CalibratedScorer(told(scores), HALF).score([request(len(scores))])
    assert (mapped.prefix_tokens, mapped.step_tokens) == (raw.prefix_tokens, raw.step_tokens)
    for old, new in zip(raw.scores, mapped.scores, strict=True):
        assert new.reason == old.reason
        assert new.value == (None if old.value is None else HALF.apply(old.value))


async def test_a_memo_never_mixes_raw_and_calibrated_scores() -> None:
    raw, other = told([0.9]), HALF.model_copy(update={"map": LogitMap(temperature=3.0)})
    names = {raw.identity} | {CalibratedScorer(raw, c).identity for c in (HALF, other)}
    assert len(names) == 3
    store = CachedScorer(raw).store
    for scorer in (CachedScorer(raw, store), CachedScorer(CalibratedScorer(raw, HALF), store)):
        (result,) = await scorer.score([request(1)])
        wanted = 0.9 if scorer.inner is raw else HALF.apply(0.9)
        assert result.scores[0].value == wanted


def test_a_scorer_without_an_identity_lends_none() -> None:
    calibrated = CalibratedScorer(told([0.5], identity=""), HALF)
    assert calibrated.identity == ""
    with pytest.raises(ConfigError, match="identity"):
        CachedScorer(calibrated)


def test_a_calibration_of_another_scorer_or_of_paths_is_refused() -> None:
    foreign = HALF.model_copy(update={"scorer": "another"})
    with pytest.raises(ConfigError, match=r"'another'.*'told'"):
        CalibratedScorer(told([0.5]), foreign)
    CalibratedScorer(told([0.5]), foreign, any_scorer=True)
    of_paths = Calibration(policy="p", target="path", aggregate="mean", map=LogitMap())
    with pytest.raises(ConfigError, match="as_aggregation"):
        CalibratedScorer(told([0.5]), of_paths)


def test_a_file_is_read_and_a_bad_one_is_told(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text(CalibrationFile(calibrations=(HALF,)).dumps())
    assert read_calibration(path).of("p") == HALF
    for content in (b"\xff\xfe", b"{}", b""):
        path.write_bytes(content)
        with pytest.raises(RecordError, match=r"c\.json"):
            read_calibration(path)
    with pytest.raises(RecordError, match="cannot be read"):
        read_calibration(tmp_path / "missing.json")
