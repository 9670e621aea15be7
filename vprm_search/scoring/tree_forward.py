"""One forward pass of the language model over a packed tree of conversations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vprm_search.scoring.checkpoint import PrmCheckpoint
from vprm_search.scoring.kept_context import KeptContext
from vprm_search.scoring.meter import ScoringMeter
from vprm_search.scoring.token_tree import Rows, TokenPath, TokenTree, build_tree
from vprm_search.scoring.tree_attention import AttentionPlan, plan_attention


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

    def __init__(
        self, checkpoint: PrmCheckpoint, meter: ScoringMeter, context: KeptContext
    ) -> None:
        self._checkpoint = checkpoint
        self._meter = meter
        self._context = context

    def __call__(self, jobs: Sequence[PathJob]) -> list[list[float]]:
        """Return P('+') for every read position of every job; NaN where logits are not finite."""
        tree = build_tree([job.path for job in jobs])
        ids = _tokens(tree, jobs)
        groups = [jobs[segment.path].path.group for segment in tree.segments]
        reads = [tree.rows_of(i)[list(job.reads)] for i, job in enumerate(jobs)]
        wanted = np.unique(np.concatenate(reads))
        known = self._context.find(tree, ids, groups, wanted)
        plus = known.plus
        if len(known.new_rows):
            plan = plan_attention(tree, known, self._checkpoint.device)
            try:
                hidden = self._run(tree, ids, jobs, plan)
            except (RuntimeError, MemoryError):
                self._context.clear()  # its memory may be what is missing
                raise
            new = wanted[known.slots[wanted] >= known.count]
            plus[new] = self._read(hidden, known.slots[new] - known.count)
            if np.isnan(plus[wanted]).any():
                self._context.clear()
            else:
                self._context.keep(tree, ids, groups, known, plan.store, plus)
        return [plus[rows].tolist() for rows in reads]

    def _run(
        self, tree: TokenTree, ids: Rows, jobs: Sequence[PathJob], plan: AttentionPlan
    ) -> Tensor:
        """Return the last hidden state of the new rows, `[new rows, hidden]`."""
        device = self._checkpoint.device
        new = plan.known.new_rows
        self._meter.forward_passes += 1
        self._meter.tokens_computed += len(new)
        hidden: Tensor = self._checkpoint.model.model.language_model(
            inputs_embeds=self._embed(tree, ids, jobs)[None, torch.from_numpy(new).to(device)],
            position_ids=torch.from_numpy(tree.positions()[new])[None].to(device),
            use_cache=False,
            attention_plan=plan,
        ).last_hidden_state[0]
        return hidden

    def _embed(self, tree: TokenTree, ids: Rows, jobs: Sequence[PathJob]) -> Tensor:
        """Return the input embeddings, `[rows, hidden]`, with the images in their places."""
        table = self._checkpoint.model.get_input_embeddings()
        embeds: Tensor = table(torch.from_numpy(ids).to(self._checkpoint.device))
        for segment in tree.segments:
            job = jobs[segment.path]
            end = segment.depth + segment.stop - segment.start
            used = 0
            for start, stop in job.image_spans:
                first, last = max(start, segment.depth), min(stop, end)
                if first < last and job.features is not None:
                    part = job.features[used + first - start : used + last - start]
                    row = segment.start + first - segment.depth
                    embeds[row : row + last - first] = part.to(embeds.dtype)
                used += stop - start
        return embeds

    def _read(self, hidden: Tensor, rows: Rows) -> NDArray[np.float64]:
        plus = self._checkpoint.readout(hidden[torch.from_numpy(rows).to(hidden.device)])
        values: NDArray[np.float64] = plus.cpu().double().numpy()
        return values


def _tokens(tree: TokenTree, jobs: Sequence[PathJob]) -> Rows:
    """Return the token of every row."""
    ids = np.empty(tree.size, dtype=np.int64)
    for segment in tree.segments:
        end = segment.depth + segment.stop - segment.start
        ids[segment.start : segment.stop] = jobs[segment.path].path.ids[segment.depth : end]
    return ids
