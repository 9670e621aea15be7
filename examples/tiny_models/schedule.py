"""How long to train and how the learning rate moves: counted in steps, never in seconds."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Schedule(BaseModel):
    """A number of optimiser steps and the course of the learning rate over them.

    The defaults are those of VisualPRM (arXiv 2503.10291 §6): 5 % linear warm-up, then cosine to
    zero. "linear" holds the full rate until the last `decay_share` of the steps and then falls in
    a straight line to `final_factor`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(ge=1)
    warmup_share: float = Field(default=0.05, ge=0, le=1)
    decay: Literal["cosine", "linear"] = "cosine"
    decay_share: float = Field(default=1.0, gt=0, le=1)
    final_factor: float = Field(default=0.0, ge=0, le=1)

    def factor(self, step: int) -> float:
        """Return the multiple of the full learning rate at `step` (from 0)."""
        warmup_steps = max(1, round(self.steps * self.warmup_share))
        warmup = min(1.0, (step + 1) / warmup_steps)
        decay_steps = max(1, round(self.steps * self.decay_share))
        left = min(1.0, (self.steps - step) / decay_steps)
        if self.decay == "cosine":
            left = 0.5 - 0.5 * math.cos(math.pi * left)
        return warmup * max(self.final_factor, left)
