"""The progress bar says what the events say."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest
from rich.console import Console

from tests.graph.fakes import QUESTION, HashChatModel, HashScorer, asked
from vprm_search.graph import create_search_graph, run_search, tree_of_state
from vprm_search.images.store import MemoryImageStore
from vprm_search.report.progress import SearchProgress
from vprm_search.search import BeamSearch, Pruning

ROOT = Path(__file__).parents[2]
OPTIONS: Any = {
    "policy": HashChatModel(),
    "scorer": HashScorer(),
    "strategy": BeamSearch(width=2, expand=3, pruning=Pruning(below=0.3)),
}


def console(*, terminal: bool = False) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, width=200, force_terminal=terminal, no_color=True), out


@pytest.mark.parametrize("terminal", [True, False])
def test_a_search_without_a_graph_is_shown_to_its_end(terminal: bool) -> None:
    shown, out = console(terminal=terminal)
    with SearchProgress(console=shown) as progress:
        run = run_search(QUESTION, on_event=progress, **OPTIONS)
    tree = run.tree
    last = [line for line in out.getvalue().splitlines() if "round" in line][-1]
    assert f"round {tree.rounds} · {len(tree) - 1} steps" in last
    assert f"answer {run.result.answer}" in last
    assert f"{sum(r.status == 'pruned' for r in tree)} put aside" in last
    best = max(score for r in tree for score in r.path_scores.values())
    assert f"best {best:.2f}" in last


def test_streams_of_several_searches_have_a_line_each() -> None:
    graph = create_search_graph(**OPTIONS, image_store=MemoryImageStore()).compile()
    shown, out = console()
    with SearchProgress(console=shown, candidates=200) as progress:
        for question in ("How many?", "How many are red?"):
            modes = ["custom", "values"]
            parts = list(progress.watch(graph.stream(asked(question), stream_mode=modes)))
            tree = tree_of_state(parts[-1][1])
    lines = out.getvalue().strip().splitlines()
    assert len(lines) == 2
    assert f"{len(tree) - 1} steps" in lines[1]


def test_words_of_a_model_cannot_draw() -> None:
    shown, out = console(terminal=True)
    event: Any = {"search": "a", "event": "answer", "answer": "\x1b[31m[red]3"}
    with SearchProgress(console=shown) as progress:
        progress(event)
        progress({"event": "other"})
    assert "[31m[red]3" in out.getvalue()
    assert "\x1b[31m" not in out.getvalue()


CELLS = [
    """
from tests.report.test_progress import *
with SearchProgress() as progress:
    run = run_search(QUESTION, on_event=progress, **OPTIONS)
print(run.result.answer)
""",
    """
graph = create_search_graph(**OPTIONS, image_store=MemoryImageStore()).compile()
with SearchProgress() as progress:
    parts = [p async for p in graph.astream(asked(), stream_mode=["custom", "values"])]
    for part in progress.watch(parts):
        pass
""",
]


@pytest.mark.slow
def test_a_notebook_keeps_one_bar_a_cell_in_its_last_state() -> None:
    """In a kernel of its own, without ipywidgets."""
    cells = [nbformat.v4.new_code_cell(cell) for cell in CELLS]
    notebook = nbformat.v4.new_notebook(cells=cells)
    nbclient.NotebookClient(notebook, timeout=120, resources={"metadata": {"path": ROOT}}).execute()
    tree = run_search(QUESTION, **OPTIONS).tree
    for cell in notebook.cells:
        bar, *others = cell.outputs
        assert bar.output_type == "display_data"
        for kind in ("text/plain", "text/html"):
            assert f"round {tree.rounds} · {len(tree) - 1} steps" in bar.data[kind]
            assert " · answer " in bar.data[kind]
        assert [other.get("name") for other in others] in ([], ["stdout"])
