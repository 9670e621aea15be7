"""`vprm-search serve`: the command, watching the server, and what is said when it dies."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.serving.server import CPU_ENVIRONMENT, PrmServer, free_port, scoring_body
from vprm_search.cli import main
from vprm_search.cli.vllm_server import ServeCommand, ServeOptions, ServerProcess, serve_command
from vprm_search.errors import CheckpointError, ConfigError, ScorerError
from vprm_search.scoring.families import ScorerFile
from vprm_search.scoring.prompt.layout import PrmLayout
from vprm_search.tiny.weights import weights_path

# Stands for vLLM: sleeps a little, answers /health, ends on SIGTERM with the code it is given.
STAND_IN = """
import http.server, signal, sys, time
port, delay, code = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
print("loading weights", flush=True)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(code))
time.sleep(delay)
if code == 3:
    print("(Worker pid=7) ERROR 11-21 07:21:52 [x.py:1] ValueError: no room for the KV cache")
    print("RuntimeError: Engine core initialization failed.", flush=True)
    sys.exit(3)

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()
    def log_message(self, *_):
        pass

http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


def stand_in(port: int, delay: float = 0.0, code: int = 0) -> ServeCommand:
    return ServeCommand((sys.executable, "-c", STAND_IN, str(port), str(delay), str(code)))


def value_of(argv: tuple[str, ...], option: str) -> str:
    return argv[argv.index(option) + 1]


def test_the_command_names_everything_the_scores_depend_on() -> None:
    command = serve_command(weights_path("prm"), ServeOptions(), "python")
    assert command.argv[:4] == ("python", "-m", "vllm.entrypoints.cli.main", "serve")
    assert json.loads(value_of(command.argv, "--hf-overrides")) == {
        "architectures": ["VprmInternVLForConditionalGeneration"],
        "classifier_from_token": ["-", "+"],
        "method": "from_2_way_softmax",
    }
    assert value_of(command.argv, "--runner") == "pooling"
    assert value_of(command.argv, "--convert") == "classify"
    assert json.loads(value_of(command.argv, "--pooler-config")) == {"task": "token_classify"}
    assert value_of(command.argv, "--io-processor-plugin") == "vprm_search"


def test_the_command_is_hardened() -> None:
    command = serve_command(weights_path("prm"), ServeOptions(), "python")
    assert value_of(command.argv, "--host") == "127.0.0.1"
    assert value_of(command.argv, "--allowed-media-domains").endswith(".invalid")
    assert (
        value_of(command.argv, "--middleware")
        == "vprm_search_vllm.access_middleware.AccessMiddleware"
    )
    assert command.environment["VLLM_MEDIA_URL_ALLOW_REDIRECTS"] == "0"
    shown = command.shell_text()
    for word in ("trust-remote-code", "allowed-local-media-path", "api-key", "trust-request"):
        assert word not in shown


def test_words_come_from_the_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "internvl"}')
    ScorerFile(layout=PrmLayout(plus_word="yes", minus_word="no")).write(tmp_path)
    argv = serve_command(tmp_path, ServeOptions(), "python").argv
    assert json.loads(value_of(argv, "--hf-overrides"))["classifier_from_token"] == ["no", "yes"]


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("gpu_memory", 0.8, ["--gpu-memory-utilization", "0.8"]),
        ("tensor_parallel", 2, ["--tensor-parallel-size", "2"]),
        ("data_parallel", 4, ["--data-parallel-size", "4", "--api-server-count", "1"]),
        ("max_model_len", 9000, ["--max-model-len", "9000"]),
        ("enforce_eager", True, ["--enforce-eager"]),
        ("dtype", "bfloat16", ["--dtype", "bfloat16"]),
        ("max_images", 3, ["--limit-mm-per-prompt", '{"image": 3}']),
        ("extra", ("--seed", "3"), ["--seed", "3"]),
    ],
)
def test_options_reach_vllm(option: str, value: object, expected: list[str]) -> None:
    plain = serve_command(weights_path("prm"), ServeOptions(), "python").argv
    changed = replace(ServeOptions(), **{option: value})  # type: ignore[arg-type]
    argv = serve_command(weights_path("prm"), changed, "python").argv
    place = argv.index(expected[0])
    assert list(argv[place : place + len(expected)]) == expected
    assert plain != argv


@given(
    argv=st.lists(st.text(st.characters(exclude_characters="\0"), max_size=8), min_size=1),
    values=st.dictionaries(st.from_regex(r"[A-Z_]+", fullmatch=True), st.text(max_size=8)),
)
def test_the_shown_command_is_what_a_shell_would_run(
    argv: list[str], values: dict[str, str]
) -> None:
    shown = ServeCommand(tuple(argv), values).shell_text()
    assert shlex.split(shown.replace(" \\\n", " ")) == [
        *(f"{name}={value}" for name, value in values.items()),
        *argv,
    ]


def test_directories_that_cannot_be_served(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        serve_command(tmp_path, ServeOptions())
    (tmp_path / "config.json").write_text('{"model_type": "internvl_chat"}')
    with pytest.raises(CheckpointError, match="vprm-search convert"):
        serve_command(tmp_path, ServeOptions())
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    ScorerFile().write(tmp_path)
    with pytest.raises(CheckpointError, match="'llama' model, needed is 'internvl'"):
        serve_command(tmp_path, ServeOptions())
    ScorerFile(family="qwen2.5-math-prm").write(tmp_path)
    with pytest.raises(ConfigError, match=r"cannot score the family 'qwen2\.5-math-prm'"):
        serve_command(tmp_path, ServeOptions())


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["serve", *arguments])
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def test_print_shows_the_command_and_no_secret(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "secret-canary")
    path = str(weights_path("prm"))
    code, out, err = run(capsys, path, "--print", "--port", "8123", "--", "--seed", "3")
    assert code == 0
    words = shlex.split(out.replace(" \\\n", " "))
    assert words[words.index("--port") + 1] == "8123"
    assert words[-2:] == ["--seed", "3"]
    assert "secret-canary" not in out + err
    assert 'VLLM_API_KEY="$VLLM_API_KEY"' in out


@pytest.mark.parametrize(
    "words",
    [
        ["--debug"],
        ["--version"],
        ["--help"],
        ["-h"],
        ["--print"],
        ["--port", "9", "--host=elsewhere", "--log", "-"],
        ["--", "--debug", "--"],
        ["serve", "--name", "--debug", ""],
    ],
    ids=" ".join,
)
def test_what_follows_two_dashes_goes_to_vllm_whatever_it_is_called(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(weights_path("prm"))
    for debug in ([], ["--debug"]):
        code, out, _ = run(capsys, path, "--print", *debug, "--", *words)
        assert code == 0
        assert shlex.split(out.replace(" \\\n", " "))[-len(words) :] == words
    with pytest.raises(SystemExit):  # not ours: an error of ours stays one line
        main(["serve", "/nowhere", "--", "--debug"])


def test_an_interpreter_without_vllm_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    path = str(weights_path("prm"))
    code, _, err = run(capsys, path, "--vllm-python", sys.executable)
    assert code == 1
    assert "has no vLLM; install it there" in err
    code, _, err = run(capsys, path, "--vllm-python", "/nowhere/python")
    assert code == 1
    assert "is no program" in err


def test_it_waits_until_the_server_is_healthy(tmp_path: Path) -> None:
    port = free_port()
    server = ServerProcess(stand_in(port, delay=1.0), {}, tmp_path / "log")
    seen: list[str] = []
    try:
        seconds = server.wait_until_healthy(
            f"http://127.0.0.1:{port}", 30, lambda _, line: seen.append(line)
        )
        assert 0.5 < seconds < 30
        assert "loading weights" in seen
    finally:
        server.stop()
    with pytest.raises(ProcessLookupError):
        os.killpg(server.pid, 0)


def test_a_server_that_dies_says_why(tmp_path: Path) -> None:
    server = ServerProcess(stand_in(free_port(), code=3), {}, tmp_path / "log")
    message = "ended with code 3 before it was ready: ValueError: no room for the KV cache;"
    with pytest.raises(ScorerError, match=message):
        server.wait_until_healthy("http://127.0.0.1:9", 30, lambda *_: None)
    assert server.last_lines()[-1] == "RuntimeError: Engine core initialization failed."


def test_a_server_that_never_answers_is_given_up(tmp_path: Path) -> None:
    server = ServerProcess(stand_in(free_port(), delay=60), {}, tmp_path / "log")
    with pytest.raises(ScorerError, match="not ready after 1 s"):
        server.wait_until_healthy("http://127.0.0.1:9", 1, lambda *_: None)
    server.stop()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_the_server_and_the_command(tmp_path: Path, number: signal.Signals) -> None:
    """The command runs as a process of its own, with an interpreter that stands for vLLM's."""
    port = free_port()
    code = (
        "import signal, sys; from pathlib import Path\n"
        # whoever runs the tests in the background may have it ignored
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from vprm_search.cli import serve\n"
        "from vprm_search.cli.vllm_server import ServeCommand\n"
        f"command = ServeCommand((sys.executable, '-c', {STAND_IN!r}, '{port}', '0', '0'))\n"
        f"serve._run(command, {{}}, 'http://127.0.0.1:{port}', Path({str(tmp_path / 'log')!r}), 30)"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    assert child.stderr is not None
    _until(lambda: "ready after" in (tmp_path / "err").read_text(), child, tmp_path / "err")
    child.send_signal(number)
    assert child.wait(20) == 0
    server = ServerProcess(stand_in(port), {}, tmp_path / "again")  # the port is free again
    server.wait_until_healthy(f"http://127.0.0.1:{port}", 20, lambda *_: None)
    server.stop()


def _until(
    done: Callable[[], bool], child: subprocess.Popen[str], copy: Path, seconds: float = 40
) -> None:
    """Copy what the child says to a file until it says what is waited for."""
    end = time.monotonic() + seconds
    copy.write_text("")
    while not done():
        assert time.monotonic() < end
        line = child.stderr.readline() if child.stderr else ""
        copy.write_text(copy.read_text() + line)
        assert line or child.poll() is None


@pytest.mark.slow
def test_what_vllm_said_before_it_died_is_shown(
    vllm_python: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "vllm.log"
    arguments = ["--vllm-python", str(vllm_python), "--log", str(log), "--port", str(free_port())]
    path = str(weights_path("prm"))
    code, _, err = run(capsys, path, *arguments, "--", "--no-such-option")
    assert code == 1
    assert "unrecognized arguments: --no-such-option" in err
    assert "vLLM ended with code 2 before it was ready" in err.replace("\n", " ")
    assert str(log) in err.replace("\n", "")


@pytest.mark.slow
def test_the_command_serves_and_ends_with_its_user(
    vllm_python: Path, servers: list[PrmServer], tmp_path: Path
) -> None:
    """From the shell: ready, a score over HTTP with the key, Ctrl-C, and nothing is left."""
    for other in servers:
        other.stop()
    port, log = free_port(), tmp_path / "vllm.log"
    words = ["serve", str(weights_path("prm")), "--port", str(port), "--log", str(log)]
    words += ["--vllm-python", str(vllm_python), "--dtype", "float32", "--enforce-eager"]
    child = subprocess.Popen(
        [sys.executable, "-c", "from vprm_search.cli import main; main()", *words],
        env={**os.environ, **CPU_ENVIRONMENT, "VLLM_API_KEY": "secret-canary"},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        _until(
            lambda: "ready after" in (tmp_path / "err").read_text(), child, tmp_path / "err", 600
        )
        url = f"http://127.0.0.1:{port}/pooling"
        body = {"model": "prm", "data": scoring_body("What is 2 + 3?", (), [["2 + 3 = 5"]])}
        assert httpx.post(url, json=body).status_code == 401
        headers = {"Authorization": "Bearer secret-canary"}
        reply = httpx.post(url, json=body, headers=headers, timeout=60)
        assert reply.status_code == 200
        assert 0 <= reply.json()["data"]["scores"][0][0] <= 1
    finally:
        child.send_signal(signal.SIGINT)
        assert child.wait(60) == 0
    assert "secret-canary" not in log.read_text() + (tmp_path / "err").read_text()
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)
