"""`vprm-search convert` as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.checkpoints.original_layout import VERSIONS, write_original
from vprm_search.cli.app import main


def _run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    code = ended.value.code
    return code if isinstance(code, int) else 1


def test_convert_prints_the_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_original(tmp_path / "src", VERSIONS["v1.1"])
    out = tmp_path / "out"
    assert _run("convert", source, out) == 0
    text = capsys.readouterr().out
    manifest = json.loads((out / "vprm_conversion.json").read_text())
    for record in manifest["files"]:
        assert record["sha256"] in text
        assert record["name"] in text
    assert f"{manifest['tensors']} tensors" in text
    assert _run("convert", source, out, "--json") == 0
    assert json.loads(capsys.readouterr().out) == manifest


def test_errors_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "config.json").write_text("{}")
    (tmp_path / "src" / "pytorch_model.bin").write_bytes(b"x")
    assert _run("convert", tmp_path / "src", tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "pickles" in error
    assert _run("convert", "Owner/Name", tmp_path / "out") == 1
    assert "40 hex digits" in capsys.readouterr().err


def test_an_unknown_family_ends_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_original(tmp_path / "src", VERSIONS["v1.1"])
    assert _run("convert", source, tmp_path / "out", "--family", "nosuch") == 1
    assert "dreamprm-1.5, mm-prm, visualprm" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
