"""Other families whose score is a pair of words: a text-only model, and one with marker tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.families.tiny_models import TEXT, enlarge, write_settings
from tests.families.tiny_tokenizers import TOKENIZERS, VOCAB
from tests.scoring.random_internvl import Size, build_model
from tests.serving.conftest import SERVE
from tests.serving.forwarder import Forwarder
from tests.serving.problems import INJECTIONS
from tests.serving.server import PrmServer, free_port, scoring_body, side_by_side
from tests.serving.test_served_tiles import photo
from vprm_search.errors import ModelChangedError
from vprm_search.scoring import VllmScorer
from vprm_search.scoring.prompt.text_encoder import without_surrogates
from vprm_search.scoring.transformers_scorer import TransformersScorer
from vprm_search.types import Problem, ScoreRequest

pytestmark = pytest.mark.slow

REQUEST = ScoreRequest(Problem("What is 2 + 3?"), ("2 + 3 = 5",))
FAMILIES = ("rlhflow", "mm-prm")
HIDDEN = 128  # vLLM's attention on the CPU wants heads of at least 32


def write(folder: Path, family: str) -> Path:
    """Write a random checkpoint of a family."""
    tokenizer = TOKENIZERS[family]()
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    if family == "mm-prm":
        token = tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")
        model = build_model(Size(vocab=VOCAB, hidden=HIDDEN), token)
    else:
        rope = {"rope_type": "default", "rope_theta": 10_000.0}
        measures = {**TEXT, "hidden_size": HIDDEN, "rope_parameters": rope}
        model = enlarge(LlamaForCausalLM(LlamaConfig(**measures)))
    model.save_pretrained(folder)
    return write_settings(folder, family)


@pytest.fixture(scope="module")
def address(prm_server: PrmServer) -> Iterator[Forwarder]:
    """An address behind which the packaged reward model is served at first."""
    prm_server.ensure_running()
    with Forwarder(prm_server.options.port) as forwarder:
        yield forwarder


@pytest.fixture(scope="module")
def scorer_before(address: Forwarder) -> VllmScorer:
    """A scorer that has scored with the packaged model at that address."""
    scorer = VllmScorer(address.url)
    (result,) = asyncio.run(scorer.score([REQUEST]))
    assert result.scores[0].value is not None
    return scorer


@pytest.fixture(scope="module")
def family_servers(
    scorer_before: VllmScorer, vllm_python: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, PrmServer]]:
    """A server for each family."""
    servers = {}
    for family in FAMILIES:
        folder = tmp_path_factory.mktemp(family)
        checkpoint = write(folder / "model", family)
        servers[family] = PrmServer(
            checkpoint, vllm_python, folder, replace(SERVE, port=free_port())
        )
    with side_by_side(servers.values()):
        yield servers


@pytest.fixture(params=FAMILIES)
def served(request: pytest.FixtureRequest, family_servers: dict[str, PrmServer]) -> PrmServer:
    """The server for a family."""
    return family_servers[request.param]


async def test_a_scorer_notices_another_model_behind_its_address(
    served: PrmServer, address: Forwarder, scorer_before: VllmScorer
) -> None:
    address.target = served.options.port
    address.cut()
    with pytest.raises(ModelChangedError, match="now serves the model"):
        await scorer_before.score([REQUEST])
    (found,) = await VllmScorer(address.url).score([REQUEST])  # a new scorer takes it as it is
    assert found.scores[0].value is not None


def test_scores_equal_the_in_process_scorer(served: PrmServer) -> None:
    scorer = TransformersScorer.from_pretrained(served.checkpoint, device="cpu", dtype="float32")
    reads_images = scorer.checkpoint.preprocess is not None
    groups = [(), (photo(300, 100, 1),), (photo(60, 200, 2), photo(56, 56, 3))]
    honest = ("Step 1: the base is 12.", "So the area is 18.", "The answer is 18.")
    texts = [without_surrogates(text) for text in INJECTIONS]
    paths = [honest, honest[:1], (*honest[:2], "The answer is 17.")]
    paths += [(honest[0], text, f"{text} and so on") for text in texts]
    for images in groups if reads_images else groups[:1]:
        problem = Problem("What is the area?", tuple(image.digest for image in images))
        expected = scorer.score_sync([ScoreRequest(problem, path, images) for path in paths])
        reply = served.post(scoring_body(problem.question, images, paths))
        for found, result in zip(reply["scores"], expected, strict=True):
            values = [score.value for score in result.scores]
            assert None not in values
            assert found == pytest.approx(values, rel=0, abs=1e-5)


def test_a_text_model_takes_no_image(served: PrmServer) -> None:
    limit = served.post({"version": 1, "describe": True})["limits"]["max_images"]
    image = photo(56, 56, 1)
    body = scoring_body("q", [image] * (limit + 1), [["s"]])
    assert "images; this server takes at most" in served.post(body, status=413)["message"]
