"""A splitter by name cuts the same in `score`, in the verifier, in a search and in a policy."""

from __future__ import annotations

import json
from itertools import repeat
from pathlib import Path

import pytest
from langchain_core.messages import AIMessage, HumanMessage

from tests.cli.conftest import Run, run
from tests.graph.fakes import HashScorer
from vprm_search.graph import create_verifier_node, run_search
from vprm_search.images import MemoryImageStore
from vprm_search.search import BestOfN, BestScore
from vprm_search.steps import normalise_text, split_solution
from vprm_search.testing import ScriptedChatModel

__all__ = ["run"]
FILES = sorted((Path(__file__).parent / "cases").glob("*.txt"))
COUNTS = {"29": (2, 2), "33": (1, 3), "34": (5, 3), "35": (1, 3), "36": (2, 2)}
"""Steps of our reduced cases, by "exact" and by "auto"."""


def searched(text: str, split: str) -> list[str]:
    scorer = HashScorer()
    policy = ScriptedChatModel(repeat(AIMessage(text)))
    rules = {"strategy": BestOfN(1), "selector": BestScore(aggregate="mean")}
    run_search("Q", policy=policy, scorer=scorer, split=split, **rules)  # type: ignore[arg-type]
    return list(scorer.asked[0].steps)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
@pytest.mark.parametrize("split", ["exact", "auto", "numbered", "sentences", "tokens:5"])
def test_verifier_and_search_cut_alike(file: Path, split: str) -> None:
    text = normalise_text(file.read_bytes().decode())
    steps = searched(text, split)
    scorer = HashScorer()
    node = create_verifier_node(scorer, splitter=split, image_store=MemoryImageStore())
    node.invoke({"messages": [HumanMessage("Q"), AIMessage(text, id="x")]})
    assert list(scorer.asked[0].steps) == steps
    if split in ("exact", "auto"):
        assert len(steps) == COUNTS[file.stem[:2]][split == "auto"]
    if "<think>" not in text:
        assert steps == split_solution(text, splitter=split)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_program_cuts_so_and_says_by_what(run: Run, file: Path) -> None:
    asked = ("score", "--question", "Q", "--solution", str(file), "--json", "--split")
    for place, split in enumerate(("exact", "auto")):
        ran = run(*asked, split)
        assert ran.code == 0, ran.err
        said = json.loads(ran.out)
        assert len(said["steps"]) == COUNTS[file.stem[:2]][place]
        assert ("split" in said) == (split == "auto")
    refused = run(*asked, "magic")
    assert refused.code == 1
    assert "blank-lines" in refused.err
