"""From the last hidden state at a read position to P('+')."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Readout(Protocol):
    """Turns hidden states into probabilities."""

    def __call__(self, hidden: Tensor) -> Tensor:
        """Return P('+') in float32, `[rows]`, for `hidden` `[rows, hidden]`; NaN if not finite."""
        ...


class TokenPairReadout:
    """Softmax over the logits of two words: P('+') = exp(l+) / (exp(l+) + exp(l-)).

    Only the two rows of the head are computed, in float32: bfloat16 logits would tie near 1.
    Source: VisualPRM's scoring methods (softmax over '+' and '-' alone).
    """

    def __init__(self, head: Tensor, plus_id: int, minus_id: int) -> None:
        self._rows = head[[plus_id, minus_id]].detach().float()

    def __call__(self, hidden: Tensor) -> Tensor:
        """Return P('+'), `[rows]`."""
        logits = hidden.float() @ self._rows.T
        plus = logits.softmax(dim=-1)[:, 0]
        return plus.masked_fill(~logits.isfinite().all(dim=-1), torch.nan)
