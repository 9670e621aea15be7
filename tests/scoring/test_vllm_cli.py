"""`vprm-search score --scorer vllm:URL`: the scorer of a server, from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.scoring.vllm_double import expected_of, request, serving
from vprm_search.cli.app import main
from vprm_search.images import normalise_image
from vprm_search.tiny.weights import weights_path

KEY = "canary-key-9876543210"


@pytest.fixture
def solution(tmp_path: Path) -> Path:
    path = tmp_path / "solution.txt"
    path.write_text("first step\n\nsecond step")
    Image.new("RGB", (64, 64), (9, 90, 200)).save(path.with_name("picture.png"))
    return path


def run(solution: Path, *options: str) -> int:
    picture = solution.with_name("picture.png")
    asked = ["score", "--image", str(picture), "-q", "What?", "--solution", str(solution)]
    try:
        main([*asked, *options])
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def test_scores_come_from_the_server(
    solution: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VPRM_SEARCH_API_KEY", KEY)
    with serving(api_key=KEY) as server:
        assert run(solution, "--scorer", f"vllm:{server.url}", "--json") == 0
    out = capsys.readouterr().out
    rows = json.loads(out)["steps"]
    image = normalise_image(solution.with_name("picture.png"))
    asked = request("What?", ["first step", "second step"], image)
    assert [row["score"] for row in rows] == pytest.approx(expected_of(asked))
    assert KEY not in out


def test_a_key_given_as_an_option_is_sent_and_never_shown(
    solution: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VPRM_SEARCH_API_KEY", raising=False)
    with serving(api_key=KEY) as server:
        options = ["--scorer", f"vllm:{server.url}"]
        assert run(solution, *options) == 1
        assert run(solution, *options, "--scorer-api-key", KEY) == 0
        assert run(solution, *options, "--scorer-api-key", KEY + "x") == 1
    captured = capsys.readouterr()
    assert "401" in captured.err
    assert KEY not in captured.out + captured.err


@pytest.mark.parametrize(
    ("scorer", "extra", "said"),
    [
        ("vllm:nonsense", [], "http://127.0.0.1:8000"),
        ("vllm:http://127.0.0.1:9/", [], "cannot be used"),
        ("tiny", ["--scorer-tokenizer", "somewhere"], "vllm:URL only"),
    ],
)
def test_what_cannot_work_is_one_line(
    scorer: str,
    extra: list[str],
    said: str,
    solution: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(solution, "--scorer", scorer, *extra) == 1
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) == 1


def check(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[str, str, str]:
    """Return what `check` printed and complained of, and the cases that were compared."""
    with pytest.raises(SystemExit) as ended:
        main(["check", *arguments, "--tolerance", "1"])  # the double makes its scores up
    assert ended.value.code == 1  # and it scores what is too long for the packaged model
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    return captured.out, captured.err, " ".join(line for line in lines if " same" in line)


def test_a_server_is_checked_against_the_folder_it_serves(
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = str(weights_path("prm"))
    with serving(root=folder) as server:
        out, _, same = check(capsys, f"vllm:{server.url}")
    assert same.count(" same") == 11
    assert f"1 of 12 cases differ with {folder} (float32), tolerance 1" in out


@pytest.mark.parametrize("option", ["--against", "--scorer-tokenizer"])
def test_the_folder_of_a_server_elsewhere_is_named_by_the_user(
    capsys: pytest.CaptureFixture[str], option: str
) -> None:
    folder = str(weights_path("prm"))
    with serving() as server:
        _, err, same = check(capsys, f"vllm:{server.url}")
        assert not same
        assert "it serves '/models/prm', which is no folder here" in err
        assert "--against FOLDER" in err
        out, _, same = check(capsys, f"vllm:{server.url}", option, folder)
    assert same.count(" same") == 11
    assert f"cases differ with {folder}" in out
