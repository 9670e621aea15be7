"""The notebooks run from the first cell to the last.

`python -m tests.examples.test_notebooks` runs them and keeps what they show.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))


def run(path: Path) -> Any:
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": EXAMPLES}}
    ).execute()
    return notebook


def shown(notebook: Any) -> str:
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", ())]
    return "".join(o["text"] for o in outputs if o.get("name") == "stdout")


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path) -> None:
    assert "right answer:" in shown(run(path))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_shows_what_it_does(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert "right answer:" in shown(notebook)


if __name__ == "__main__":
    for file in NOTEBOOKS:
        made = run(file)
        for cell in made.cells:
            cell.metadata.clear()
            if cell.cell_type == "code":
                kept = [o for o in cell.outputs if o.get("name") != "stderr"]
                for output in kept:
                    output.get("data", {}).pop("image/jpeg", None)
                cell.outputs = kept
        nbformat.write(made, file)
