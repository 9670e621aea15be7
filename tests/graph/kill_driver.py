"""Searches that are killed with SIGKILL again and again, each time going on in a new process.

    python -m tests.graph.kill_driver DIRECTORY KILLS SEED hash|cached|tiny [memory|POSTGRES]

The processes are forked from this one, which imports the libraries but never runs a search. Every
call to the model and the scorer is written to a log before it sleeps and answers; a search is
killed a random moment after a random number of calls, so that kills land in the middle of calls,
of checkpoints and between supersteps. "tiny" takes the trained models instead of the made-up ones,
"cached" puts the made-up scorer behind a file of scores that all processes share. Checkpoints go to
a SQLite file, or to the PostgreSQL database with the address POSTGRES, or into memory and so into
nothing: then every process begins anew. Prints a JSON summary.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from langchain_core.language_models import BaseChatModel
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite import SqliteSaver

from tests.graph.fakes import HashChatModel, HashScorer, asked, noisy_png
from vprm_search.graph import create_search_graph, search_done, tree_of_state
from vprm_search.images.store import DiskImageStore
from vprm_search.scoring.score_cache import CachedScorer, FileScoreStore, StoredScore, step_keys
from vprm_search.search import BeamSearch
from vprm_search.types import ScoreRequest, ScoreResult, StepScorer

SAVER = sys.argv[5] if len(sys.argv) > 5 else ""
MOST_KILLS = 6  # of a search that begins anew in every process
SLEEP_S = 0.012


class LoggedModel(HashChatModel):
    """Writes a line to `log` before every call."""

    log: str

    async def _agenerate(self, *args: Any, **kwargs: Any) -> Any:
        _append(self.log, "propose")
        return await super()._agenerate(*args, **kwargs)


class LoggedScorer:
    """Writes a line to `log` before every batch."""

    def __init__(self, inner: StepScorer, log: str) -> None:
        self.inner, self.log = inner, log
        self.has_prefix_cache = getattr(inner, "has_prefix_cache", False)

    async def score(self, requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
        _append(self.log, "score")
        return await self.inner.score(requests)


class LoggedStore(FileScoreStore):
    """Writes a line to `log` for every score that it holds by now."""

    log = ""

    def put(self, key: str, entry: StoredScore) -> None:
        super().put(key, entry)
        _append(self.log, f"stored {key}")


class LoggedSteps(LoggedScorer):
    """Writes a line to `steps` for every step it is asked to score."""

    identity = "made up"

    def __init__(self, inner: StepScorer, log: str, steps: str) -> None:
        super().__init__(inner, log)
        self.steps = steps

    async def score(self, requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
        for request in requests:
            _append(self.steps, f"asked {step_keys(self.identity, request)[-1]}")
        return await super().score(requests)


@dataclass(frozen=True)
class Models:
    """What a search is made of; made once, before any process is forked."""

    policy: Callable[[str], BaseChatModel]
    scorer: StepScorer
    question: dict[str, Any]


def hash_models() -> Models:
    def policy(log: str) -> BaseChatModel:
        return LoggedModel(delay_s=SLEEP_S, log=log)

    return Models(policy, HashScorer(delay_s=SLEEP_S), asked(png=noisy_png(48)))


def tiny_models() -> Models:
    from vprm_search.images import image_message
    from vprm_search.scoring.engine.checkpoint import load_checkpoint
    from vprm_search.scoring.transformers_scorer import TransformersScorer
    from vprm_search.tiny.chat_model import TinyChatModel
    from vprm_search.tiny.weights import weights_path
    from vprm_search.tiny.world import generate, render

    class LoggedTinyModel(TinyChatModel):
        log: str

        async def _agenerate(self, *args: Any, **kwargs: Any) -> Any:
            _append(self.log, "propose")
            return await super()._agenerate(*args, **kwargs)

    def policy(log: str) -> BaseChatModel:
        return LoggedTinyModel(log=log, temperature=1.0)

    # keeps keys and values between rounds: a new process must bring them back to get equal bits
    scorer = TransformersScorer(load_checkpoint(weights_path("prm")))
    problem = generate("tiles", "test", 0)
    message = image_message(problem.question, render(problem))
    return Models(policy, scorer, {"messages": [message]})


@contextlib.contextmanager
def saver_in(folder: Path) -> Iterator[BaseCheckpointSaver[Any]]:
    if SAVER == "memory":
        yield InMemorySaver()
        return
    if not SAVER:
        with SqliteSaver.from_conn_string(str(folder / "state.sqlite")) as sqlite:
            yield sqlite
        return
    from langgraph.checkpoint.postgres import PostgresSaver

    with PostgresSaver.from_conn_string(SAVER) as postgres:
        postgres.setup()
        yield postgres


def run(folder: Path, models: Models, *, delta: bool) -> None:
    """Start the search in `folder`, or go on with it, to its end; write its tree.

    Beforehand write down what was found: whether it was done, whether LangGraph says that nothing
    is next, and the tree.
    """
    log = str(folder / "calls.log")
    thread: Any = {"configurable": {"thread_id": folder.name}}
    with saver_in(folder) as saver:
        app = create_search_graph(
            policy=models.policy(log),
            scorer=_scorer(folder, models),
            strategy=BeamSearch(width=3, expand=3, stop=None),
            image_store=DiskImageStore(folder / "images"),
            delta_checkpoints=delta,
        ).compile(checkpointer=saver)
        found = app.get_state(thread)
        tree = tree_of_state(found.values).dumps() if found.values.get("search_problem") else ""
        seen = {"done": search_done(found), "nothing_next": not found.next, "tree": tree}
        _append(str(folder / "seen.log"), json.dumps(seen))
        if not search_done(found):
            given = None if found.values else models.question
            app.invoke(given, thread, durability="sync")
        state = app.get_state(thread)
        assert search_done(state)
        (folder / "result.json").write_text(json.dumps(state.values["search_result"]["node"]))
        (folder / "tree.json").write_text(tree_of_state(state.values).dumps())


def _scorer(folder: Path, models: Models) -> StepScorer:
    log = str(folder / "calls.log")
    if sys.argv[4] != "cached":
        return LoggedScorer(models.scorer, log)
    steps = str(folder / "steps.log")
    store = LoggedStore(folder / "scores.sqlite")
    store.log = steps
    return CachedScorer(LoggedSteps(models.scorer, log, steps), store)


def killed_search(
    folder: Path, models: Models, chance: random.Random, *, kills: bool, delta: bool
) -> int:
    """Run one search to its end and return how often it was killed."""
    folder.mkdir()
    log = folder / "calls.log"
    log.touch()
    count = 0
    while True:
        child = os.fork()
        if child == 0:
            _child(folder, models, delta=delta)
        tired = SAVER == "memory" and count >= MOST_KILLS
        after = _lines(log) + chance.randint(1, 14) if kills and not tired else 1 << 30
        if _ended(child, log, after):
            return count
        time.sleep(chance.random() * 3 * SLEEP_S)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            return count  # it ended first
        count += 1


def _child(folder: Path, models: Models, *, delta: bool) -> None:
    code = 1
    try:
        run(folder, models, delta=delta)
        code = 0
    finally:
        os._exit(code)


def _ended(child: int, log: Path, after: int) -> bool:
    """Wait until the log has `after` lines; return whether the child ended before."""
    while _lines(log) < after:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            if status:
                raise SystemExit(f"the search failed with status {status}")
            return True
        time.sleep(0.002)
    return False


def _append(path: str, line: str) -> None:
    with open(path, "a") as file:
        file.write(line + "\n")


def _lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def scored_again(log: str) -> int:
    """Count the steps that the scorer was asked for although their score was stored."""
    stored, again = set(), 0
    for line in log.splitlines():
        word, key = line.split()
        again += word == "asked" and key in stored
        stored |= {key} if word == "stored" else set()
    return again


def main() -> None:
    folder, wanted, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    models = tiny_models() if sys.argv[4] == "tiny" else hash_models()
    chance = random.Random(seed)
    killed_search(folder / "calm", models, chance, kills=False, delta=False)
    names = ("kills", "calls", "trees", "results", "found", "again")
    summary: dict[str, Any] = {name: [] for name in names}
    while sum(summary["kills"]) < wanted:
        number = len(summary["kills"])
        part = folder / f"killed-{number}"
        kills = killed_search(part, models, chance, kills=True, delta=number % 2 == 1)
        summary["kills"].append(kills)
        summary["calls"].append(_lines(part / "calls.log"))
        summary["trees"].append((part / "tree.json").read_text())
        summary["results"].append((part / "result.json").read_text())
        summary["found"] += map(json.loads, (part / "seen.log").read_text().splitlines())
        steps = part / "steps.log"
        summary["again"].append(scored_again(steps.read_text()) if steps.exists() else 0)
    summary["calm_calls"] = _lines(folder / "calm" / "calls.log")
    summary["calm_tree"] = (folder / "calm" / "tree.json").read_text()
    summary["calm_result"] = (folder / "calm" / "result.json").read_text()
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
