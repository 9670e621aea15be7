"""A progress bar of searches, in a terminal or a notebook, fed by the events of the search."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any, Self, TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from vprm_search.graph.events import Event, search_event
from vprm_search.report.view import printable

Part = TypeVar("Part")
_REDRAWN_S = 0.1


class SearchProgress:
    """Shows a line for each search: its round, its steps, how many ended, its best score so far.

    Give it to a search without a graph, or let it watch the stream of a graph, of any kind
    (`search_event`); several searches at once have a line each:

        with SearchProgress() as progress:
            run = run_search(question, policy=model, scorer=prm, on_event=progress)

        with SearchProgress() as progress:
            for part in progress.watch(graph.stream(question, stream_mode="custom")):
                ...

    A notebook shows it in place, too, and keeps the last state. Where there is neither a terminal
    nor a notebook, that is printed at the end.

    Args:
        candidates: how many steps a search may have at most, if that is known
            (`Budget.candidates`); the bar then fills up with them, and else with the end alone.
        console: where to print. Default: rich's.
    """

    def __init__(self, *, candidates: int | None = None, console: Console | None = None) -> None:
        self._total = candidates
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            console=console,
        )
        self._lock = threading.Lock()
        self._told: dict[str, _Told] = {}
        self._output: _NotebookOutput | None = None

    def __enter__(self) -> Self:
        """Begin to draw."""
        if self._progress.console.is_jupyter:
            self._output = _NotebookOutput(self._progress)
        else:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Draw the last state, and stop."""
        if self._output is None:
            self._progress.stop()
        else:
            self._output.draw()

    def __call__(self, event: Event) -> None:
        """Take one event: what `on_event` is given, or any part of a stream."""
        told = search_event(event)
        if told is None:
            return
        with self._lock:
            search = told["search"]
            if search not in self._told or (told["event"] == "round" and told["round"] == 1):
                task = self._progress.add_task("search", total=self._total)
                self._told[search] = _Told(task)
            known = self._told[search]
            known.take(told)
            done = known.steps if self._total else 0
            if known.over:
                self._progress.update(known.task, total=known.steps or 1)
                done = known.steps or 1
            self._progress.update(known.task, description=str(known), completed=done)
            if self._output is not None and self._output.is_old:
                self._output.draw()

    def watch(self, parts: Iterable[Part]) -> Iterator[Part]:
        """Yield what a stream yields, and show its searches."""
        for part in parts:
            self(part)  # type: ignore[arg-type]
            yield part


class _NotebookOutput:
    """What a cell shows of a progress bar; rich's own way to change it needs ipywidgets."""

    def __init__(self, progress: Progress) -> None:
        from IPython.display import DisplayHandle

        self._progress, self._handle = progress, DisplayHandle()
        self._handle.display(progress)
        self._drawn = time.monotonic()

    @property
    def is_old(self) -> bool:
        return time.monotonic() - self._drawn > _REDRAWN_S

    def draw(self) -> None:
        self._handle.update(self._progress)
        self._drawn = time.monotonic()


class _Told:
    """What one search has told so far."""

    def __init__(self, task: TaskID) -> None:
        self.task = task
        self.round = self.steps = self.ended = self.pruned = self.failed = 0
        self.best: float | None = None
        self.over = ""

    def take(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        nodes: Any = event.get("nodes", ())
        self.round = max(self.round, event.get("round", 0))
        if kind == "expanded":
            self.steps += len(nodes)
            self.ended += sum(node["status"] == "finished" for node in nodes)
            self.failed += sum(node["status"] == "failed" for node in nodes)
        elif kind == "scored":
            scores = [score for node in nodes for score in node["path_scores"].values()]
            self.best = max([*scores, *([] if self.best is None else [self.best])], default=None)
        elif kind == "pruned":
            self.pruned += len(nodes)
        elif kind == "finished":
            self.over = event["ended_by"]
        elif kind == "answer":
            self.over = f"answer {event['answer']}" if event["answer"] else "no answer"

    def __str__(self) -> str:
        parts = [f"round {self.round}", f"{self.steps} steps", f"{self.ended} finished"]
        parts += [f"{self.pruned} put aside"] if self.pruned else []
        parts += [f"{self.failed} failed"] if self.failed else []
        parts += [] if self.best is None else [f"best {self.best:.2f}"]
        return printable(" · ".join([*parts, *([self.over] if self.over else [])]))
