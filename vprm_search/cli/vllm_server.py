"""A vLLM server as a child process: the command with its options, watched, and stopped.

`serve_command` says which options serve a reward model and why each is there; `ServerProcess` runs
a command until it is healthy, and ends it with all its processes.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex
from types import FrameType
from typing import Annotated, Any

import typer

from vprm_search.errors import CheckpointError, ConfigError, ScorerError
from vprm_search.report.view import printable, shortened
from vprm_search.scoring.vllm.transport import health_headers

ARCHITECTURE = "VprmInternVLForConditionalGeneration"
PLUGIN = "vprm_search"
MIDDLEWARE = "vprm_search_vllm.access_middleware.AccessMiddleware"
API_KEY_VARIABLE = "VLLM_API_KEY"
IMAGE_KEY_VARIABLE = "VPRM_SEARCH_VLLM_KEY"
TENANTS_VARIABLE = "VPRM_SEARCH_VLLM_TENANTS"
SERVER_VARIABLE = "VPRM_SEARCH_VLLM_SERVER"
SERVER_HEADER = "vprm-search-server"
"""The access middleware answers with this header, which holds the value of that variable."""
_NOWHERE = "no-media.invalid"  # a name that cannot resolve (RFC 2606): no URL is ever fetched
_SERVABLE = ("internvl", "text")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")

CPU_BLOCK_TOKENS = 32
"""A block of vLLM's cache on a CPU: what a path shares with others is whole blocks, and a finer one
its kernels do not have. vLLM's own choice there is 128; on a GPU it is 16, and is left to it."""
STOP_AFTER_S = 30.0
"""A server that has not ended this long after it was asked to is killed."""
_SHOWN_LINES = 20
_TAIL_BYTES = 32_768
_HEAD_BYTES = 4_000_000
_POLL_S = 0.5
_TIDY_UP_S = 5.0
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - looked at, nothing is made there
_SHARED = re.compile(r"(\d+) +/dev/shm/.*$", re.MULTILINE)  # the inode of a mapping
_CAUSE = re.compile(  # the last line of a traceback, also behind the mark of vLLM's logger
    r"^(?:\([^)]*\) )?(?:ERROR [^\]]*\] )?((?:\w+\.)*\w*(?:Error|Exception): .+)$", re.MULTILINE
)

Progress = Callable[[float, str], None]


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """What the user chose; None leaves the choice to vLLM.

    `gpu_memory` is the share of the GPU's memory vLLM takes, `on_cpu` says that vLLM is a build for
    processors, and `extra` goes to vLLM as it is.
    """

    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000
    name: Annotated[str, typer.Option(help="Name clients call the model by.")] = "prm"
    gpu_memory: Annotated[
        float | None, typer.Option("--gpu-memory-utilization", "--gpu-memory", min=0.01, max=1.0)
    ] = None
    tensor_parallel: Annotated[int, typer.Option(min=1, help="GPUs for one copy.")] = 1
    data_parallel: Annotated[int, typer.Option(min=1, help="Copies of the model.")] = 1
    max_model_len: Annotated[int | None, typer.Option(min=1, help="Tokens of a path.")] = None
    max_images: Annotated[int, typer.Option(min=0, help="Images of a problem.")] = 8
    dtype: Annotated[str, typer.Option(help="auto, bfloat16, float16 or float32.")] = "auto"
    enforce_eager: Annotated[
        bool, typer.Option("--enforce-eager", help="Start sooner, run slower.")
    ] = False
    all_routes: Annotated[
        bool, typer.Option("--all-routes", help="Keep vLLM's other HTTP routes.")
    ] = False
    on_cpu: bool = False
    extra: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ServeCommand:
    """A command with the environment variables it needs, none of them a secret."""

    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)

    def shell_text(self, secret_names: Sequence[str] = ()) -> str:
        """Return the command as a shell reads it.

        Args:
            secret_names: variables that must be set where the command runs; their values are not
                shown, and the shell refuses to run the command without them.
        """
        settings = [f'{name}="${{{name}:?is not set}}"' for name in secret_names]
        settings += [f"{name}={shlex.quote(value)}" for name, value in self.environment.items()]
        return " \\\n  ".join([*settings, shlex.join(self.argv[:5]), *_in_pairs(self.argv[5:])])


def serve_command(
    checkpoint: Path, options: ServeOptions, python: str = sys.executable
) -> ServeCommand:
    """Return the command that serves `checkpoint` with the vLLM of the interpreter `python`.

    Raises `CheckpointError` for a directory that cannot be served and `ConfigError` for a family
    whose score vLLM cannot compute.
    """
    layout, backbone = _servable(checkpoint)
    overrides: dict[str, Any] = {
        # score = lm_head['+'] - lm_head['-'], whose sigmoid is the softmax over the two words
        "classifier_from_token": [layout.minus_word, layout.plus_word],
        "method": "from_2_way_softmax",
    }
    if backbone == "internvl":
        overrides["architectures"] = [ARCHITECTURE]
    argv = [python, "-m", "vllm.entrypoints.cli.main", "serve", str(checkpoint.resolve())]
    argv += ["--host", options.host, "--port", str(options.port)]
    argv += ["--served-model-name", options.name]
    argv += ["--runner", "pooling", "--convert", "classify"]
    argv += ["--hf-overrides", json.dumps(overrides)]
    argv += ["--pooler-config", json.dumps({"task": "token_classify"})]
    argv += ["--io-processor-plugin", PLUGIN]
    argv += ["--middleware", MIDDLEWARE]
    argv += ["--allowed-media-domains", _NOWHERE]
    argv += ["--dtype", options.dtype, "--enable-prefix-caching"]
    if backbone == "internvl":
        argv += ["--limit-mm-per-prompt", json.dumps({"image": options.max_images})]
    argv += _sizes(options)
    environment = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0",
    }
    if options.all_routes:
        environment["VPRM_SEARCH_VLLM_ALL_ROUTES"] = "1"
    return ServeCommand((*argv, *options.extra), environment)


def _servable(checkpoint: Path) -> tuple[Any, str]:
    """Return the layout of a checkpoint and the kind of its model."""
    from vprm_search.records import read_json
    from vprm_search.scoring.families import find_family, read_scorer_file

    if not (checkpoint / "config.json").is_file():
        raise CheckpointError(
            f"{checkpoint} is no checkpoint directory (no config.json); give a local directory, "
            "models are never downloaded"
        )
    kind = read_json(checkpoint / "config.json").get("model_type")
    if kind == "internvl_chat":
        raise CheckpointError(
            f"{checkpoint} is in the original format, which needs remote code; convert it first: "
            f"vprm-search convert {shlex.quote(str(checkpoint))} OUT"
        )
    file = read_scorer_file(checkpoint)
    family = find_family(file.family)
    if family.readout != "token_pair" or family.backbone not in _SERVABLE:
        raise ConfigError(
            f"{checkpoint}: vLLM cannot score the family {family.name!r} ({family.backbone}, "
            f"{family.readout}); score it in this process"
        )
    if family.backbone == "internvl" and kind != "internvl":
        raise CheckpointError(f"{checkpoint} holds a {kind!r} model, needed is 'internvl'")
    for what, names in (("weights", ("*.safetensors",)), ("tokenizer", _TOKENIZER_FILES)):
        if not any(path for name in names for path in checkpoint.glob(name)):
            raise CheckpointError(f"{checkpoint} holds no {what} ({', '.join(names)})")
    return file.layout, family.backbone


def _sizes(options: ServeOptions) -> list[str]:
    argv: list[str] = []
    if options.gpu_memory is not None:
        argv += ["--gpu-memory-utilization", str(options.gpu_memory)]
    if options.tensor_parallel > 1:
        argv += ["--tensor-parallel-size", str(options.tensor_parallel)]
    if options.data_parallel > 1:
        # one HTTP process, so that an image is sent once and not once per process
        argv += ["--data-parallel-size", str(options.data_parallel), "--api-server-count", "1"]
    if options.max_model_len is not None:
        argv += ["--max-model-len", str(options.max_model_len)]
    if options.enforce_eager:
        argv += ["--enforce-eager"]
    if options.on_cpu:
        argv += ["--block-size", str(CPU_BLOCK_TOKENS)]
    return argv


def _members(group: int) -> Iterator[Path]:
    """Yield `/proc/PID` of the processes of a group that have not ended; none without `/proc`."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            state, _, of = (process / "stat").read_text().rpartition(")")[2].split()[:3]
            if int(of) == group and state != "Z":
                yield process


def _private(log: Path) -> int:
    """Open a log that only its owner can read, an old one too; return the descriptor."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.fchmod(descriptor, 0o600)
    return descriptor


def _in_pairs(argv: tuple[str, ...]) -> list[str]:
    """Return options with their values, one pair a line."""
    lines: list[list[str]] = []
    for word in argv:
        if word.startswith("--") or not lines:
            lines.append([])
        lines[-1].append(word)
    return [shlex.join(line) for line in lines]


class ServerProcess:
    """A running server with all processes it started: they form a process group of their own.

    Args:
        command: what to run. With our access middleware in it, a server is told from any other that
            answers at the same address: it is given a random name, and sends it back.
        secrets: further environment variables.
        log: file for its output, readable by its owner only; None leaves the output to us.
    """

    def __init__(self, command: ServeCommand, secrets: dict[str, str], log: Path | None) -> None:
        self.log = log
        self._shared_memory: dict[Path, int] = {}
        self._name = token_hex(16) if MIDDLEWARE in command.argv else None
        named = {} if self._name is None else {SERVER_VARIABLE: self._name}
        output = None if log is None else _private(log)
        try:
            self._child = subprocess.Popen(  # noqa: S603 - no shell; the caller made the command
                command.argv,
                env={**os.environ, **command.environment, **secrets, **named},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=None if output is None else subprocess.STDOUT,
                start_new_session=True,
            )
        finally:
            if output is not None:
                os.close(output)

    @property
    def pid(self) -> int:
        """Process id, which is also the id of the group."""
        return self._child.pid

    def wait_until_healthy(self, base_url: str, timeout_s: float, progress: Progress) -> float:
        """Return after how many seconds this very server answered.

        `progress` is called with the seconds so far and the last line of the log. Raises
        `ScorerError` when the server ends or `timeout_s` pass first.
        """
        started = time.monotonic()
        while True:
            seconds = time.monotonic() - started
            code = self._child.poll()
            if code is not None:
                raise ScorerError(
                    f"vLLM ended with code {code} before it was ready{self._cause()}{self._end()}"
                )
            if self._answers(base_url):
                self._note_shared_memory()  # it may be gone when it is asked next
                return seconds
            if seconds > timeout_s:
                raise ScorerError(f"vLLM was not ready after {timeout_s:.0f} s{self._end()}")
            progress(seconds, (self.last_lines(1) or [""])[0])
            time.sleep(_POLL_S)

    def _answers(self, base_url: str) -> bool:
        headers = health_headers(base_url)
        if headers is None:
            return False
        return self._name is None or headers.get(SERVER_HEADER) == self._name

    def wait(self) -> None:
        """Wait until the server ends. Raises `ScorerError`, since nobody has asked it to."""
        code = self._child.wait()
        raise ScorerError(f"vLLM ended by itself with code {code}{self._end()}")

    def stop(self) -> None:
        """End the server: asked at first, killed with its whole group if it does not go.

        Shared memory that its processes had and did not remove is removed.
        """
        self._note_shared_memory()
        if self._child.poll() is None:
            self.send(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self._child.wait(STOP_AFTER_S)
        if self._child.poll() is not None:  # its helpers tidy up when it is gone
            end = time.monotonic() + _TIDY_UP_S
            while list(_members(self.pid)) and time.monotonic() < end:
                time.sleep(_POLL_S / 10)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)  # whoever of the group is left
        self._child.wait()
        for path, inode in self._shared_memory.items():
            with suppress(OSError):
                if path.stat().st_ino == inode:
                    path.unlink()

    def _note_shared_memory(self) -> None:
        """Remember the named shared memory, semaphores too, that processes of the group have."""
        inodes: set[int] = set()
        for process in _members(self.pid):
            with suppress(OSError):
                maps = (process / "maps").read_text()
                inodes |= {int(found[1]) for found in _SHARED.finditer(maps)}
        with suppress(OSError):
            for path in _SHARED_MEMORY.iterdir():
                with suppress(OSError):
                    if (inode := path.stat().st_ino) in inodes:
                        self._shared_memory[path] = inode

    def send(self, number: int) -> None:
        """Send a signal to the server, which hands it on to its own children."""
        self._child.send_signal(number)

    @contextmanager
    def forwarding(self) -> Iterator[list[int]]:
        """Hand SIGINT and SIGTERM on to the server; yields the list of those that came."""
        came: list[int] = []

        def forward(number: int, frame: FrameType | None) -> None:
            came.append(number)
            self.send(number)

        before = {n: signal.signal(n, forward) for n in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield came
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def last_lines(self, count: int = _SHOWN_LINES) -> list[str]:
        """Return the last lines of the log, fit for a terminal."""
        if self.log is None:
            return []
        with self.log.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - _TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
        lines = [line for line in printable(text, lines=True).splitlines() if line.strip()]
        return lines[-count:]

    def _cause(self) -> str:
        """Return the first error in the log: the later ones only say that another process died."""
        if self.log is None:
            return ""
        with self.log.open("rb") as file:
            found = _CAUSE.search(file.read(_HEAD_BYTES).decode("utf-8", "replace"))
        return "" if found is None else f": {shortened(found[1], 300)}"

    def _end(self) -> str:
        if self.log is None:
            return "; its output is above"
        return f"; the whole log is {self.log}, its end is above"
