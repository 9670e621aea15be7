"""What a tiny reward model is trained and measured by beside its verdicts.

Verdicts alone ("is everything so far right?") do not start a model of this size in thousands of
steps. What starts it is local supervision of the comparison itself: the old layers keep predicting
the token that should be written, and the first new layer says for each digit whether the written
one deviates. Both heads are dropped when the model is saved. `check_rewards` measures the verdicts
against the exact truth on solutions of the policy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter, functional

from examples.tiny_models.measures import macro_f1
from examples.tiny_models.reward_rows import IGNORED, Batch, TrainingRow, collate
from vprm_search.bench.step_results import auc

# --- throw-away losses ---


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


# --- measurement ---


_ROWS = 64


@dataclass(frozen=True)
class JudgedRow:
    """A policy's solution as a row, its exact labels, and how often it was sampled."""

    family: str
    row: TrainingRow
    labels: tuple[bool, ...]
    count: int = 1


@torch.inference_mode()
def plus_probabilities(
    model: Any, rows: Sequence[TrainingRow], words: tuple[int, int]
) -> list[Any]:
    """Return P('+') at the read positions of each row, an array [reads] per row.

    `words` are the ids of '+' and '-'. A plain padded forward pass in the model's own dtype.
    """
    results: list[Any] = [None] * len(rows)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
    head = model.get_input_embeddings().weight[list(words)]
    for start in range(0, len(order), _ROWS):
        chosen = order[start : start + _ROWS]
        batch = collate([rows[i] for i in chosen], pad_id=0)
        embeds = model.get_input_embeddings()(batch.ids)
        features = model.model.get_image_features(pixel_values=batch.pixels, return_dict=True)
        places = (batch.ids == model.config.image_token_id)[..., None]
        embeds = embeds.masked_scatter(places, features.pooler_output.to(embeds.dtype))
        hidden = model.model.language_model(inputs_embeds=embeds, use_cache=False)
        read = hidden.last_hidden_state[batch.reads[:, 0], batch.reads[:, 1]]
        plus = (read @ head.T).float().softmax(-1)[:, 0].numpy()
        counts = [len(rows[i].read_positions) for i in chosen]
        for i, part in zip(chosen, np.split(plus, np.cumsum(counts)[:-1]), strict=True):
            results[i] = part
    return results


def check_rewards(
    model: Any, judged: Sequence[JudgedRow], words: tuple[int, int]
) -> dict[str, float]:
    """Return step AUC, macro-F1 at 0.5 and the position-only AUC, over all and per family.

    Every sampled solution counts as often as it was sampled.
    """
    scores = plus_probabilities(model, [item.row for item in judged], words)
    metrics: dict[str, float] = {}
    families = sorted({item.family for item in judged})
    for name, chosen in [("all", set(families)), *((f, {f}) for f in families)]:
        truth: list[bool] = []
        values: list[float] = []
        places: list[int] = []
        for item, score in zip(judged, scores, strict=True):
            if item.family in chosen:
                truth += list(item.labels) * item.count
                values += list(score) * item.count
                places += list(range(len(score))) * item.count
        right, value = np.array(truth), np.array(values)
        metrics[f"{name}.auc"] = round(auc(right, value), 4)
        metrics[f"{name}.f1"] = round(macro_f1(right, value), 4)
        metrics[f"{name}.position_auc"] = round(auc(right, -np.array(places)), 4)
        metrics[f"{name}.right_share"] = round(float(right.mean()), 4)
    return metrics
