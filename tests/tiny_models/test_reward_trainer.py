"""The trainer: learns, is a function of its seeds, and continues a cut run exactly."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from examples.tiny_models.model import build_model
from examples.tiny_models.muon import Muon
from examples.tiny_models.reward_rows import TrainingRow, build_row, collate
from examples.tiny_models.reward_trainer import RewardTrainer, Schedule, TrainConfig, adamw
from examples.tiny_models.tokenizer import token_id
from tests.tiny.small_models import SHAPE, small_tokenizer
from vprm_search.errors import CheckpointError, ConfigError
from vprm_search.scoring.prompt.layout import PrmLayout
from vprm_search.tiny.sampler import pixel_values
from vprm_search.tiny.world import generate, render

LAYOUT = PrmLayout(system_prompt=None)
WORDS = (token_id(small_tokenizer(), "+"), token_id(small_tokenizer(), "-"))


def rows(step: int, count: int = 6) -> list[TrainingRow]:
    """Steps that say "red" are right: a rule a random model learns in a few steps."""
    rng = random.Random(step)
    problem = generate("tiles", "train", 0)
    made = []
    for _ in range(count):
        words = [rng.choice(["red", "blue"]) for _ in range(3)]
        labels = [float(word == "red") for word in words]
        pixels = pixel_values([render(problem)])
        made.append(build_row(small_tokenizer(), LAYOUT, "What?", words, labels, (16,), pixels))
    return made


def trainer(steps: int = 20, **changes: Any) -> RewardTrainer:
    config = TrainConfig(
        schedule=Schedule(steps=steps, decay="linear", decay_share=0.5),
        save_every=5,
        log_every=5,
        **changes,
    )
    model = build_model(small_tokenizer(), SHAPE, seed=1)
    return RewardTrainer(model, *WORDS, config, adamw(5e-3))


def weights(made: RewardTrainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in made.model.state_dict().items()}


def test_learns_a_rule(tmp_path: Path) -> None:
    made = trainer(40)
    before = float(made.losses(collate(rows(999), 0))["verdict"].detach())
    made.run(rows, tmp_path)
    with torch.no_grad():
        batch = collate(rows(999), 0)
        after = float(made.losses(batch)["verdict"])
        hidden = made.hidden_states(batch)[-1][batch.reads[:, 0], batch.reads[:, 1]]
        logits = made.model.lm_head(hidden)[:, list(WORDS)]
    assert after < min(0.4, before / 2)
    assert ((logits[:, 0] > logits[:, 1]) == (batch.labels > 0.5)).all()


def test_the_loss_is_the_cross_entropy_of_plus_and_minus() -> None:
    made = trainer(label_smoothing=0.1)
    batch = collate(rows(3), 0)
    with torch.no_grad():
        logits = made.model(input_ids=batch.ids, pixel_values=batch.pixels).logits
        scores = logits[batch.reads[:, 0], batch.reads[:, 1]].log_softmax(-1)
        target = torch.where(batch.labels > 0.5, 0.9, 0.1)
        expected = -(target * scores[:, WORDS[0]] + (1 - target) * scores[:, WORDS[1]]).mean()
        assert float(made.losses(batch)["verdict"]) == pytest.approx(float(expected), rel=1e-5)


def test_frozen_parts_stay(tmp_path: Path) -> None:
    made = trainer(5)
    before = weights(made)
    made.run(rows, tmp_path)
    changed = {name for name, value in weights(made).items() if not value.equal(before[name])}
    assert changed
    assert not [name for name in changed if "vision_tower" in name or "projector" in name]


def run_cut(folder: Path, cut_at: int) -> dict[str, torch.Tensor]:
    """Run, die while the rows of step `cut_at` are made, and run again in a new trainer."""

    def dying(step: int) -> Sequence[TrainingRow]:
        if step == cut_at:
            raise KeyboardInterrupt
        return rows(step)

    with pytest.raises(KeyboardInterrupt):
        trainer().run(dying, folder)
    again = trainer()
    again.run(rows, folder)
    return weights(again)


def test_a_cut_run_ends_with_the_same_weights(tmp_path: Path) -> None:
    whole = trainer()
    whole.run(rows, tmp_path / "whole")
    resumed = run_cut(tmp_path / "cut", 13)
    for name, value in weights(whole).items():
        assert value.equal(resumed[name]), name
    lines = (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [5, 10, 15, 20]


def test_bfloat16_copy_follows_the_float32_model(tmp_path: Path) -> None:
    made = trainer(3, compute_dtype="bfloat16")
    made.run(rows, tmp_path)
    for mine, theirs in zip(made.model.parameters(), made.worker.parameters(), strict=True):
        assert mine.dtype == torch.float32
        assert theirs.equal(mine.to(torch.bfloat16))


def test_muon_state_is_restored(tmp_path: Path) -> None:
    def muon(named: Sequence[tuple[str, torch.nn.Parameter]]) -> list[torch.optim.Optimizer]:
        matrices = [p for n, p in named if p.ndim == 2 and "embed" not in n]
        others = [p for n, p in named if p.ndim != 2 or "embed" in n]
        return [Muon(matrices, lr=0.01), torch.optim.AdamW(others, lr=1e-3)]

    def make() -> RewardTrainer:
        config = TrainConfig(schedule=Schedule(steps=8), save_every=4)
        return RewardTrainer(build_model(small_tokenizer(), SHAPE, seed=1), *WORDS, config, muon)

    def dying(step: int) -> Sequence[TrainingRow]:
        if step == 6:
            raise KeyboardInterrupt
        return rows(step)

    whole, again = make(), make()
    whole.run(rows, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        make().run(dying, tmp_path / "cut")
    again.run(rows, tmp_path / "cut")
    assert all(v.equal(weights(again)[n]) for n, v in weights(whole).items())


def test_foreign_state_and_half_models_are_refused(tmp_path: Path) -> None:
    trainer(5).run(rows, tmp_path)
    with pytest.raises(CheckpointError, match="another run"):
        trainer(5, frozen=()).run(rows, tmp_path)
    model = build_model(small_tokenizer(), SHAPE).half()
    with pytest.raises(ConfigError, match="float32"):
        RewardTrainer(model, *WORDS, TrainConfig(schedule=Schedule(steps=1)))
