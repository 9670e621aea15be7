"""How the tiny reward models are trained: the numbers of both stages, and their optimisers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch.nn import Parameter

from examples.tiny_models.muon import Muon
from examples.tiny_models.reward_trainer import Optimisers, TrainConfig
from examples.tiny_models.schedule import Schedule


class RewardPlan(BaseModel):
    """One stage: how long, how fast, and from what mixture of rows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(ge=1)
    verdicts: int = Field(default=264, ge=1)
    short_until: int = Field(default=0, ge=0)
    new_rate: float = 0.02
    old_rate: float = 0.004
    other_rate: float = 1e-3
    head_rate: float = 3e-3
    warmup_steps: int = 30
    decay_share: float = Field(default=0.5, gt=0, le=1)
    rule_share: float = Field(default=1.0, ge=0, le=1)
    label_smoothing: float = 0.0
    seed: int = 1

    def train_config(self) -> TrainConfig:
        """Return the trainer's configuration."""
        return TrainConfig(
            schedule=Schedule(
                steps=self.steps,
                warmup_share=min(1.0, self.warmup_steps / self.steps),
                decay="linear",
                decay_share=self.decay_share,
                final_factor=0.01,
            ),
            label_smoothing=self.label_smoothing,
            log_every=10,
            evaluate_every=100,
            save_every=50,
        )


BOOTSTRAP = RewardPlan(steps=600, short_until=200)
PRACTICE = RewardPlan(
    steps=330, new_rate=0.015, old_rate=0.003, other_rate=8e-4, decay_share=0.8, seed=3
)
FINE_TUNE = RewardPlan(
    steps=320,
    new_rate=0.012,
    old_rate=0.003,
    other_rate=7e-4,
    decay_share=0.8,
    rule_share=0.5,
    seed=2,
)


def reward_optimisers(plan: RewardPlan, old_layers: int) -> Optimisers:
    """Return Muon for matrices (new layers faster than old) and AdamW for everything else."""

    def build(named: Sequence[tuple[str, Parameter]]) -> list[torch.optim.Optimizer]:
        groups: dict[str, list[Parameter]] = {"new": [], "old": [], "other": [], "head": []}
        for name, parameter in named:
            if name.startswith("auxiliary."):
                groups["head"].append(parameter)
            elif parameter.ndim != 2 or "embed" in name:
                groups["other"].append(parameter)
            else:
                layer = int(name.partition("layers.")[2].partition(".")[0])
                groups["new" if layer >= old_layers else "old"].append(parameter)
        rates = {"new": plan.new_rate, "old": plan.old_rate}
        muon = [{"params": groups[k], "lr": rate} for k, rate in rates.items() if groups[k]]
        adam = [
            {"params": groups["other"], "lr": plan.other_rate},
            {"params": groups["head"], "lr": plan.head_rate},
        ]
        return [
            Muon(muon, lr=plan.new_rate, weight_decay=0.0),
            torch.optim.AdamW(adam, lr=plan.other_rate, betas=(0.9, 0.97), weight_decay=0.0),
        ]

    return build
