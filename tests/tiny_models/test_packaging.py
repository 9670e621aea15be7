"""Trained models are put in their place whole, with a card that says what was measured."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from examples.tiny_models.packaging import MODEL_NAMES, install_weights, model_folder, model_path
from vprm_search.errors import CheckpointError


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    for name in MODEL_NAMES:
        shutil.copytree(model_path(name), folder / name)
    run = folder / "reward" / "prm"
    run.mkdir(parents=True)
    lines = [{"step": 10, "verdict": 0.5}, {"step": 20, "all.auc": 0.91234}, {"step": 21}]
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    (folder / "notes.md").write_text("made in a test")
    return folder


def test_all_models_are_installed_with_cards(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "weights"
    assert [path.name for path in install_weights(source, target)] == list(MODEL_NAMES)
    for name in MODEL_NAMES:
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


def test_models_are_not_installed_over_themselves(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CheckpointError, match="another folder"):
        install_weights(source, source)
    monkeypatch.setenv("VPRM_SEARCH_TINY_WEIGHTS", str(source))
    with pytest.raises(CheckpointError, match="another folder"):
        install_weights(source / "prm" / "..")
    assert (source / "prm" / "model.safetensors").is_file()


def test_the_package_holds_two_models_and_the_recipe_the_others() -> None:
    homes = {name: model_folder(name).parent.parent.name for name in MODEL_NAMES}
    assert homes == {
        "policy": "tiny",
        "prm": "tiny",
        "policy_strong": "tiny_models",
        "prm_exact": "tiny_models",
        "orm": "tiny_models",
    }
    with pytest.raises(CheckpointError, match="there are: policy"):
        model_path("critic")


def test_the_weights_stay_small() -> None:
    sizes = {
        name: sum(file.stat().st_size for file in model_path(name).iterdir())
        for name in MODEL_NAMES
    }
    assert sum(sizes.values()) < 24_000_000
    assert sizes["policy"] + sizes["prm"] < 5_000_000  # in the wheel, which may have 8 MB


def test_the_wheel_is_small_and_holds_no_training_code(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=root, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.stat().st_size < 8_000_000
    names = zipfile.ZipFile(wheel).namelist()
    models = {Path(name).parent.name for name in names if name.endswith(".safetensors")}
    assert models == {"policy", "prm"}
    assert not [name for name in names if name.startswith(("examples", "tests"))]
    code = [zipfile.ZipFile(wheel).read(name) for name in names if name.endswith(".py")]
    assert not [text for text in code if b"torch.optim" in text or b".backward(" in text]
