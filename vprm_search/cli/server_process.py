"""A server as a child process: started, watched until it is healthy, and stopped with its kind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from vprm_search.cli.serve_command import ServeCommand
from vprm_search.errors import ScorerError
from vprm_search.report.printable import printable, shortened
from vprm_search.scoring.server_health import is_healthy

STOP_AFTER_S = 30.0
"""A server that has not ended this long after it was asked to is killed."""
_SHOWN_LINES = 20
_TAIL_BYTES = 32_768
_HEAD_BYTES = 4_000_000
_POLL_S = 0.5
_CAUSE = re.compile(  # the last line of a traceback, also behind the mark of vLLM's logger
    r"^(?:\([^)]*\) )?(?:ERROR [^\]]*\] )?((?:\w+\.)*\w*(?:Error|Exception): .+)$", re.MULTILINE
)

Progress = Callable[[float, str], None]


class ServerProcess:
    """A running server with all processes it started: they form a process group of their own."""

    def __init__(self, command: ServeCommand, secrets: dict[str, str], log: Path | None) -> None:
        self.log = log
        environment = {**os.environ, **command.environment, **secrets}
        output = None if log is None else log.open("wb")
        try:
            self._child = subprocess.Popen(  # noqa: S603 - no shell; the caller made the command
                command.argv,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=None if output is None else subprocess.STDOUT,
                start_new_session=True,
            )
        finally:
            if output is not None:
                output.close()

    @property
    def pid(self) -> int:
        """Process id, which is also the id of the group."""
        return self._child.pid

    def wait_until_healthy(self, base_url: str, timeout_s: float, progress: Progress) -> float:
        """Return after how many seconds the server answered.

        `progress` is called with the seconds so far and the last line of the log. Raises
        `ScorerError`, with the end of the log, when the server ends or `timeout_s` pass first.
        """
        started = time.monotonic()
        while True:
            seconds = time.monotonic() - started
            code = self._child.poll()
            if code is not None:
                raise ScorerError(
                    f"vLLM ended with code {code} before it was ready{self._cause()}{self._end()}"
                )
            if is_healthy(base_url):
                return seconds
            if seconds > timeout_s:
                raise ScorerError(f"vLLM was not ready after {timeout_s:.0f} s{self._end()}")
            progress(seconds, (self.last_lines(1) or [""])[0])
            time.sleep(_POLL_S)

    def wait(self) -> int:
        """Wait until the server ends; return its exit code."""
        return self._child.wait()

    def stop(self) -> None:
        """End the server: asked at first, killed with its whole group if it does not go."""
        if self._child.poll() is None:
            self.send(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self._child.wait(STOP_AFTER_S)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)  # whoever of the group is left
        self._child.wait()

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
