"""The commands of the recipe: one per stage, each with help; wrong ones say what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from examples.tiny_models.__main__ import app, main
from examples.tiny_models.packaging import MODEL_NAMES, model_path
from examples.tiny_models.train_prm import STAGES

NAMES = ("policy", *STAGES, "install", "label", "evaluate")


@pytest.mark.parametrize("name", NAMES)
def test_every_stage_has_a_command(name: str) -> None:
    ran = CliRunner().invoke(app, [name, "--help"], prog_name="tiny_models")
    assert ran.exit_code == 0
    assert f"Usage: tiny_models {name}" in ran.output


def test_the_page_of_the_recipe_shows_every_command() -> None:
    page = (Path(__file__).parents[2] / "examples" / "tiny_models" / "README.md").read_text()
    assert [name for name in NAMES if f"python -m examples.tiny_models {name}" not in page] == []


def test_models_are_not_installed_over_themselves(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "policy" / "model.safetensors"
    kept.parent.mkdir()
    kept.write_bytes(b"weights")
    monkeypatch.setenv("VPRM_SEARCH_TINY_WEIGHTS", str(tmp_path))
    with pytest.raises(SystemExit) as stopped:
        main(["install", "--from", str(tmp_path / "policy" / "..")])
    assert stopped.value.code == 1
    assert "error: " in capsys.readouterr().err
    assert kept.read_bytes() == b"weights"


def test_cards_name_the_command_that_makes_their_model() -> None:
    for name in MODEL_NAMES:
        stage = "policy" if name.startswith("policy") else name
        card = (model_path(name) / "README.md").read_text()
        assert f"`python -m examples.tiny_models {stage} --out DIR`" in card
        assert "vprm-search tiny" not in card
