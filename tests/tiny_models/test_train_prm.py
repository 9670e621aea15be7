"""Both stages of the reward models, a few steps each: mechanics, not quality."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from examples.tiny_models.label import label
from examples.tiny_models.model import build_model, save_checkpoint
from examples.tiny_models.reward_data import RewardBatches
from examples.tiny_models.reward_losses import LocalLosses, plus_probabilities
from examples.tiny_models.reward_rows import RowWriter, collate
from examples.tiny_models.reward_stages import (
    RewardPlan,
    bootstrap,
    fine_tune,
    practise,
    verdict_words,
)
from examples.tiny_models.train_prm import judged_rows
from tests.tiny.small_models import SHAPE, small_tokenizer
from vprm_search.labelling.monte_carlo import LabelConfig
from vprm_search.tiny.sampler import load_checkpoint

PLAN = RewardPlan(steps=12, verdicts=22, warmup_steps=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random strong policy, its labels, and a bootstrapped reward model."""
    made = tmp_path_factory.mktemp("reward")
    model = build_model(small_tokenizer(), SHAPE, seed=0)
    save_checkpoint(model, small_tokenizer(), made / "strong", torch.float32)
    config = LabelConfig(solutions=2, continuations=2)
    label(made / "labels.jsonl", made / "strong", problems=6, config=config)
    dev = judged_rows(made / "labels.jsonl", small_tokenizer())
    bootstrap(made / "strong", made / "boot", PLAN, dev=dev)
    return made


@pytest.mark.slow  # the folder takes ten seconds to make
def test_bootstrap_adds_layers_and_keeps_the_eyes(folder: Path) -> None:
    strong, made = load_checkpoint(folder / "strong"), load_checkpoint(folder / "boot" / "model")
    assert made.config.text_config.num_hidden_layers == SHAPE.layers + 3
    old, new = strong.state_dict(), made.state_dict()
    eyes = [name for name in old if "vision_tower" in name or "projector" in name]
    assert eyes
    assert all(torch.equal(old[name], new[name]) for name in eyes)
    assert any(not torch.equal(old[name], new[name]) for name in old if name not in eyes)


@pytest.mark.slow
def test_bootstrap_is_a_function_of_its_seed(folder: Path, tmp_path: Path) -> None:
    bootstrap(folder / "strong", tmp_path / "again", PLAN)
    first = load_checkpoint(folder / "boot" / "model").state_dict()
    again = load_checkpoint(tmp_path / "again" / "model").state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.slow
def test_practice_goes_on_from_the_bootstrap(folder: Path, tmp_path: Path) -> None:
    plan = PLAN.model_copy(update={"steps": 3, "seed": 3})
    practise(folder / "boot", tmp_path / "practice", plan)
    before = load_checkpoint(folder / "boot" / "model").state_dict()
    after = load_checkpoint(tmp_path / "practice" / "model").state_dict()
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed
    assert not [name for name in changed if "vision_tower" in name or "projector" in name]
    assert (tmp_path / "practice" / "heads.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["monte_carlo", "exact", "outcome"])
def test_fine_tuning_writes_a_scorable_checkpoint(folder: Path, tmp_path: Path, kind: str) -> None:
    from vprm_search.scoring.engine.checkpoint import load_checkpoint as load_prm

    plan = PLAN.model_copy(update={"steps": 3, "rule_share": 0.5})
    fine_tune(folder / "boot", folder / "labels.jsonl", tmp_path / "run", kind, plan)  # type: ignore[arg-type]
    loaded = load_prm(tmp_path / "run" / "model", device="cpu")
    assert loaded.builder.layout.system_prompt is None
    assert (loaded.builder.plus_id, loaded.builder.minus_id) == verdict_words(small_tokenizer())
    files = {file.suffix for file in (tmp_path / "run" / "model").iterdir()}
    assert files <= {".json", ".safetensors", ".jinja"}


def test_local_losses_are_as_defined() -> None:
    hidden = [torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    losses = LocalLosses.on_top_of(torch.ones(4), old_layers=1)
    batch = collate(RewardBatches(RowWriter(small_tokenizer()), 1, verdicts=5)(0)[:1], 0)
    expected = torch.full((2, 5), -100)
    expected[0, 2], expected[1, 4] = 1, 0
    mismatch = torch.full((2, 5), -100)
    mismatch[0, 1], mismatch[0, 2], mismatch[1, 3] = 1, 0, 0
    targets = {"expected": expected, "mismatch": mismatch}
    made = type(batch)(batch.ids, batch.reads, batch.labels, None, targets)
    embedding = torch.eye(4)[:3]
    found = losses.losses(hidden, embedding, made)
    assert float(found["mismatch"].detach()) == pytest.approx(0.6931, abs=1e-3)
    state = hidden[1]
    states = torch.stack([state[0, 1], state[1, 3]])
    normed = states / states.pow(2).mean(-1, keepdim=True).sqrt()
    scores = (normed @ embedding.T).log_softmax(-1)
    wanted = -(scores[0, 1] + scores[1, 0]) / 2
    assert float(found["next_token"].detach()) == pytest.approx(0.9 * float(wanted), abs=1e-3)


@pytest.mark.slow
def test_probabilities_are_those_of_the_whole_model(folder: Path) -> None:
    model = load_checkpoint(folder / "boot" / "model")
    words = verdict_words(small_tokenizer())
    rows = RewardBatches(RowWriter(small_tokenizer()), 3, verdicts=10)(1)
    rows += RewardBatches(RowWriter(small_tokenizer()), 3, verdicts=11)(2)
    found = plus_probabilities(model, rows, words)
    for row, values in zip(rows, found, strict=True):
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([row.ids]), pixel_values=row.pixels).logits[0]
        plain = logits[list(row.read_positions)][:, list(words)].softmax(-1)[:, 0]
        assert values == pytest.approx(plain.numpy(), abs=1e-5)
