"""One forward pass of the language model over a packed tree of conversations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vprm_search.scoring.checkpoint import PrmCheckpoint
from vprm_search.scoring.meter import ScoringMeter
from vprm_search.scoring.token_tree import TokenPath, TokenTree, build_tree
from vprm_search.scoring.tree_attention import plan_attention


@dataclass(frozen=True, slots=True)
class PathJob:
    """One path to score: its tokens, where to read, and the embeddings of its images.

    `features` is `[image tokens, hidden]`, all images of the problem one after another, or None
    without images; `image_spans` says where they go.
    """

    path: TokenPath
    reads: tuple[int, ...]
    image_spans: tuple[tuple[int, int], ...]
    features: Tensor | None


class TreeForward:
    """Computes P('+') at the read positions of many paths at once."""

    def __init__(self, checkpoint: PrmCheckpoint, meter: ScoringMeter) -> None:
        self._checkpoint = checkpoint
        self._meter = meter
        words = [checkpoint.builder.plus_id, checkpoint.builder.minus_id]
        # two rows of the head in float32: bfloat16 logits would tie near 1
        self._head = checkpoint.model.lm_head.weight[words].detach().float()

    def __call__(self, jobs: Sequence[PathJob]) -> list[list[float]]:
        """Return P('+') for every read position of every job; NaN where logits are not finite."""
        tree = build_tree([job.path for job in jobs])
        embeds = self._embed(tree, jobs)
        device = self._checkpoint.device
        self._meter.forward_passes += 1
        self._meter.tokens_computed += tree.size
        hidden = self._checkpoint.model.model.language_model(
            inputs_embeds=embeds[None],
            position_ids=torch.from_numpy(tree.positions())[None].to(device),
            use_cache=False,
            attention_plan=plan_attention(tree, device),
        ).last_hidden_state[0]
        return self._read(hidden, tree, jobs)

    def _embed(self, tree: TokenTree, jobs: Sequence[PathJob]) -> Tensor:
        """Return the input embeddings, `[rows, hidden]`, with the images in their places."""
        ids = np.empty(tree.size, dtype=np.int64)
        places: list[tuple[int, int, Tensor]] = []
        for segment in tree.segments:
            job = jobs[segment.path]
            end = segment.depth + segment.stop - segment.start
            ids[segment.start : segment.stop] = job.path.ids[segment.depth : end]
            used = 0
            for start, stop in job.image_spans:
                first, last = max(start, segment.depth), min(stop, end)
                if first < last and job.features is not None:
                    part = job.features[used + first - start : used + last - start]
                    places.append((segment.start + first - segment.depth, last - first, part))
                used += stop - start
        table = self._checkpoint.model.get_input_embeddings()
        embeds: Tensor = table(torch.from_numpy(ids).to(self._checkpoint.device))
        for row, count, part in places:
            embeds[row : row + count] = part.to(embeds.dtype)
        return embeds

    def _read(self, hidden: Tensor, tree: TokenTree, jobs: Sequence[PathJob]) -> list[list[float]]:
        rows = [tree.rows_of(i)[list(job.reads)] for i, job in enumerate(jobs)]
        unique, back = np.unique(np.concatenate(rows), return_inverse=True)
        read = hidden[torch.from_numpy(unique).to(hidden.device)].float()
        logits = read @ self._head.T
        plus = logits.softmax(dim=-1)[:, 0]
        plus = plus.masked_fill(~logits.isfinite().all(dim=-1), float("nan"))
        values = iter(plus.cpu().numpy()[back].tolist())
        return [[next(values) for _ in job.reads] for job in jobs]
