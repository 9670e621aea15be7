"""Files of earlier versions are read; a search begun by one ends as it would have ended there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.sqlite import SqliteSaver
from typer.testing import CliRunner

from tests.graph.fakes import HashChatModel, HashScorer
from tests.search.strategies import EVERY
from vprm_search.calibration.maps import CalibrationFile
from vprm_search.cli.app import app as cli
from vprm_search.evaluate.search_records import RecordFile, chosen
from vprm_search.evaluate.search_summary import read_cells
from vprm_search.graph import create_search_graph, tree_of_state
from vprm_search.images import DiskImageStore
from vprm_search.labelling.records import read_records, read_scored_paths
from vprm_search.scoring.score_cache import CachedScorer, FileScoreStore
from vprm_search.testing import ScriptedScorer
from vprm_search.tree import SearchTree
from vprm_search.types import Problem, ScoreRequest, SearchResult

V01 = Path(__file__).parent / "v0.1"
THREAD: Any = {"configurable": {"thread_id": "one"}}
TREES = sorted(path.name.removesuffix(".result.json") for path in V01.glob("trees/*.result.json"))
STOPPED = sorted(path.stem for path in V01.glob("checkpoints/*.sqlite") if path.stem != "finished")


def nodes(text: str) -> dict[str, dict[str, Any]]:
    return {node["id"]: node for node in json.loads(text)["nodes"]}


def same_search(new: str, old: str) -> None:
    """Check that all that the old version wrote of every node stands there still."""
    found, wanted = nodes(new), nodes(old)
    assert list(found) == list(wanted)
    for name, node in wanted.items():
        assert node.items() <= found[name].items()


@pytest.mark.parametrize("name", TREES)
def test_trees_and_results_are_read(name: str) -> None:
    text = (V01 / "trees" / f"{name}.json").read_text()
    tree = SearchTree.loads(text)
    same_search(tree.dumps(), text)
    assert SearchTree.loads(tree.dumps()).dumps() == tree.dumps()
    data = json.loads((V01 / "trees" / f"{name}.result.json").read_text())
    result = SearchResult.from_json(data)
    assert (result.text, result.score, result.node) == (data["text"], data["score"], data["node"])
    for old, new in zip(data["candidates"], result.candidates, strict=True):
        assert new.node == old["node"]


def opened(name: str, folder: Path, saver: SqliteSaver) -> Any:
    return create_search_graph(
        policy=HashChatModel(fail=0.1, spread=3),
        scorer=HashScorer(fail=0.05),
        strategy=EVERY[name.removesuffix("-delta")](),
        image_store=DiskImageStore(folder / "images"),
        delta_checkpoints=name.endswith("-delta"),
    ).compile(checkpointer=saver)


OTHER_RULE_NOW = frozenset({"rebase", "beam"})
"""Strategies that decide otherwise than in 0.1: they take such a search over and go on as now.

REBASE divides by centred scores, and a beam goes on with steps without a score.
"""


@pytest.mark.parametrize("name", STOPPED)
def test_a_search_begun_by_an_earlier_version_is_finished(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    shutil.copytree(V01 / "checkpoints", folder)
    with SqliteSaver.from_conn_string(str(folder / f"{name}.sqlite")) as saver:
        graph = opened(name, folder, saver)
        before = tree_of_state(graph.get_state(THREAD).values)
        tree = tree_of_state(graph.invoke(None, THREAD, durability="sync"))
    if name.removesuffix("-delta") not in OTHER_RULE_NOW:
        same_search(tree.dumps(), (folder / f"{name}.tree.json").read_text())
    assert all(tree[old.id].text == old.text and tree[old.id].score == old.score for old in before)
    assert tree.rounds > before.rounds
    assert any(record.status == "finished" for record in tree)


def test_a_finished_conversation_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    shutil.copytree(V01 / "checkpoints", folder)
    with SqliteSaver.from_conn_string(str(folder / "finished.sqlite")) as saver:
        graph = opened("best-of-n", folder, saver)
        told = graph.get_state(THREAD).values
        same_search(tree_of_state(told).dumps(), (folder / "finished.tree.json").read_text())
        state = graph.invoke({"messages": [("user", "And how many are blue?")]}, THREAD)
    assert len(state["messages"]) == len(told["messages"]) + 2


async def test_remembered_scores_are_found(tmp_path: Path) -> None:
    shutil.copy(V01 / "scores" / "scores.jsonl", tmp_path)
    store = FileScoreStore(tmp_path / "scores.jsonl")
    scorer = CachedScorer(ScriptedScorer([]), store, identity="corpus")
    asked = [
        ScoreRequest(Problem("What is 2+2?", (), "sys"), ("2+2=4.", f"Answer: {i}"))
        for i in range(4)
    ]
    # the second step of the last path in the file is empty: it is written in another way now, and
    # its score is asked for anew
    asked.append(ScoreRequest(Problem("点在线段上?"), ("ａ",)))
    found = await scorer.score(asked)
    wanted = json.loads((V01 / "scores" / "expected.json").read_text())
    wanted[-1] = wanted[-1][:1]
    assert [[score.value for score in result.scores] for result in found] == wanted
    (refused,) = await scorer.score([ScoreRequest(Problem("long"), ("x",))])
    assert refused.scores[0].reason == "too_long: 9 tokens, limit 3"


@pytest.mark.parametrize("method", ["temperature", "platt", "isotonic"])
def test_calibrations_are_read_and_fitted_as_before(method: str, tmp_path: Path) -> None:
    folder, out = V01 / "calibration", tmp_path / "again.json"
    (old,) = CalibrationFile.loads((folder / f"{method}.json").read_text()).calibrations
    words = ["calibrate", "fit", "--paths", str(folder / "paths.jsonl"), "--method", method]
    done = CliRunner().invoke(cli, [*words, "--out", str(out)])
    assert done.exit_code == 0, done.output
    (new,) = CalibrationFile.loads(out.read_text()).calibrations
    assert (new.policy, new.scorer, new.target) == (old.policy, old.scorer, old.target)
    for score in (0.0, 0.01, 0.3, 0.5, 0.77, 0.99, 1.0):
        assert new.map(score) == pytest.approx(old.map(score), abs=1e-5)


def test_labels_are_read() -> None:
    records = list(read_records(V01 / "calibration" / "labels.jsonl"))
    assert len(records) == 3
    assert len(list(read_scored_paths(V01 / "calibration" / "paths.jsonl"))) == 36
    assert all(solution.steps for record in records for solution in record.solutions)


def test_a_comparison_is_taken_up_where_it_was(tmp_path: Path) -> None:
    shutil.copytree(V01 / "compare", tmp_path / "out")
    cells = {path: path.read_bytes() for path in tmp_path.rglob("*@4.json")}
    words = "compare --world synthetic --problems 8 --n 4 --strategy rebase --strategy best-of-n"
    done = CliRunner().invoke(cli, [*words.split(), "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert len(cells) == 2
    assert {path: path.read_bytes() for path in cells} == cells


def test_records_of_a_comparison_are_taken_up(tmp_path: Path) -> None:
    shutil.copytree(V01.parent / "records-1", tmp_path / "out")
    old = (tmp_path / "out" / "records.jsonl").read_bytes()
    words = "compare --world synthetic --difficulty medium --problems 4 --n 4 --strategy best-of-n"
    where = ["--out", str(tmp_path / "out")]
    done = CliRunner().invoke(cli, [*words.split(), "--strategy", "beam", *where])
    assert done.exit_code == 0, done.output
    new = (tmp_path / "out" / "records.jsonl").read_bytes()
    assert new.startswith(old)
    assert (new.count(b"\n") - old.count(b"\n"), new.count(b'"name": "beam"')) == (4, 4)
    other = CliRunner().invoke(cli, [*words.split(), "--seed", "1", *where])
    assert "run_seed 0, not 1" in str(other.exception)


def test_records_of_a_comparison_are_read_with_their_trees() -> None:
    folder = V01.parent / "records-1"
    cells = read_cells(folder, choices=("best-score:min", "majority"))
    right = {(c.name, choice): list(v) for c in cells for choice, v in c.right.items()}
    assert {name for name, _ in right} == {"best-of-n", "rebase"}
    assert all(len(values) == 4 for values in right.values())
    file = RecordFile(folder)
    for record in file:
        tree = file.tree(record)
        assert tree is not None
        assert tree.root_id == record.root
        for name, choice in record.choices.items():
            assert chosen(tree, name, record.expected) == choice
