"""What the commands print with: two consoles, the exit codes, one-line errors, JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from vprm_search.errors import ConfigError
from vprm_search.report.view import printable

OK = 0
FAILED = 1
USAGE = 2
NO_ANSWER = 3
INTERNAL = 70
INTERRUPTED = 130

OUT = Console(highlight=False)
ERR = Console(stderr=True, highlight=False)


def complain(label: str, error: BaseException) -> None:
    """Print an error as one line on stderr, its text made printable and never read as markup."""
    said = str(error)
    if isinstance(error, OSError) and error.filename is not None:
        said = f"{error.filename}: {error.strerror}"
    text = printable(said) or type(error).__name__
    ERR.print(Text.assemble((f"{label}: ", "bold red"), text), soft_wrap=True)


def print_json(data: Any) -> None:
    """Print plain JSON in ASCII, so that no text in it can steer a terminal."""
    OUT.file.write(json.dumps(data, indent=2, ensure_ascii=True, allow_nan=False) + "\n")


def address(host: str, port: int) -> str:
    """Return where a server that listens at `host` is found from this machine."""
    near = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    return f"http://{f'[{near}]' if ':' in near else near}:{port}"


def check_place(*paths: Path | None) -> None:
    """Raise `ConfigError` for the first file that cannot be there: before the work, not after."""
    for path in filter(None, paths):
        if path.is_dir():
            raise ConfigError(f"{path} cannot be written: it is a folder; name a file")
        if not path.parent.is_dir():
            raise ConfigError(
                f"{path} cannot be written: there is no folder {path.parent}; make it"
            )


def write_file(path: Path, content: str | bytes) -> None:
    """Write a report and say where. Raises `ConfigError` if the file cannot be written."""
    data = content.encode() if isinstance(content, str) else content
    try:
        path.write_bytes(data)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error
    ERR.print(Text.assemble("wrote ", (printable(str(path)), "bold")), soft_wrap=True)
