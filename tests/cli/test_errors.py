"""Exit codes, one-line errors, and text that cannot steer the terminal."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Asked, Run
from vprm_search import __version__
from vprm_search.cli import main
from vprm_search.errors import VprmError


def check_one_line(err: str, *parts: str) -> None:
    assert err.count("\n") == 1, err
    assert err.startswith("error: ")
    assert "Traceback" not in err
    for part in parts:
        assert part in err


def test_help_names_every_command(run: Run) -> None:
    ran = run("--help")
    assert ran.code == 0
    for command in ("demo", "solve", "score", "doctor"):
        assert command in ran.out


@pytest.mark.parametrize(
    "command",
    [
        ("demo",),
        ("solve",),
        ("score",),
        ("doctor",),
    ],
)
def test_every_command_has_help(run: Run, command: tuple[str, ...]) -> None:
    ran = run(*command, "--help")
    assert ran.code == 0
    assert "Usage: vprm-search " + " ".join(command) in ran.out


def test_version(run: Run) -> None:
    ran = run("--version")
    assert (ran.code, ran.out) == (0, f"vprm-search {__version__}\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ("fly",),
        ("solve",),
        ("score", "--nonsense"),
        ("demo", "--problems", "many"),
        ("calibrate", "x"),
    ],
)
def test_wrong_usage_is_2(run: Run, arguments: tuple[str, ...]) -> None:
    assert run(*arguments).code == 2


def test_a_missing_image_is_1(run: Run, tmp_path: Path) -> None:
    missing = tmp_path / "missing.png"
    ran = run("solve", "--image", str(missing), "--question", "?")
    assert ran.code == 1
    check_one_line(ran.err, "missing.png")


def test_a_file_that_is_no_image_is_1(run: Run, tmp_path: Path, asked: Asked) -> None:
    text = tmp_path / "picture.png"
    text.write_text("no picture")
    ran = run("solve", "--image", str(text), "--question", "?")
    assert ran.code == 1
    check_one_line(ran.err)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (("--strategy", "best-of-n", "--width", "2"), "--width"),
        (("--strategy", "beam", "--n", "2"), "--n"),
        (("--width", "0"), "--width"),
        (("--prune-below", "7"), "--prune-below"),
        (("--aggregate", "median"), "median"),
        (("--policy", "openai"), "openai"),
        (("--policy", "tiny", "--base-url", "http://127.0.0.1:9/"), "--base-url"),
        (("--max-candidates", "0"), "--max-candidates 0"),
        (("--max-generated-tokens", "-1"), "--max-generated-tokens -1"),
        (("--lookahead", "0"), "--lookahead 0"),
        (("--threshold", "0.5"), "--threshold is for --strong"),
        (("--device", "tpu"), "device 'tpu'"),
        (("--scorer", "no/such/folder"), "no/such/folder"),
        (("--price-image", "-1"), "--price-image -1"),
        (("--price-scored", "nan"), "--price-scored nan"),
    ],
)
def test_options_that_cannot_be_are_1_and_named(
    run: Run, asked: Asked, options: tuple[str, ...], part: str
) -> None:
    ran = run("solve", *asked.arguments, *options)
    assert ran.code == 1
    check_one_line(ran.err, part)


@pytest.mark.parametrize(
    "command",
    [
        ("demo", "--problems", "3", "--out"),
        ("compare", "--world", "synthetic", "--problems", "8", "--n", "4", "--out"),
        ("calibrate", "tiny", "--problems", "1", "--samples", "2", "--out"),
        ("calibrate", "score", "--records", "none", "--policy", "p", "--images", "tiny", "--out"),
        ("preflight", "--world", "synthetic", "--out"),
    ],
)
def test_a_place_that_cannot_be_written_is_1_and_named(
    run: Run, tmp_path: Path, command: tuple[str, ...]
) -> None:
    (tmp_path / "file").write_text("no folder")
    ran = run(*command, str(tmp_path / "file" / "out"))
    assert ran.code == 1
    assert ran.out == ""  # before the work
    check_one_line(ran.err, str(tmp_path / "file"))


def test_a_message_with_control_characters_and_markup_is_shown_as_text(
    run: Run, tmp_path: Path
) -> None:
    ran = run("score", "--image", "[red]\x1b[31m\u202ex", "--question", "?", "--solution", "-")
    assert ran.code == 1
    assert "\x1b" not in ran.err
    assert "\u202e" not in ran.err


@pytest.mark.parametrize("place", [0, 1])
def test_debug_anywhere_shows_the_traceback(tmp_path: Path, place: int) -> None:
    arguments = ["score", "--image", str(tmp_path / "no.png"), "--question", "?"]
    arguments += ["--solution", str(tmp_path / "no.txt")]
    arguments.insert(place * len(arguments), "--debug")
    with pytest.raises(VprmError):
        main(arguments)


def test_an_interrupt_is_130_and_said(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    class Typing(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def readinto(self, _: object) -> int:
            raise KeyboardInterrupt  # as where somebody presses Ctrl-C while it is read

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(Typing())))
    ran = run("score", "--question", "?", "--solution", "-")
    assert ran.code == 130
    assert ran.err.startswith("interrupted")
    assert ran.err.count("\n") == 1


def test_doctor_as_json_in_a_process_of_its_own() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from vprm_search.cli import main; main()", "doctor", "--json"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    health = json.loads(done.stdout)
    assert done.returncode == (1 if health["broken"] else 0)
    assert health["versions"]["python"] == sys.version.split()[0]
    assert health["versions"]["torch"]
    assert health["devices"][0].startswith("cpu: ")


def test_doctor_says_what_is_missing_and_how_to_get_it(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("VPRM_SEARCH_TINY_WEIGHTS", str(tmp_path))
    ran = run("doctor")
    assert ran.code == 1
    assert "broken: the tiny model 'policy'" in ran.out
    assert "Everything needed" not in ran.out


def test_help_loads_no_heavy_library() -> None:
    code = (
        "import sys\n"
        "from vprm_search.cli import main\n"
        "try:\n    main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(*sorted({m.partition('.')[0] for m in sys.modules}), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True
    )
    loaded = set(done.stderr.split())
    assert loaded.isdisjoint({"torch", "transformers", "langgraph", "langchain_core"})


@pytest.mark.parametrize(
    ("data", "where"),
    [
        ("Es sind fünf.".encode("latin-1"), "byte 9 (0xfc)"),
        ("Answer: 5".encode("utf-16"), "byte 0 (0xff)"),
        (b"cut\xe2\x82", "byte 3 (0xe2)"),
    ],
)
def test_a_solution_in_another_encoding_is_refused(
    run: Run, tmp_path: Path, data: bytes, where: str
) -> None:
    """Not scored with question marks where its letters were."""
    file = tmp_path / "solution.txt"
    file.write_bytes(data)
    ran = run("score", "--question", "?", "--solution", str(file))
    assert ran.code == 1
    check_one_line(ran.err, str(file), where, "UTF-8")


@pytest.mark.parametrize("option", ["--html", "--png"])
def test_a_report_that_cannot_be_written_is_refused_before_the_search(
    run: Run, tmp_path: Path, option: str
) -> None:
    for place, part in ((tmp_path / "no" / "page", "no folder"), (tmp_path, "it is a folder")):
        ran = run("solve", "--question", "?", "--scorer", "no/such/folder", option, str(place))
        assert ran.code == 1
        check_one_line(ran.err, part)  # and not that the scorer is missing, which comes later
