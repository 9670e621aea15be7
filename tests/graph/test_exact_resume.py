"""A killed search goes on byte for byte, whatever the trained scorer is wrapped in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.sqlite import SqliteSaver

from vprm_search.calibration.maps import Calibration, LogitMap
from vprm_search.errors import CheckpointError, SearchError
from vprm_search.graph import create_search_graph, tree_of_state
from vprm_search.images import DiskImageStore, image_message
from vprm_search.scoring.score_cache import CachedScorer, FileScoreStore
from vprm_search.scoring.transformers_scorer import TransformersScorer
from vprm_search.scoring.wrappers import CalibratedScorer, OutcomeScorer
from vprm_search.search import BeamSearch
from vprm_search.tiny.chat_model import TinyChatModel
from vprm_search.tiny.weights import weights_path
from vprm_search.tiny.world import generate, render
from vprm_search.types import ScoreRequest, ScoreResult, StepScorer

THREAD: Any = {"configurable": {"thread_id": "killed"}}
Wrap = Callable[[StepScorer, Path], StepScorer]


def cached(inner: StepScorer, folder: Path) -> StepScorer:
    return CachedScorer(inner, FileScoreStore(folder / "scores"))


def calibrated(inner: StepScorer, folder: Path) -> StepScorer:
    slope = Calibration(policy="any", map=LogitMap(temperature=2.0, bias=0.1))
    return CalibratedScorer(inner, slope, any_scorer=True)


WRAPS: dict[str, Wrap] = {
    "plain": lambda inner, folder: inner,
    "outcome": lambda inner, folder: OutcomeScorer(inner),
    "cached": cached,
    "outcome-cached": lambda inner, folder: OutcomeScorer(cached(inner, folder)),
    "cached-outcome": lambda inner, folder: cached(OutcomeScorer(inner), folder),
    "calibrated-cached": lambda inner, folder: calibrated(cached(inner, folder), folder),
}


class Killed(SearchError):
    """Stands for the death of the process."""


class Mortal:
    """Dies after its n-th batch was scored, and before anything of it is recorded."""

    def __init__(self, inner: StepScorer, batches: int) -> None:
        self.inner, self.left = inner, batches
        self.has_prefix_cache = getattr(inner, "has_prefix_cache", False)

    async def score(self, requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
        results = await self.inner.score(requests)
        self.left -= not all(request.recompute for request in requests)
        if self.left <= 0:
            raise Killed("the process dies here")
        return results


def searched(folder: Path, wrap: Wrap, deaths: Sequence[int]) -> str:
    """Return the tree of a search that dies so often; every life has models of its own."""
    folder.mkdir(parents=True)
    problem = generate("tiles", "test", 0)
    given: Any = {"messages": [image_message(problem.question, render(problem))]}
    for batches in (*deaths, 1000):
        trained = TransformersScorer.from_pretrained(weights_path("prm"))
        scorer = Mortal(wrap(trained, folder), batches)
        with SqliteSaver.from_conn_string(str(folder / "state.sqlite")) as saver:
            app = create_search_graph(
                policy=TinyChatModel(temperature=1.0),
                scorer=scorer,
                strategy=BeamSearch(width=2, expand=3, stop=None),
                image_store=DiskImageStore(folder / "images"),
            ).compile(checkpointer=saver)
            try:
                return tree_of_state(app.invoke(given, THREAD, durability="sync")).dumps()
            except Killed:
                given = None
    raise AssertionError("it never ended")


_FAST = ("plain", "cached")


@pytest.mark.parametrize(
    "name",
    [name if name in _FAST else pytest.param(name, marks=pytest.mark.slow) for name in WRAPS],
)
def test_a_killed_search_ends_in_the_same_tree_through_every_wrapper(
    name: str, tmp_path: Path
) -> None:
    try:
        weights_path("policy"), weights_path("prm")
    except CheckpointError as error:
        pytest.skip(str(error))
    calm = searched(tmp_path / "calm", WRAPS[name], ())
    assert calm.count('"score":') > 10
    for deaths in ((1, 1), (3,)):
        killed = searched(tmp_path / "-".join(map(str, deaths)), WRAPS[name], deaths)
        assert killed == calm
