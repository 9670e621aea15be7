"""The program: its commands, and what becomes of an error.

Exit codes: 0 done; 1 an error of this package (bad input, missing model or library); 2 wrong
usage; 3 no answer was found; 70 a bug; 130 interrupted.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated

import typer
from typer.main import get_command

import vprm_search
from vprm_search.cli import console
from vprm_search.cli.bench import bench
from vprm_search.cli.calibrate import calibrate
from vprm_search.cli.check import check
from vprm_search.cli.compare import compare
from vprm_search.cli.convert import convert
from vprm_search.cli.datasets import datasets
from vprm_search.cli.demo import demo
from vprm_search.cli.doctor import doctor
from vprm_search.cli.evaluate import evaluate
from vprm_search.cli.mcp import mcp
from vprm_search.cli.options import takes_groups
from vprm_search.cli.preflight import preflight
from vprm_search.cli.proxy import proxy
from vprm_search.cli.score import score
from vprm_search.cli.serve import serve
from vprm_search.cli.solve import solve
from vprm_search.errors import SearchWarning, VprmError

DEBUG = "--debug"

app = typer.Typer(
    name="vprm-search",
    help="Reward-guided search for multimodal agents.",
    epilog=(
        "Exit codes: 0 done, 1 error, 2 wrong usage, 3 no answer found, 70 bug, 130 interrupted. "
        "Errors are one line; --debug, anywhere, adds the traceback."
    ),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for command in (
    demo, solve, score, preflight, compare, bench, serve, proxy, mcp, convert, check, doctor,
):  # fmt: skip
    app.command()(takes_groups(command))
app.add_typer(calibrate, name="calibrate")
app.add_typer(datasets, name="datasets")
app.add_typer(evaluate, name="evaluate")


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
    debug: Annotated[bool, typer.Option(DEBUG, help="Show tracebacks of errors.")] = False,
) -> None:
    if version:
        console.OUT.print(f"vprm-search {vprm_search.__version__}", markup=False)
        raise typer.Exit


COMMAND = get_command(app)  # app() would read every signature anew at each call


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit the process with its code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    end = given.index("--") if "--" in given else len(given)  # what follows is another program's
    debug = DEBUG in given[:end]
    given = [argument for argument in given[:end] if argument != DEBUG] + given[end:]
    if given == ["--version"]:
        given = ["--version", "doctor"]  # typer wants a command; the callback exits before it
    _quiet_libraries()
    try:
        COMMAND(args=given, prog_name="vprm-search")
    except VprmError as error:
        _give_up("error", error, debug, console.FAILED)
    except KeyboardInterrupt as error:
        _give_up("interrupted", error, debug, console.INTERRUPTED)
    except SystemExit as ended:  # typer takes an interrupt for such an end, and says nothing
        if ended.code == console.INTERRUPTED:
            _give_up("interrupted", KeyboardInterrupt(), debug, console.INTERRUPTED)
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.filename is not None:  # a file somebody named
            _give_up("error", error, debug, console.FAILED)
        label = f"bug ({type(error).__name__}; --debug shows the traceback)"
        _give_up(label, error, debug, console.INTERNAL)


def _give_up(label: str, error: BaseException, debug: bool, code: int) -> None:
    if debug:
        raise error
    console.complain(label, error)
    sys.exit(code)


def _quiet_libraries() -> None:
    """Keep other libraries' progress bars and chatter out of the output, and off the network.

    What a search warns of, its command says itself.
    """
    warnings.simplefilter("ignore", SearchWarning)
    for name, value in (
        ("HF_HUB_DISABLE_PROGRESS_BARS", "1"),
        ("HF_HUB_OFFLINE", "1"),
        ("TRANSFORMERS_VERBOSITY", "error"),
        ("TOKENIZERS_PARALLELISM", "false"),
    ):
        os.environ.setdefault(name, value)
