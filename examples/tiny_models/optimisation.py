"""How a tiny model is stepped: Muon for matrices, AdamW for the rest, one fixed schedule."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from examples.tiny_models.muon import Muon

MAX_GRADIENT_NORM = 1.0
WEIGHT_DECAY = 0.01


@dataclass(frozen=True, slots=True)
class Schedule:
    """Learning rates and their course over the steps: warm up, hold, decay linearly."""

    steps: int
    matrix_rate: float = 0.02
    other_rate: float = 3e-3
    vision_factor: float = 1.0
    warmup_steps: int = 50
    decay_share: float = 0.3
    final_factor: float = 0.05

    def factor(self, step: int) -> float:
        """Return the multiple of the full rates to use at `step` (counted from 0)."""
        warmup = min(1.0, (step + 1) / self.warmup_steps)
        remaining = (self.steps - step) / max(1.0, self.steps * self.decay_share)
        return warmup * max(self.final_factor, min(1.0, remaining))


class Stepper:
    """Updates the chosen part of a model, and freezes the rest."""

    def __init__(
        self,
        model: torch.nn.Module,
        schedule: Schedule,
        trained: tuple[str, ...] = ("",),
        extra: tuple[torch.nn.Parameter, ...] = (),
    ) -> None:
        """Train the parameters whose name contains one of `trained`, and the `extra` ones."""
        self._schedule = schedule
        groups: dict[tuple[bool, bool], list[torch.nn.Parameter]] = {}
        groups[False, False] = list(extra)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(any(part in name for part in trained))
            if parameter.requires_grad:
                is_matrix = parameter.ndim == 2 and "embed" not in name
                groups.setdefault((is_matrix, "vision_tower" in name), []).append(parameter)
        self._parameters = [parameter for group in groups.values() for parameter in group]
        self._optimisers = _optimisers(groups, schedule)

    def step(self, index: int) -> None:
        """Apply the gradients at the rates of step `index`, and clear them."""
        torch.nn.utils.clip_grad_norm_(self._parameters, MAX_GRADIENT_NORM)
        factor = self._schedule.factor(index)
        for optimiser in self._optimisers:
            for group in optimiser.param_groups:
                group["lr"] = group["full_rate"] * factor
            optimiser.step()
            optimiser.zero_grad()


def _optimisers(
    groups: dict[tuple[bool, bool], list[torch.nn.Parameter]], schedule: Schedule
) -> list[torch.optim.Optimizer]:
    """Build Muon and AdamW over groups keyed (matrix?, vision?), each with its full rate."""
    by_kind: dict[bool, list[dict[str, object]]] = {True: [], False: []}
    for (is_matrix, is_vision), parameters in groups.items():
        rate = schedule.matrix_rate if is_matrix else schedule.other_rate
        rate *= schedule.vision_factor if is_vision else 1.0
        if parameters:
            by_kind[is_matrix].append({"params": parameters, "lr": rate, "full_rate": rate})
    return [
        Muon(by_kind[True], weight_decay=WEIGHT_DECAY),
        torch.optim.AdamW(by_kind[False], betas=(0.9, 0.97), weight_decay=WEIGHT_DECAY),
    ]
