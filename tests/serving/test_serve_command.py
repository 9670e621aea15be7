"""`vprm-search serve`: the command, watching the server, and what is said when it dies."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import redirect_stderr, suppress
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.serving.server import free_port
from vprm_search.cli import main, serve
from vprm_search.cli.vllm_server import (
    MIDDLEWARE,
    ServeCommand,
    ServeOptions,
    ServerProcess,
    _members,
    serve_command,
)
from vprm_search.errors import CheckpointError, ConfigError, ScorerError
from vprm_search.scoring.families import ScorerFile
from vprm_search.scoring.prompt.layout import PrmLayout
from vprm_search.tiny.weights import weights_path

# Stands for vLLM: sleeps a little, answers /health, ends on SIGTERM with the code it is given, or
# by itself when it is asked to die.
STAND_IN = """
import http.server, os, signal, sys, time
from multiprocessing import shared_memory
port, delay, code = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
print("loading weights", flush=True)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(code))
time.sleep(delay)
if code == 3:
    print("(Worker pid=7) ERROR 11-21 07:21:52 [x.py:1] ValueError: no room for the KV cache")
    print("RuntimeError: Engine core initialization failed.", flush=True)
    sys.exit(3)
memory = shared_memory.SharedMemory(create=True, size=100)
print(memory.name, flush=True)

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/die":
            print("RuntimeError: the engine is dead", flush=True)
            os._exit(7)
        self.send_response(200 if self.path == "/health" else 404)
        if name := os.environ.get("VPRM_SEARCH_VLLM_SERVER"):
            self.send_header("vprm-search-server", name)
        self.end_headers()
    def log_message(self, *_):
        pass

http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


def stand_in(port: int, delay: float = 0.0, code: int = 0) -> ServeCommand:
    words = (str(port), str(delay), str(code), MIDDLEWARE)
    return ServeCommand((sys.executable, "-c", STAND_IN, *words))


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
    for missing, name in (("weights", "model.safetensors"), ("tokenizer", "tokenizer.json")):
        with pytest.raises(CheckpointError, match=f"holds no {missing}"):
            serve_command(tmp_path, ServeOptions(), "python")
        (tmp_path / name).touch()
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
        ("on_cpu", True, ["--block-size", "32"]),
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
    with pytest.raises(CheckpointError, match="nothing says that it is a process reward model"):
        serve_command(weights_path("policy"), ServeOptions())
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


SAY = "#!/bin/sh\necho $VLLM_API_KEY; echo $VPRM_SEARCH_VLLM_KEY; echo $HF_HUB_OFFLINE; echo $@\n"


def test_the_printed_command_runs_in_a_shell_with_the_keys_of_that_shell(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    interpreter = tmp_path / "py thon"
    interpreter.write_text(SAY)
    interpreter.chmod(0o700)
    words = ["--print", "--api-key", "secret-canary", "--vllm-python", str(interpreter)]
    code, out, _ = run(capsys, str(weights_path("prm")), *words)
    assert code == 0

    def ran(**variables: str) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": os.environ["PATH"], **variables}
        return subprocess.run(
            ["sh", "-c", out], env=environment, capture_output=True, text=True, check=False
        )

    without = ran()  # an open server is not what was asked for
    assert without.returncode != 0
    assert "VLLM_API_KEY" in without.stderr
    key, first, offline, argv = ran(VLLM_API_KEY="k y").stdout.splitlines()
    assert (key, offline) == ("k y", "1")
    assert argv.startswith("-m vllm.entrypoints.cli.main serve ")
    assert re.fullmatch("[0-9a-f]{64}", first)
    assert ran(VLLM_API_KEY="k").stdout.splitlines()[1] != first
    assert ran(VLLM_API_KEY="k", VPRM_SEARCH_VLLM_KEY="mine").stdout.splitlines()[1] == "mine"


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
        name = server.last_lines()[-1]
        assert "loading weights" in seen
    finally:
        server.stop()
    assert not list(_members(server.pid))
    assert name.startswith("psm_")
    assert not (Path("/dev/shm") / name).exists()


def test_what_a_killed_server_had_in_shared_memory_is_removed(tmp_path: Path) -> None:
    port = free_port()
    server = ServerProcess(stand_in(port), {}, tmp_path / "log")
    server.wait_until_healthy(f"http://127.0.0.1:{port}", 30, lambda *_: None)
    memory = Path("/dev/shm") / server.last_lines()[-1]
    assert memory.exists()
    os.killpg(server.pid, signal.SIGKILL)  # Python's own helper, which would remove it, as well
    server.stop()
    assert not memory.exists()


def test_a_taken_port_is_an_error_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        for host in ("127.0.0.1", "0.0.0.0", "localhost"):
            words = [str(weights_path("prm")), "--host", host, "--port", str(port)]
            code, out, err = run(capsys, *words)
            assert (code, out) == (1, "")
            assert f"port {port} of {host} is taken by another program" in " ".join(err.split())
    code, _, err = run(capsys, str(weights_path("prm")), "--host", "192.0.2.1")
    assert code == 1
    assert "no server can listen at 192.0.2.1 port 8000" in " ".join(err.split())


def test_another_server_that_answers_is_not_taken_for_ours(tmp_path: Path) -> None:
    port = free_port()
    other = ServerProcess(stand_in(port), {}, tmp_path / "other")
    url = f"http://127.0.0.1:{port}"
    other.wait_until_healthy(url, 30, lambda *_: None)
    ours = ServerProcess(stand_in(port, delay=1), {}, tmp_path / "ours")  # it came a moment later
    try:
        with pytest.raises(ScorerError, match=r"ended with code 1 before .*Address already in use"):
            ours.wait_until_healthy(url, 30, lambda *_: None)
    finally:
        ours.stop()
        other.stop()


def test_the_log_is_for_its_owner_only(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("from yesterday")
    log.chmod(0o644)
    ServerProcess(stand_in(free_port(), code=3), {}, log).stop()
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    assert "yesterday" not in log.read_text()


def test_a_server_that_ends_by_itself_says_what_it_said_last(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    port = free_port()
    url, log = f"http://127.0.0.1:{port}", tmp_path / "log"

    def die() -> None:
        while "ready after" not in said.getvalue():
            time.sleep(0.05)
        with suppress(httpx.HTTPError):
            httpx.get(f"{url}/die")

    said = io.StringIO()
    killer = threading.Thread(target=die)
    killer.start()
    with (
        redirect_stderr(said),
        pytest.raises(ScorerError, match=rf"ended by itself with code 7.*{log}"),
    ):
        serve._run(stand_in(port), {}, url, log, 30)
    killer.join()
    assert "RuntimeError: the engine is dead" in said.getvalue()


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
