"""`integrations/langgraph_server` under `langgraph dev`, for the tests of this folder."""

from __future__ import annotations

import base64
import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from vprm_search.tiny.world import generate, render

ROOT = Path(__file__).resolve().parents[2]
PROBLEM = generate("tiles", "test", 3)


def asked() -> dict[str, Any]:
    """Return a question about a picture, as the graph takes it."""
    data = io.BytesIO()
    render(PROBLEM).save(data, "PNG")
    image = f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"
    return {"question": PROBLEM.question, "images": [image]}


@contextmanager
def langgraph_dev(folder: Path, **environment: str) -> Iterator[str]:
    """Run a copy of the application in `folder`; yield its address."""
    for file in (ROOT / "integrations" / "langgraph_server").glob("*.*"):
        shutil.copy(file, folder)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = (folder / "log").open("wb")
    command = [sys.executable, "-c", "from langgraph_cli.cli import cli; cli()", "dev"]
    command += ["--no-browser", "--no-reload", "--port", str(port), "--config", "langgraph.json"]
    own = {"PYTHONPATH": str(ROOT), "VPRM_SEARCH_CACHE": str(folder / "cache")}
    process = subprocess.Popen(
        command, cwd=folder, stdout=log, stderr=subprocess.STDOUT,
        env={**os.environ, **own, **environment}, start_new_session=True,
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            assert process.poll() is None, (folder / "log").read_text()[-3000:]
            try:
                if httpx.get(f"{url}/ok", timeout=5).status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.2)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)
        log.close()
