"""Trained models are put in their place whole, with a card that says what was measured."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from vprm_search.errors import CheckpointError
from vprm_search.tiny.packaging import install_weights
from vprm_search.tiny.weights import WEIGHT_NAMES, weights_root


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    shutil.copytree(weights_root(), folder)
    run = folder / "reward" / "prm"
    run.mkdir(parents=True)
    lines = [{"step": 10, "verdict": 0.5}, {"step": 20, "all.auc": 0.91234}, {"step": 21}]
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    (folder / "notes.md").write_text("made in a test")
    return folder


def test_all_models_are_installed_with_cards(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "weights"
    assert [path.name for path in install_weights(source, target)] == list(WEIGHT_NAMES)
    for name in WEIGHT_NAMES:
        weights = (target / name / "model.safetensors").read_bytes()
        assert weights == (source / name / "model.safetensors").read_bytes()
        assert "made in a test" in (target / name / "README.md").read_text()
    assert '"all.auc": 0.9123' in (target / "prm" / "README.md").read_text()


def test_an_incomplete_run_changes_nothing(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "weights"
    install_weights(source, target)
    (source / "orm" / "model.safetensors").unlink()
    before = {path: path.read_bytes() for path in target.rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError, match="no trained model orm"):
        install_weights(source, target)
    assert {path: path.read_bytes() for path in target.rglob("*") if path.is_file()} == before


def test_a_folder_is_not_installed_onto_itself(source: Path) -> None:
    with pytest.raises(CheckpointError, match="another folder"):
        install_weights(source, source)
    assert (source / "prm" / "model.safetensors").is_file()


def test_the_packaged_weights_stay_small() -> None:
    files = [path for path in weights_root().rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 24_000_000
