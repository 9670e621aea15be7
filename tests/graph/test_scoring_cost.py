"""What the scorer spent is in the usage of every search, counted once, and shown to the user."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.graph.fakes import QUESTION, HashChatModel, chance
from tests.scoring.random_internvl import Size, write_checkpoint
from tests.scoring.test_oracle import PICTURES
from vprm_search.budget import usage_of
from vprm_search.graph import arun_search, run_search
from vprm_search.report.view import answer_line, view_of
from vprm_search.scoring import TransformersScorer
from vprm_search.search import BeamSearch
from vprm_search.testing import ScriptedScorer
from vprm_search.tree import SearchTree
from vprm_search.types import Counts, ScoreRequest, ScoreResult

BEAM = BeamSearch(width=2, expand=3, stop=None)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model"), Size(max_positions=8192), seed=3)


def test_a_search_computes_every_token_once_and_says_so(path: Path) -> None:
    scorer = TransformersScorer.from_pretrained(path)
    run = run_search(
        QUESTION, policy=HashChatModel(), scorer=scorer, images=PICTURES[:2], strategy=BEAM
    )
    usage, meter = run.result.usage, scorer.meter
    assert usage.tokens_sent == meter.tokens_requested > usage.tokens_computed
    assert usage.tokens_computed == meter.tokens_computed
    assert usage.images_encoded == meter.images_encoded == 2
    assert usage.forward_passes == meter.forward_passes == usage.rounds
    # `scored_tokens` counts every step with all its turn markers, some of which siblings share
    assert 0 < usage.tokens_computed <= usage.scored_tokens
    assert sum(1 for record in run.tree if record.tokens_sent) == usage.rounds
    shown = answer_line(view_of(run.tree, run.result)).plain
    assert f"{usage.tokens_computed} of {usage.tokens_sent} tokens computed" in shown
    read = SearchTree.loads(run.tree.dumps())
    assert usage_of(read, usage.seconds) == usage


async def test_concurrent_searches_each_know_their_share(path: Path) -> None:
    scorer = TransformersScorer.from_pretrained(path)
    runs = await asyncio.gather(
        *(
            arun_search(
                f"{QUESTION} ({n % 3})",
                policy=HashChatModel(),
                scorer=scorer,
                images=PICTURES[n % 2 :][:1],
                strategy=BEAM,
            )
            for n in range(5)
        )
    )
    usages, meter = [run.result.usage for run in runs], scorer.meter
    assert sum(u.tokens_computed for u in usages) == meter.tokens_computed
    assert sum(u.tokens_sent for u in usages) == meter.tokens_requested
    assert sum(u.images_encoded for u in usages) == meter.images_encoded == 2
    passes = sum(u.forward_passes for u in usages)
    assert passes == pytest.approx(meter.forward_passes, abs=0.01)


def by_step(request: ScoreRequest) -> float:
    return chance(request.steps[-1])


def test_a_scorer_that_says_nothing_costs_nothing() -> None:
    run = run_search(
        QUESTION, policy=HashChatModel(), scorer=ScriptedScorer(by_step), strategy=BEAM
    )
    usage = run.result.usage
    assert (usage.tokens_sent, usage.tokens_computed, usage.forward_passes) == (0, 0, 0)
    assert "computed" not in answer_line(view_of(run.tree, run.result)).plain
    assert all("tokens_sent" not in record.to_json() for record in run.tree)


def test_a_round_that_is_replayed_counts_once() -> None:
    class Costly(ScriptedScorer):
        async def score(self, requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
            cost = Counts(
                tokens_sent=10,
                tokens_computed=4,
                images_encoded=1,
                forward_passes=1 / len(requests),
            )
            return [replace(r, cost=cost) for r in await super().score(requests)]

    run = run_search(QUESTION, policy=HashChatModel(), scorer=Costly(by_step), strategy=BEAM)
    usage = run.result.usage
    assert usage.forward_passes == usage.rounds
    assert usage.tokens_sent * 4 == usage.tokens_computed * 10
    again = SearchTree.loads(run.tree.dumps())
    again.merge(list(run.tree))
    assert usage_of(again, usage.seconds) == usage
