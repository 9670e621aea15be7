"""Checkpoints in their original format load by their path alone, and by a family's name."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.checkpoints import original_layout
from tests.checkpoints.original_layout import VERSIONS, write_original
from tests.families.oracle import FamilyOracle
from tests.families.test_oracle import PICTURES, WORDS
from tests.scoring.test_oracle import as_request
from vprm_search.checkpoints import convert_checkpoint, ensure_native
from vprm_search.errors import CheckpointError
from vprm_search.scoring import TransformersScorer
from vprm_search.scoring.engine.checkpoint import load_checkpoint


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VPRM_SEARCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "checkpoints"


@pytest.mark.parametrize("version", ["v1.0", "v1.1"])
def test_an_original_directory_is_converted_on_first_use(
    tmp_path: Path, cache: Path, version: str
) -> None:
    source = write_original(tmp_path / "src", VERSIONS[version])
    scorer = TransformersScorer.from_pretrained(source, device="cpu")
    [made] = cache.iterdir()
    written = {file: file.stat().st_mtime_ns for file in made.iterdir()}
    again = load_checkpoint(source, device="cpu")
    assert {file: file.stat().st_mtime_ns for file in made.iterdir()} == written
    convert_checkpoint(source, tmp_path / "out")
    by_hand = TransformersScorer.from_pretrained(tmp_path / "out", device="cpu")
    requests = [as_request("What is x?", PICTURES[:2], WORDS[:3]), as_request("x?", (), WORDS[:2])]
    assert [r.scores for r in scorer.score_sync(requests)] == [
        r.scores for r in by_hand.score_sync(requests)
    ]
    assert again.identity == scorer.identity
    assert scorer.layout.max_steps == 12


def test_an_original_checkpoint_of_another_family(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MM-PRM: the files of InternVL2.5, and one more added token."""
    words = (*original_layout.IMAGE_WORDS, "<prm>")
    monkeypatch.setattr(original_layout, "IMAGE_WORDS", words)
    monkeypatch.setattr(original_layout, "CORPUS", [*original_layout.CORPUS, *["Yes\nNo"] * 100])
    source = write_original(tmp_path / "src", VERSIONS["v1.0"])
    scorer = TransformersScorer.from_pretrained(source, family="mm-prm", device="cpu")
    rule = scorer.checkpoint.preprocess
    assert rule is not None
    assert rule.model_dump()["max_tiles"] == 6
    oracle = FamilyOracle(ensure_native(source, family="mm-prm"), "mm-prm", max_tiles=6)
    for images in ((), PICTURES[:1], PICTURES[1:]):
        [result] = scorer.score_sync([as_request("What is x?", images, WORDS[:3])])
        expected = oracle.score("What is x?", WORDS[:3], [image.png for image in images])
        assert [s.value for s in result.scores] == pytest.approx(expected, abs=1e-5)


def test_a_name_without_a_commit_is_refused_before_anything_is_fetched() -> None:
    with pytest.raises(CheckpointError, match="commit"):
        TransformersScorer.from_pretrained("OpenGVLab/VisualPRM-8B", revision="main")
