"""`vprm-search convert` as a user types it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def _without_privileges() -> Iterator[None]:
    """Root may read and write everything; for a while be nobody."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_no_permission_is_an_error_of_the_user(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A source that may not be read and a folder that may not be written ended as bugs, code 70."""
    source = write_original(tmp_path / "src", VERSIONS["v1.1"])
    assert _run("convert", source, tmp_path / "good") == 0  # and all that it needs is imported
    for folder in (tmp_path, *tmp_path.parents):
        if not folder.stat().st_mode & 0o001:
            folder.chmod(0o711)  # pytest closes its folders again when it starts
    for file in source.iterdir():
        file.chmod(0o644)
    (tmp_path / "closed").mkdir(mode=0o555)
    secret = write_original(tmp_path / "secret", VERSIONS["v1.1"])
    secret.chmod(0)
    capsys.readouterr()
    try:
        for place, out, named in (
            (source, tmp_path / "closed" / "out", "closed"),
            (secret, tmp_path / "out", "secret"),
        ):
            with _without_privileges():
                code = _run("convert", place, out)
            message = capsys.readouterr().err
            assert code == 1, message
            assert message.count("\n") == 1
            assert named in message
    finally:
        secret.chmod(0o700)


def test_an_unknown_family_ends_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_original(tmp_path / "src", VERSIONS["v1.1"])
    assert _run("convert", source, tmp_path / "out", "--family", "nosuch") == 1
    assert "dreamprm-1.5, mm-prm, visualprm" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
