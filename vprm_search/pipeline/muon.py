"""Muon in the precision of its parameters, with one batched orthogonalisation per matrix shape.

torch's own Muon orthogonalises in bfloat16; on a CPU without bfloat16 arithmetic (AVX2 only) that
alone costs more than the forward and backward pass of a small model.
Jordan et al., "Muon" (2024): Nesterov momentum, then five quintic Newton-Schulz steps.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_EPSILON = 1e-7


def orthogonalise(batch: Tensor) -> Tensor:
    """Return roughly the nearest semi-orthogonal matrix of each one in `batch` [n, rows, columns].

    Singular values end between about 0.7 and 1.2.
    """
    a, b, c = _COEFFICIENTS
    tall = batch.shape[-2] > batch.shape[-1]
    x = batch.mT if tall else batch
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(_EPSILON)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    result: Tensor = x.mT if tall else x
    return result


class Muon(torch.optim.Optimizer):
    """Muon for matrices: same update and learning-rate scale as `torch.optim.Muon`.

    The step of a matrix [rows, columns] is scaled by sqrt(max(1, rows / columns)).
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        for group in self.param_groups:
            if any(parameter.ndim != 2 for parameter in group["params"]):
                raise ValueError("Muon trains matrices only; give vectors to another optimiser")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every matrix that has a gradient."""
        loss = None if closure is None else closure()
        for group in self.param_groups:
            shapes: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes[parameter.shape].append(parameter)
            for shape, parameters in shapes.items():
                self._update(parameters, shape, group)
        return loss

    def _update(self, parameters: list[Tensor], shape: torch.Size, group: dict[str, Any]) -> None:
        momentum, rate = group["momentum"], group["lr"]
        directions = []
        for parameter in parameters:
            gradient: Tensor = parameter.grad  # type: ignore[assignment]  # checked by step
            buffer = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
            buffer.lerp_(gradient, 1 - momentum)
            directions.append(torch.lerp(gradient, buffer, momentum))
        updates = orthogonalise(torch.stack(directions))
        scale = rate * max(1.0, shape[0] / shape[1]) ** 0.5
        for parameter, update in zip(parameters, updates, strict=True):
            if group["weight_decay"]:
                parameter.mul_(1 - rate * group["weight_decay"])
            parameter.add_(update, alpha=-scale)
