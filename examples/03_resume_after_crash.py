"""A search that is killed in its middle and goes on in a new process where it was.

The first process stops after three rounds (here by leaving the stream); the second one opens the
same SQLite file, continues the thread and ends with the tree an undisturbed search would have.
Images are in a store on disk, not in the checkpoints.

Run: python examples/03_resume_after_crash.py
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from langgraph.checkpoint.sqlite import SqliteSaver

from vprm_search import (
    BeamSearch,
    DiskImageStore,
    TransformersScorer,
    create_search_graph,
    image_message,
    tree_of_state,
)
from vprm_search.graph import search_done
from vprm_search.tiny import TinyChatModel, generate, render, weights_path

THREAD: dict[str, Any] = {"configurable": {"thread_id": "one"}}


@contextmanager
def opened(folder: Path) -> Iterator[Any]:
    """Open the search as a new process would: models, image store and checkpoints from disk."""
    with SqliteSaver.from_conn_string(str(folder / "search.sqlite")) as saver:
        yield create_search_graph(
            policy=TinyChatModel(temperature=1.0),
            scorer=TransformersScorer.from_pretrained(weights_path("prm")),
            strategy=BeamSearch(width=2, expand=4),
            image_store=DiskImageStore(folder / "images"),
        ).compile(checkpointer=saver)


def main(folder: Path) -> tuple[str, str]:
    """Interrupt and resume a search; return its tree and that of an undisturbed one."""
    problem = generate("tiles-long", "test", 5)
    question = image_message(problem.question, render(problem))
    with opened(folder) as graph:
        rounds = 0
        stream = graph.stream(
            {"messages": [question]}, THREAD, stream_mode="custom", durability="sync"
        )
        for event in stream:
            rounds += event["event"] == "scored"
            if rounds == 3:
                break
        stream.close()
        print("stopped after", rounds, "rounds")
    with opened(folder) as graph:
        print("done:", search_done(graph.get_state(THREAD)))
        resumed = tree_of_state(graph.invoke(None, THREAD, durability="sync"))
        print("resumed to", resumed.rounds, "rounds and", len(resumed), "nodes")
    undisturbed_folder = folder / "undisturbed"
    undisturbed_folder.mkdir()
    with opened(undisturbed_folder) as graph:
        undisturbed = tree_of_state(graph.invoke({"messages": [question]}, THREAD))
    print("same tree as an undisturbed search:", resumed.dumps() == undisturbed.dumps())
    return resumed.dumps(), undisturbed.dumps()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        main(Path(name))
