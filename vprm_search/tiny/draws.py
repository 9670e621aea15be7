"""Random draws that belong to a seed, not to a stream: a child draws the same numbers anywhere.

Child k's numbers u(seed_k, 0), u(seed_k, 1), ... come from a counter-based hash (the finaliser of
splitmix64), and tokens are picked by inverting the cumulative distribution.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


def draw_tokens(logits: Tensor, temperature: Tensor, draws: Tensor, lane: Tensor) -> Tensor:
    """Pick one token per child, [children].

    `logits` is [lanes, vocabulary], `temperature` [lanes] (0: the most likely token), `draws` one
    number in [0, 1) per child, and `lane` the row of `logits` that each child draws from.
    """
    probabilities = (logits / temperature.clamp(min=1e-6)[:, None]).softmax(-1).double()
    cumulative = probabilities.cumsum(-1)
    # One search for all children: lane i's distribution is moved to the interval (i, i + 1].
    ladder = cumulative / cumulative[:, -1:] + torch.arange(len(logits))[:, None]
    size = logits.shape[1]
    found = torch.searchsorted(ladder.flatten(), draws + lane, right=True)
    sampled = (found - lane * size).clamp(0, size - 1)
    return torch.where(temperature[lane] > 0, sampled, logits.argmax(-1)[lane])


def uniforms(seeds: np.ndarray[Any, Any], position: int) -> np.ndarray[Any, Any]:
    """Return u(seed, position) in [0, 1) for every seed, [seeds] float64 (splitmix64 finaliser)."""
    with np.errstate(over="ignore"):
        step = np.uint64(((position + 1) * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF)
        z = _mix(seeds) + step
        return (_mix(z) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(z: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray[Any, Any] = z ^ (z >> np.uint64(31))
    return mixed
