"""kill -9 in the middle of a search, then a new process: the same tree, byte for byte."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver

from tests.graph.fakes import HashChatModel, HashScorer, asked
from vprm_search.errors import CheckpointError
from vprm_search.graph import create_search_graph, search_done, tree_of_state
from vprm_search.images.store import MemoryImageStore
from vprm_search.search import BeamSearch
from vprm_search.tiny.weights import weights_path

ROOT = Path(__file__).parents[2]


def driven(folder: Path, kills: int, seed: int, *models: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.graph.kill_driver"]
    command += [str(folder), str(kills), str(seed), *models]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-2000:]
    for line in done.stderr.lower().splitlines():
        assert "unregistered" not in line
        assert "blocked" not in line
    return json.loads(done.stdout)


def check(found: dict[str, Any], kills: int) -> None:
    assert sum(found["kills"]) >= kills
    assert len(found["calm_tree"]) > 5000
    assert set(found["trees"]) == {found["calm_tree"]}
    assert set(found["results"]) == {found["calm_result"]}
    # at most one superstep is repeated for a kill: one round of proposals, or one batch of scores
    per_round = 3
    for calls, killed in zip(found["calls"], found["kills"], strict=True):
        assert calls <= found["calm_calls"] + killed * per_round
    for seen in found["found"]:
        assert not seen["done"] or seen["tree"] == found["calm_tree"]
        assert not seen["done"] or seen["nothing_next"]


@pytest.mark.parametrize(("kills", "seed"), [(14, 1), pytest.param(200, 2, marks=pytest.mark.slow)])
def test_a_killed_search_goes_on_to_the_same_tree(tmp_path: Path, kills: int, seed: int) -> None:
    check(driven(tmp_path, kills, seed, "hash"), kills)


@pytest.mark.slow
def test_a_killed_search_goes_on_to_the_same_tree_in_postgres(
    tmp_path: Path, postgres: str
) -> None:
    check(driven(tmp_path, 60, 4, "hash", postgres), 60)


@pytest.mark.slow
@pytest.mark.parametrize("saver", ["memory", "sqlite", "postgres"])
def test_no_step_is_scored_again_where_processes_share_a_file_of_scores(
    saver: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """With checkpoints in memory every process begins anew, and still scores nothing twice."""
    address = {"memory": ["memory"], "sqlite": []}.get(saver)
    if address is None:
        address = [request.getfixturevalue("postgres")]
    found = driven(tmp_path, 36, 5, "cached", *address)
    assert sum(found["kills"]) >= 36
    assert set(found["trees"]) == {found["calm_tree"]}
    assert set(found["results"]) == {found["calm_result"]}
    assert set(found["again"]) == {0}


class Dies(Exception):
    """Stands for SIGKILL between a node's writes and the checkpoint after it."""


class Dying(InMemorySaver):
    """Stores what nodes write, and dies where the checkpoint after it would be stored."""

    lives = 1 << 30

    def put(self, *args: Any) -> Any:
        self.lives -= 1
        if self.lives < 0:
            raise Dies
        return super().put(*args)


@pytest.mark.parametrize("lives", range(1, 12))
def test_nothing_next_is_not_done(lives: int) -> None:
    app = create_search_graph(
        policy=HashChatModel(),
        scorer=HashScorer(),
        strategy=BeamSearch(width=2, expand=2, stop=None),
        image_store=MemoryImageStore(),
    ).compile(checkpointer=Dying())
    whole = tree_of_state(app.invoke(asked(), {"configurable": {"thread_id": "calm"}}))
    thread: Any = {"configurable": {"thread_id": str(lives)}}
    assert not search_done(app.get_state(thread))
    saver: Any = app.checkpointer  # LangGraph copies what it is given
    saver.lives = lives
    with pytest.raises(Dies):
        app.invoke(asked(), thread, durability="sync")
    saver.lives = 1 << 30
    found = app.get_state(thread)
    assert not found.next  # what this was written for
    assert not search_done(found)
    assert not search_done(found.values)
    state = app.invoke(None if found.values else asked(), thread)
    assert search_done(state)
    assert search_done(app.get_state(thread))
    assert tree_of_state(state).dumps() == whole.dumps()
    app.update_state(thread, {"messages": [("human", "And blue?")]}, as_node="answer")
    assert not search_done(app.get_state(thread))


# --- a PostgreSQL server of the test's own -------------------------------------------------------


def _program(name: str) -> str | None:
    places = [str(path.parent) for path in Path("/usr/lib/postgresql").glob(f"*/bin/{name}")]
    return shutil.which(name, path=os.pathsep.join([*places, os.environ.get("PATH", "")]))


@pytest.fixture
def postgres(tmp_path: Path) -> Iterator[str]:
    """Start a server that listens on a Unix socket alone; give the address of a database."""
    pytest.importorskip("langgraph.checkpoint.postgres")
    initdb, control = _program("initdb"), _program("pg_ctl")
    if initdb is None or control is None:
        pytest.skip("no PostgreSQL server is installed")
    folder = (
        Path(os.path.realpath("/tmp")) / f"vprm-postgres-{os.getpid()}"
    )  # short, for the socket
    folder.mkdir(mode=0o700)
    user = "postgres" if os.geteuid() == 0 else None  # the server does not run as root
    if user is not None:
        shutil.chown(folder, user)

    def run(*command: str) -> None:
        done = subprocess.run(command, capture_output=True, text=True, user=user, cwd=folder)
        assert done.returncode == 0, done.stderr

    data, log = folder / "data", folder / "log"
    try:
        run(initdb, "-D", str(data), "-U", "postgres", "--auth=trust", "--no-sync")
        options = f"-k {folder} -c listen_addresses= -c fsync=off"
        run(control, "-D", str(data), "-l", str(log), "-o", options, "-w", "start")
        try:
            yield f"postgresql://postgres@/postgres?host={folder}"
        finally:
            run(control, "-D", str(data), "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(folder)


@pytest.mark.slow
def test_a_killed_search_of_trained_models_goes_on_to_the_same_tree(tmp_path: Path) -> None:
    try:
        weights_path("policy"), weights_path("prm")
    except CheckpointError as error:
        pytest.skip(str(error))
    found = driven(tmp_path, 10, 3, "tiny")
    assert sum(found["kills"]) >= 10
    assert set(found["trees"]) == {found["calm_tree"]}
    assert set(found["results"]) == {found["calm_result"]}
