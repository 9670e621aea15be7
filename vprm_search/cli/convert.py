"""`vprm-search convert`: an original checkpoint becomes one that loads without remote code."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn
from rich.text import Text

from vprm_search.cli import console, options
from vprm_search.report.view import printable

if TYPE_CHECKING:
    from vprm_search.checkpoints import Manifest


def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC", help="Folder of the original checkpoint, or a hub name with --revision."
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make.")],
    revision: Annotated[
        str | None, typer.Option(help="The commit of a hub name, 40 hex digits.")
    ] = None,
    max_tiles: Annotated[
        int | None,
        typer.Option(min=1, help="Tiles of one image; default: 12, as VisualPRM's card."),
    ] = None,
    family: Annotated[
        str | None,
        typer.Option(help="What the weights were trained as; needed unless the checkpoint says."),
    ] = None,
    json: options.AsJson = False,
) -> None:
    """Convert an original InternVL or VisualPRM checkpoint; a stopped run is taken up again.

    Weights stay what they are, bit for bit. Nothing of the source is executed, pickles are refused.
    OUT appears when it is complete; its manifest (files, sizes, SHA-256) is printed.
    """
    from vprm_search.checkpoints import ConvertOptions, convert_checkpoint, locate

    chosen = ConvertOptions(max_tiles, family)
    place = locate(source, revision)
    with _progress() as on_progress:
        manifest = convert_checkpoint(place, out, chosen, on_progress=on_progress)
    if json:
        console.print_json(manifest.to_json())
    else:
        _show(manifest, out)


@contextmanager
def _progress() -> Iterator[Callable[[int, int], None]]:
    """Show a bar on stderr that counts the bytes of the weights, if stderr is a terminal."""
    columns = (BarColumn(), DownloadColumn(), TimeRemainingColumn())
    hidden = not console.ERR.is_terminal
    with Progress(*columns, console=console.ERR, transient=True, disable=hidden) as bar:
        task = bar.add_task("weights")
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _show(manifest: Manifest, out: Path) -> None:
    width = max(len(f"{record.bytes:,}") for record in manifest.files)
    for record in manifest.files:
        line = f"{record.sha256}  {record.bytes:>{width},}  {printable(record.name)}"
        console.OUT.print(Text(line), soft_wrap=True)
    summary = (
        f"{manifest.architecture} with {manifest.language_model}: {manifest.tensors} tensors, "
        f"{manifest.parameters:,} parameters, {manifest.dtype}; every tensor of the source was "
        f"used"
    )
    if manifest.dropped:
        summary += f", {len(manifest.dropped)} that are computed or tied were left out"
    console.OUT.print(Text(summary), soft_wrap=True)
    for warning in manifest.warnings:
        console.OUT.print(Text(f"note: {printable(warning)}"), soft_wrap=True)
    console.OUT.print(Text.assemble("wrote ", (printable(str(out)), "bold")), soft_wrap=True)
