"""Measure a tiny reward model against the exact truth on solutions of the policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from examples.tiny_models.rows import TrainingRow, collate
from vprm_search.compare.statistics import auc, macro_f1

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
