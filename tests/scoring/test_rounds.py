"""Round after round of a search: what was computed is kept, and changes no score."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.scoring.random_internvl import write_checkpoint
from tests.scoring.test_oracle import PICTURES, TOLERANCE, as_request, problems, steps
from vprm_search.scoring import TransformersScorer
from vprm_search.scoring.checkpoint import PrmCheckpoint, load_checkpoint
from vprm_search.types import ImageData, ScoreRequest, ScoreResult

Item = tuple[tuple[str, tuple[ImageData, ...]], tuple[str, ...]]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> PrmCheckpoint:
    return load_checkpoint(write_checkpoint(tmp_path_factory.mktemp("model"), seed=3))


def close(ours: list[ScoreResult], theirs: list[ScoreResult]) -> bool:
    values = [[s.value for r in results for s in r.scores] for results in (ours, theirs)]
    return values[0] == pytest.approx(values[1], abs=TOLERANCE)


items = st.tuples(problems, steps)


@given(
    rounds=st.lists(st.lists(items, min_size=1, max_size=4), min_size=2, max_size=4),
    kept=st.sampled_from([100_000, 400]),
    bound=st.sampled_from([16_384, 300]),
)
@settings(max_examples=25)
def test_any_order_of_rounds_gives_the_scores_of_a_fresh_scorer(
    checkpoint: PrmCheckpoint, rounds: list[list[Item]], kept: int, bound: int
) -> None:
    kept_scorer = TransformersScorer(checkpoint, kept_context_tokens=kept, max_batch_tokens=bound)
    forgetful = TransformersScorer(checkpoint)
    for batch in rounds:
        requests = [as_request(question, images, path) for (question, images), path in batch]
        assert close(kept_scorer.score_sync(requests), forgetful.score_sync(requests))
    assert kept_scorer.meter.tokens_computed <= forgetful.meter.tokens_computed or bound == 300


def children(beam: list[tuple[str, ...]], depth: int) -> list[ScoreRequest]:
    paths = [(*path, f"step {depth} with x = {n}") for path in beam for n in range(3)]
    return [as_request("What is x?", PICTURES[:2], path) for path in paths]


def test_a_round_computes_its_new_steps_only(checkpoint: PrmCheckpoint) -> None:
    scorer, forgetful = (
        TransformersScorer(checkpoint, kept_context_tokens=16_384),
        TransformersScorer(checkpoint),
    )
    beam: list[tuple[str, ...]] = [()]
    for depth in range(5):
        requests = children(beam, depth)
        before = scorer.meter.tokens_computed
        results = scorer.score_sync(requests)
        new = scorer.meter.tokens_computed - before
        assert close(results, forgetful.score_sync(requests))
        if depth:
            # the '+' of the step before, once per surviving path, and the new steps at most
            ended = 3 * len(beam)
            assert new <= sum(result.step_tokens[-1] for result in results) + ended
        beam = [requests[0].steps, requests[-1].steps]
    passes = scorer.meter.forward_passes
    final = [as_request("What is x?", PICTURES[:2], steps) for steps in beam]
    scorer.score_sync(final)
    assert scorer.meter.forward_passes == passes  # the final selection is free
    assert scorer.meter.images_encoded == 2


def test_two_searches_in_turn_do_not_forget_each_other(checkpoint: PrmCheckpoint) -> None:
    scorer = TransformersScorer(checkpoint, kept_context_tokens=16_384)
    first = as_request("What is x?", PICTURES[:1], ("x = 1",))
    second = as_request("What is y?", PICTURES[1:2], ("y = 1",))
    scorer.score_sync([first])
    scorer.score_sync([second])
    before = scorer.meter.tokens_computed
    scorer.score_sync([first])
    scorer.score_sync([second])
    assert scorer.meter.tokens_computed == before


def test_what_is_kept_is_bounded_and_goes_when_memory_runs_out(checkpoint: PrmCheckpoint) -> None:
    scorer = TransformersScorer(checkpoint, kept_context_tokens=500)
    context = scorer._forward._context
    for n in range(6):
        scorer.score_sync([as_request(f"q {n}", PICTURES[n % 3 : n % 3 + 1], ("x = 1",))])
        assert 0 < context._rows() <= 500

    def full(module: torch.nn.Module, args: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    hook = scorer.checkpoint.model.model.language_model.norm.register_forward_pre_hook(full)
    request = as_request("other", PICTURES[:1], ("x = 1",))
    assert scorer.score_sync([request])[0].scores[0].value is None
    assert context._rows() == 0
    hook.remove()
    assert scorer.score_sync([request])[0].scores[0].value is not None


def test_a_pass_with_nan_is_not_kept(checkpoint: PrmCheckpoint) -> None:
    scorer = TransformersScorer(checkpoint, kept_context_tokens=16_384)
    embedding = scorer.checkpoint.model.get_input_embeddings().weight
    row = scorer.checkpoint.tokenizer.convert_tokens_to_ids("Z")
    with torch.no_grad():
        healthy = embedding[row].clone()
        embedding[row] = torch.nan
        broken = scorer.score_sync([as_request("q", (), ("a", "Z", "b"))])[0]
        assert [s.value is None for s in broken.scores] == [False, True, True]
        embedding[row] = healthy
    mended = scorer.score_sync([as_request("q", (), ("a", "Z", "b"))])[0]
    assert all(score.value is not None for score in mended.scores)
