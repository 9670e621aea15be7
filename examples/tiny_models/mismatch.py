"""Two throw-away losses that teach the tiny reward model to compare before it judges.

Verdicts alone ("is everything so far right?") do not start a model of this size in thousands of
steps. What starts it is local supervision of the comparison itself: the old layers keep predicting
the token that should be written, and the first new layer says for each digit whether the written
one deviates. Both heads are dropped when the model is saved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Parameter, functional

from examples.tiny_models.rows import IGNORED, Batch


@dataclass(frozen=True)
class LocalLosses:
    """Implements `reward_trainer.Auxiliary` for rows with `expected` and `mismatch` targets.

    Attributes:
        old_layers: layers of the policy below the new ones; the next-token loss reads their output.
        norm: trained copy of the policy's final norm, `[hidden]`.
        weight, bias: the mismatch head on the first new layer's output, `[hidden]` and `[1]`.
    """

    old_layers: int
    norm: Parameter
    weight: Parameter
    bias: Parameter
    next_token_weight: float = 0.9
    mismatch_weight: float = 1.0

    @classmethod
    def on_top_of(cls, policy_norm: Tensor, old_layers: int) -> LocalLosses:
        """Start from the policy's final norm weight and a zero mismatch head."""
        return cls(
            old_layers,
            Parameter(policy_norm.detach().clone()),
            Parameter(torch.zeros_like(policy_norm)),
            Parameter(torch.zeros(1)),
        )

    def parameters(self) -> Mapping[str, Parameter]:
        """Return the trained parameters of both heads."""
        return {"norm": self.norm, "weight": self.weight, "bias": self.bias}

    def losses(
        self, hidden: Sequence[Tensor], embedding: Tensor, batch: Batch
    ) -> Mapping[str, Tensor]:
        """Return the losses of those targets that the batch has."""
        if "expected" not in batch.targets:
            return {}
        return {
            "next_token": self.next_token_weight * self._next_token(hidden, embedding, batch),
            "mismatch": self.mismatch_weight * self._mismatch(hidden, batch),
        }

    def mismatch_logits(self, hidden: Sequence[Tensor]) -> Tensor:
        """Return the logit of "this token deviates", [rows, tokens]."""
        return hidden[self.old_layers + 1].float() @ self.weight + self.bias

    def _next_token(self, hidden: Sequence[Tensor], embedding: Tensor, batch: Batch) -> Tensor:
        targets = batch.targets["expected"][:, 1:]
        known = targets != IGNORED
        state = hidden[self.old_layers][:, :-1][known].float()
        state = state * torch.rsqrt(state.pow(2).mean(-1, keepdim=True) + 1e-6) * self.norm
        logits = state.to(embedding.dtype) @ embedding.T
        return functional.cross_entropy(logits.float(), targets[known])

    def _mismatch(self, hidden: Sequence[Tensor], batch: Batch) -> Tensor:
        """Binary cross-entropy, deviating and right tokens weighing the same in sum."""
        targets = batch.targets["mismatch"]
        known = targets != IGNORED
        target = targets[known].float()
        loss = functional.binary_cross_entropy_with_logits(
            self.mismatch_logits(hidden)[known], target, reduction="none"
        )
        parts = [loss[target == value] for value in (0.0, 1.0)]
        return torch.stack([part.mean() for part in parts if len(part)]).sum() / 2
