"""Muon: momentum whose direction is orthogonalised, in float32.

`torch.optim.Muon` computes in bfloat16: twelve times slower on a CPU without bfloat16 arithmetic,
and other bytes than those that ship.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Quintic Newton-Schulz coefficients of the Muon publication (Jordan et al., 2024)."""
ITERATIONS = 5


def orthogonalise(matrices: torch.Tensor) -> torch.Tensor:
    """Move the singular values of `[..., rows, columns]` near 1, keeping the singular vectors."""
    tall = matrices.shape[-2] > matrices.shape[-1]
    x: torch.Tensor = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Stochastic gradient descent with orthogonalised Nesterov momentum, for matrices only.

    Matrices of one shape are orthogonalised together. An update has spectral norm about
    lr * sqrt(max(1, rows / columns)).
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        if any(parameter.ndim != 2 for group in self.param_groups for parameter in group["params"]):
            raise ValueError("Muon trains matrices only; give vectors to another optimiser")

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every matrix that has a gradient (`closure` is not supported)."""
        if closure is not None:
            raise ValueError(
                "Muon does not evaluate a closure; compute the gradients before step()"
            )
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[torch.nn.Parameter]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault(parameter.shape, []).append(parameter)
            for parameters in by_shape.values():
                self._update(parameters, group)

    def _update(self, parameters: list[torch.nn.Parameter], group: dict[str, Any]) -> None:
        rows, columns = parameters[0].shape
        directions = orthogonalise(torch.stack([self._momentum(p, group) for p in parameters]))
        rate = group["lr"] * max(1.0, rows / columns) ** 0.5
        for parameter, direction in zip(parameters, directions, strict=True):
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(direction, alpha=-rate)

    def _momentum(self, parameter: torch.nn.Parameter, group: dict[str, Any]) -> torch.Tensor:
        """Advance a matrix's running mean of gradients and look one step ahead of it."""
        gradient = parameter.grad
        if gradient is None:
            raise ValueError("a matrix without a gradient cannot be updated")
        state = self.state[parameter]
        if "mean" not in state:
            state["mean"] = torch.zeros_like(parameter)
        state["mean"].lerp_(gradient, 1 - group["momentum"])
        return gradient.lerp(state["mean"], group["momentum"])
