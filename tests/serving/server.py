"""A real vLLM server on loopback, started the way `vprm-search serve` starts it."""

from __future__ import annotations

import base64
import re
import signal
import socket
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from vprm_search.cli.vllm_server import ServeOptions, ServerProcess, serve_command
from vprm_search.types import ImageData

START_TIMEOUT_S = 600
IMAGE_KEY = "0123456789abcdef" * 4
CPU_ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # other work runs on these cores too
    "OMP_NUM_THREADS": "1",
}
_METRIC = re.compile(r"^vllm:(\w+)\{[^}]*\} ([0-9.e+-]+)$", re.MULTILINE)


@dataclass
class PrmServer:
    """A served checkpoint; `stop` and `ensure_running` may be called any number of times.

    `base_url` stays the same over restarts, `start_seconds` is what the latest start took.
    `secrets` are environment variables of the server, `options` what `vprm-search serve` is given.
    """

    checkpoint: Path
    python: Path
    folder: Path
    options: ServeOptions
    secrets: dict[str, str] = field(default_factory=dict)
    start_seconds: float = 0.0
    _process: ServerProcess | None = None

    @property
    def base_url(self) -> str:
        """Where the server listens."""
        return f"http://127.0.0.1:{self.options.port}"

    @property
    def model(self) -> str:
        """The name the model is served by."""
        return self.options.name

    @property
    def log(self) -> Path:
        """All that vLLM printed since the latest start."""
        return self.folder / f"vllm-{self.options.port}.log"

    @property
    def pid(self) -> int:
        """Process id of the running server."""
        assert self._process is not None
        return self._process.pid

    def ensure_running(self) -> None:
        """Start the server unless it runs."""
        if self._process is None:
            self._wait(self._begin())

    def _begin(self) -> ServerProcess:
        command = serve_command(self.checkpoint, self.options, str(self.python))
        secrets = {"VPRM_SEARCH_VLLM_KEY": IMAGE_KEY, **CPU_ENVIRONMENT, **self.secrets}
        self._process = ServerProcess(command, secrets, self.log)
        return self._process

    def _wait(self, process: ServerProcess) -> None:
        try:
            self.start_seconds = process.wait_until_healthy(
                self.base_url, START_TIMEOUT_S, lambda seconds, line: None
            )
        except BaseException:
            print("\n".join(process.last_lines(60)))
            self.stop()
            raise

    def stop(self) -> None:
        """End the server and all its processes."""
        if self._process is not None:
            process, self._process = self._process, None
            process.stop()

    def kill(self) -> None:
        """End the server the hard way, as a crash would."""
        if self._process is not None:
            self._process.send(signal.SIGKILL)
            self.stop()

    def restart(self) -> None:
        """Stop the server and start it again, empty."""
        self.stop()
        self.ensure_running()

    def client(self) -> httpx.Client:
        """Return an HTTP client for this server."""
        return httpx.Client(base_url=self.base_url, timeout=120)

    def post(self, data: Any, *, status: int = 200) -> dict[str, Any]:
        """Send `data` to the plugin and return the reply's `data`, or its `error`."""
        with self.client() as client:
            reply = client.post("/pooling", json={"model": self.model, "data": data})
        assert reply.status_code == status, f"{reply.status_code}: {reply.text[:2000]}"
        body: dict[str, Any] = reply.json()
        found: dict[str, Any] = body["data"] if status == 200 else body["error"]
        return found

    def metrics(self) -> dict[str, float]:
        """Return vLLM's counters by name, summed over their labels."""
        with self.client() as client:
            return metrics(client.get("/metrics").text)

    def wait_until_idle(self, timeout_s: float = 60) -> None:
        """Wait until the engine has no request, running or waiting."""
        end = time.monotonic() + timeout_s
        while any(self.metrics()[f"num_requests_{state}"] for state in ("running", "waiting")):
            assert time.monotonic() < end, "the engine is still busy"
            time.sleep(0.2)


@contextmanager
def side_by_side(servers: Collection[PrmServer]) -> Iterator[None]:
    """Start servers at the same time, most of which is one thread's work; stop them at the end."""
    try:
        for server, process in [(server, server._begin()) for server in servers]:
            server._wait(process)
        yield
    finally:
        for server in servers:
            server.stop()


def metrics(text: str) -> dict[str, float]:
    """Return the counters in a page of vLLM's `/metrics`, summed over their labels."""
    found: dict[str, float] = {}
    for name, value in _METRIC.findall(text):
        found[name] = found.get(name, 0.0) + float(value)
    return found


def free_port() -> int:
    """Return a port nobody listens on at this moment."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def scoring_body(
    question: str,
    images: Sequence[ImageData],
    paths: Sequence[Sequence[str]],
    **changed: Any,
) -> dict[str, Any]:
    """Return a request of contract version 1 that carries all its images."""
    body: dict[str, Any] = {
        "version": 1,
        "question": question,
        "images": [image.digest for image in images],
        "image_data": {i.digest: base64.b64encode(i.png).decode() for i in images},
        "paths": [list(path) for path in paths],
        "cache_salt": None,
        "use_prefix_cache": True,
    }
    return {**body, **changed}
