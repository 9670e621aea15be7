"""Calibration maps against closed forms; files that are damaged are told apart."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from vprm_search.aggregate import path_score, register_aggregation
from vprm_search.calibration.maps import (
    Calibration,
    CalibrationFile,
    IsotonicMap,
    LogitMap,
)
from vprm_search.errors import ConfigError, RecordError

probabilities = st.floats(0, 1)
logit_maps = st.builds(
    LogitMap, temperature=st.floats(0.01, 100), bias=st.floats(-50, 50, allow_nan=False)
)


@st.composite
def isotonic_maps(draw: st.DrawFn) -> IsotonicMap:
    scores = draw(st.lists(probabilities, min_size=1, max_size=8, unique=True))
    values = draw(st.lists(probabilities, min_size=len(scores), max_size=len(scores)))
    return IsotonicMap(scores=tuple(sorted(scores)), probabilities=tuple(sorted(values)))


maps = logit_maps | isotonic_maps()


@given(maps, st.lists(probabilities, min_size=2, max_size=6))
def test_a_map_makes_probabilities_and_never_turns_an_order_around(
    score_map: LogitMap | IsotonicMap, scores: list[float]
) -> None:
    mapped = [score_map(score) for score in sorted(scores)]
    assert all(0.0 <= value <= 1.0 for value in mapped)
    assert all(a <= b for a, b in pairwise(mapped))


@given(st.floats(1e-6, 1 - 1e-6), st.floats(0.1, 10), st.floats(-5, 5))
def test_a_logit_map_is_the_softmax_of_two_divided_logits(
    score: float, temperature: float, bias: float
) -> None:
    """P('+') is a softmax over '+' and '-': dividing both logits is dividing their difference."""
    plus, minus = math.log(score), math.log1p(-score)
    a, b = plus / temperature + bias, minus / temperature
    top = max(a, b)
    expected = math.exp(a - top) / (math.exp(a - top) + math.exp(b - top))
    assert LogitMap(temperature=temperature, bias=bias)(score) == pytest.approx(expected, rel=1e-9)


@given(probabilities)
def test_temperature_one_changes_next_to_nothing(score: float) -> None:
    assert LogitMap()(score) == pytest.approx(score, abs=1.1e-7)


def test_an_isotonic_map_draws_straight_lines_and_stays_level_outside() -> None:
    drawn = IsotonicMap(scores=(0.2, 0.6, 0.8), probabilities=(0.1, 0.5, 0.5))
    for score, value in [(0, 0.1), (0.2, 0.1), (0.4, 0.3), (0.6, 0.5), (0.7, 0.5), (1, 0.5)]:
        assert drawn(score) == pytest.approx(value)


def calibrations(target: str = "step", policy: str = "p", **more: Any) -> Calibration:
    aggregate = "product" if target == "path" else ""
    fields = {"policy": policy, "target": target, "aggregate": aggregate, "map": LogitMap(), **more}
    return Calibration.model_validate(fields)


@given(st.lists(st.tuples(st.text(max_size=5), maps), min_size=1, max_size=4))
def test_a_file_comes_back_as_it_was(parts: list[tuple[str, LogitMap | IsotonicMap]]) -> None:
    file = CalibrationFile(
        calibrations=tuple(calibrations(policy=name, map=found) for name, found in parts)
    )
    assert CalibrationFile.loads(file.dumps()) == file


def test_a_calibration_of_paths_is_an_aggregation() -> None:
    of_paths = calibrations("path", map=LogitMap(temperature=2.0, bias=1.0))
    for calibration in (of_paths, of_paths.model_copy()):  # the same one twice is one
        register_aggregation("answer_chance_of_tests", calibration.as_aggregation())
    scores = [0.5, 0.25]
    expected = of_paths.apply(path_score("product", scores) or 0.0)
    assert path_score("answer_chance_of_tests", scores) == expected
    with pytest.raises(ConfigError, match="CalibratedScorer"):
        calibrations("step").as_aggregation()


def test_the_one_that_fits_is_found_and_anything_else_is_told() -> None:
    file = CalibrationFile(
        calibrations=(calibrations(policy="a"), calibrations(policy="b"), calibrations("path"))
    )
    assert file.of("b").policy == "b"
    assert file.of(target="path", aggregate="product").aggregate == "product"
    with pytest.raises(ConfigError, match=r"2 calibrations of steps for any policy.*'a'.*'b'"):
        file.of()
    with pytest.raises(ConfigError, match=r"no calibration of steps for policy 'c'"):
        file.of("c")


GOOD = json.loads(CalibrationFile(calibrations=(calibrations(),)).dumps())
ISOTONIC = {"kind": "isotonic", "scores": [0.2, 0.4], "probabilities": [0.1, 0.9]}


def damaged(**change: Any) -> str:
    return json.dumps({**GOOD, **change})


def with_map(**fields: Any) -> str:
    return damaged(calibrations=[{**GOOD["calibrations"][0], "map": fields}])


BAD = {
    "": "not JSON",
    "[" * 100_000: "not JSON",
    "[1]": "no calibration",
    damaged(format="x"): "no calibration",
    damaged(version=2): "version 2, this release reads version 1",
    damaged(calibrations=[]): "at least 1",
    damaged(more=1): "[Ee]xtra",
    with_map(kind="logit", temperature=0): "temperature.*greater than 0",
    with_map(kind="logit", temperature=math.nan): "finite",
    with_map(kind="spline"): "kind",
    with_map(**{**ISOTONIC, "scores": [0.4, 0.2]}): "do not rise",
    with_map(**{**ISOTONIC, "scores": [0.2, 0.2]}): "do not rise",
    with_map(**{**ISOTONIC, "probabilities": [0.9, 0.1]}): "fall",
    with_map(**{**ISOTONIC, "scores": [0.2]}): "1 scores have 2",
    with_map(**{**ISOTONIC, "scores": [0.2, 1.5]}): "less than or equal to 1",
}


@pytest.mark.parametrize(("text", "said"), BAD.items(), ids=range(len(BAD)))
def test_a_bad_file_is_a_typed_error(text: str, said: str) -> None:
    with pytest.raises(RecordError, match=f"cal.json.*{said}"):
        CalibrationFile.loads(text, "cal.json")


def test_target_and_aggregation_belong_together() -> None:
    with pytest.raises(ValidationError, match="aggregation"):
        calibrations("step", aggregate="mean")
    with pytest.raises(ValidationError, match="aggregation"):
        calibrations("path", aggregate="")
