"""Mixed-precision training of a tiny model on CPU: bfloat16 arithmetic over float32 master weights.

Matrices are trained with Muon (orthogonalised momentum), everything else with AdamW.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from transformers import InternVLForConditionalGeneration

MAX_GRADIENT_NORM = 1.0
WEIGHT_DECAY = 0.01


@dataclass(frozen=True, slots=True)
class Schedule:
    """Learning rates and their course over a fixed number of steps: warm up, hold, decay linearly."""

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


def is_vision(name: str) -> bool:
    """Tell whether a parameter belongs to the vision tower."""
    return "vision_tower" in name


class MixedPrecision:
    """A float32 model that is stepped, and the bfloat16 copy that computes."""

    def __init__(
        self,
        master: InternVLForConditionalGeneration,
        schedule: Schedule,
        trained: tuple[str, ...] = ("",),
        extra: tuple[torch.nn.Parameter, ...] = (),
    ) -> None:
        """Train the parameters whose name contains one of `trained`; `extra` ones stay in float32."""
        self.master = master
        self.schedule = schedule
        self.worker = copy.deepcopy(master).bfloat16()
        self.worker.train()
        self._pairs: list[tuple[torch.nn.Parameter, torch.nn.Parameter]] = []
        matrices: dict[bool, list[torch.nn.Parameter]] = {False: [], True: []}
        others: dict[bool, list[torch.nn.Parameter]] = {False: [*extra], True: []}
        for (name, mine), theirs in zip(
            master.named_parameters(), self.worker.parameters(), strict=True
        ):
            theirs.requires_grad_(any(part in name for part in trained))
            if theirs.requires_grad:
                self._pairs.append((mine, theirs))
                is_matrix = mine.ndim == 2 and "embed" not in name
                (matrices if is_matrix else others)[is_vision(name)].append(mine)
        self._extra = extra
        self._optimisers = _optimisers(matrices, others, schedule)

    def step(self, index: int) -> None:
        """Move the worker's gradients to the master, update it, and copy it back."""
        for mine, theirs in self._pairs:
            mine.grad = None if theirs.grad is None else theirs.grad.float()
            theirs.grad = None
        parameters = [mine for mine, _ in self._pairs] + list(self._extra)
        torch.nn.utils.clip_grad_norm_(
            [parameter for parameter in parameters if parameter.grad is not None],
            MAX_GRADIENT_NORM,
        )
        factor = self.schedule.factor(index)
        for optimiser in self._optimisers:
            for group in optimiser.param_groups:
                group["lr"] = group["full_rate"] * factor
            optimiser.step()
            optimiser.zero_grad()
        with torch.no_grad():
            for mine, theirs in self._pairs:
                theirs.copy_(mine)


def _optimisers(
    matrices: dict[bool, list[torch.nn.Parameter]],
    others: dict[bool, list[torch.nn.Parameter]],
    schedule: Schedule,
) -> list[torch.optim.Optimizer]:
    """Build Muon and AdamW with one group per part (language, vision), each knowing its full rate."""

    def groups(parts: dict[bool, list[torch.nn.Parameter]], rate: float) -> list[dict[str, object]]:
        factors = {False: 1.0, True: schedule.vision_factor}
        return [
            {"params": part, "lr": rate * factors[vision], "full_rate": rate * factors[vision]}
            for vision, part in parts.items()
            if part
        ]

    muon = torch.optim.Muon(
        groups(matrices, schedule.matrix_rate), weight_decay=WEIGHT_DECAY, momentum=0.95
    )
    adam = torch.optim.AdamW(
        groups(others, schedule.other_rate), betas=(0.9, 0.97), weight_decay=WEIGHT_DECAY
    )
    return [muon, adam]
