"""Train a reward model: an InternVL model whose '+' and '-' at the read positions become verdicts.

The same trainer makes a process reward model (a label per step) and an outcome reward model (a
label behind the last step): the rows say which verdicts exist (`reward_rows.Supervision`). A run
is a function of its start weights, its batches and its configuration; the batches are a function
of the step number, so a run that was cut continues from its last saved step as if it never stopped.
"""

from __future__ import annotations

import copy
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import Parameter

from examples.tiny_models.reward_rows import Batch, TrainingRow, collate
from vprm_search.errors import CheckpointError, ConfigError

# --- schedule ---


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


# --- resume ---


class TrainerState:
    """The resume point of one run, in one file that is replaced as a whole."""

    def __init__(
        self,
        folder: Path,
        named: Sequence[tuple[str, Parameter]],
        optimisers: Sequence[torch.optim.Optimizer],
    ) -> None:
        self._file = folder / "resume.safetensors"
        self._named, self._optimisers = named, optimisers
        self._names = {id(parameter): name for name, parameter in named}

    def save(self, step: int) -> None:
        """Write parameters and optimiser state after `step` finished steps."""
        tensors = {f"weight|{name}": p.detach().contiguous() for name, p in self._named}
        for number, optimiser in enumerate(self._optimisers):
            for parameter, values in optimiser.state.items():
                for key, value in values.items():
                    tensor = value if isinstance(value, Tensor) else torch.tensor(value)
                    name = f"optimiser|{number}|{self._names[id(parameter)]}|{key}"
                    tensors[name] = tensor.detach().contiguous()
        self._file.parent.mkdir(parents=True, exist_ok=True)
        part = self._file.with_suffix(".part")
        save_file(tensors, part, metadata={"step": str(step)})
        os.replace(part, self._file)

    def load(self) -> int:
        """Restore the last saved state; return how many steps it has done (0: none saved).

        Raises `CheckpointError` when the file belongs to another model or optimiser.
        """
        if not self._file.exists():
            return 0
        parameters = dict(self._named)
        with safe_open(self._file, framework="pt") as stored:
            step = int(stored.metadata()["step"])
            weights = {k.partition("|")[2] for k in stored.keys() if k.startswith("weight|")}  # noqa: SIM118
            if weights != set(parameters):
                other = sorted(weights ^ set(parameters))[:3]
                raise CheckpointError(
                    f"{self._file} is the state of another run (parameters {other} differ); "
                    "train into another folder or remove it"
                )
            for key in stored.keys():  # noqa: SIM118
                kind, _, rest = key.partition("|")
                if kind == "weight":
                    with torch.no_grad():
                        parameters[rest].copy_(stored.get_tensor(key))
                else:
                    number, name, slot = rest.split("|")
                    optimiser = self._optimisers[int(number)]
                    optimiser.state[parameters[name]][slot] = stored.get_tensor(key)
        return step


# --- the trainer ---


Batches = Callable[[int], Sequence[TrainingRow]]
"""Rows of training step i: must depend on i alone, so that a resumed run sees the same rows."""
Evaluation = Callable[[Any], Mapping[str, float]]
Optimisers = Callable[[Sequence[tuple[str, Parameter]]], list[torch.optim.Optimizer]]


class Auxiliary(Protocol):
    """Extra losses that help a small model to start; their parameters are thrown away."""

    def parameters(self) -> Mapping[str, Parameter]:
        """Return the trained parameters by name (kept in float32)."""
        ...

    def losses(
        self, hidden: Sequence[Tensor], embedding: Tensor, batch: Batch
    ) -> Mapping[str, Tensor]:
        """Return weighted losses; `hidden[l]` is [rows, tokens, hidden] after l layers."""
        ...


class TrainConfig(BaseModel):
    """What a training run does besides its data."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schedule: Schedule
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    frozen: tuple[str, ...] = ("vision_tower", "multi_modal_projector")
    max_gradient_norm: float = Field(default=1.0, gt=0)
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    log_every: int = Field(default=20, ge=1)
    evaluate_every: int = Field(default=100, ge=1)
    save_every: int = Field(default=200, ge=1)


def adamw(learning_rate: float = 1e-5) -> Optimisers:
    """Return VisualPRM's optimiser: AdamW, betas (.9, .999), weight decay .05 (§6)."""

    def build(named: Sequence[tuple[str, Parameter]]) -> list[torch.optim.Optimizer]:
        parameters = [parameter for _, parameter in named]
        return [torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.05)]

    return build


class RewardTrainer:
    """Trains `model` (float32, changed in place) on '+' and '-' at the read positions.

    With `compute_dtype="bfloat16"` a bfloat16 copy computes and the float32 model is stepped.
    `plus_id` and `minus_id` are the tokens of the two words. Raises `ConfigError` on a model that
    is not in float32.
    """

    def __init__(
        self,
        model: Any,
        plus_id: int,
        minus_id: int,
        config: TrainConfig,
        optimisers: Optimisers | None = None,
        auxiliary: Auxiliary | None = None,
    ) -> None:
        if model.dtype != torch.float32:
            raise ConfigError(f"the model is in {model.dtype}; load it in float32 to train it")
        self.model, self.config, self.auxiliary = model, config, auxiliary
        self.plus_id, self.minus_id = plus_id, minus_id
        self.pad_id = int(model.config.text_config.pad_token_id or 0)
        dtype = getattr(torch, config.compute_dtype)
        self.worker = model if dtype == torch.float32 else copy.deepcopy(model).to(dtype)
        self._pairs = self._trained_pairs()
        extra = dict(auxiliary.parameters()) if auxiliary else {}
        self._extra = list(extra.values())
        named = [(name, mine) for name, mine, _ in self._pairs]
        named += [(f"auxiliary.{name}", parameter) for name, parameter in extra.items()]
        self.optimisers = (optimisers or adamw())(named)
        self._rates = [[g["lr"] for g in o.param_groups] for o in self.optimisers]
        self._named = named

    def run(
        self,
        batches: Batches,
        out: Path,
        evaluate: Evaluation | None = None,
        report: Callable[[str], None] | None = None,
    ) -> None:
        """Train to the end of the schedule; `out` keeps `metrics.jsonl` and the resume state."""
        out.mkdir(parents=True, exist_ok=True)
        state = TrainerState(out / "state", self._named, self.optimisers)
        start = state.load()
        self._copy_to_worker()
        steps, began = self.config.schedule.steps, time.monotonic()
        smooth: dict[str, float] = {}
        for step in range(start, steps):
            for name, value in self.step(step, batches(step)).items():
                smooth[name] = 0.9 * smooth.get(name, value) + 0.1 * value
            done, last = step + 1, step + 1 == steps
            metrics: dict[str, Any] = {}
            if last or done % self.config.log_every == 0:
                metrics |= {name: round(value, 5) for name, value in smooth.items()}
            if evaluate and (last or done % self.config.evaluate_every == 0):
                metrics |= evaluate(self.model.eval())
            if metrics:
                seconds = round(time.monotonic() - began, 1)
                _append(out / "metrics.jsonl", {"step": done, "seconds": seconds} | metrics)
                if report:
                    report(f"step {done}/{steps} {seconds:.0f}s {metrics}")
            if last or done % self.config.save_every == 0:
                state.save(done)

    def step(self, index: int, rows: Sequence[TrainingRow]) -> dict[str, float]:
        """Do one optimiser step on `rows`; return its losses by name."""
        self.worker.train()
        batch = collate(rows, self.pad_id)
        losses = self.losses(batch)
        torch.stack(list(losses.values())).sum().backward()
        self._take_gradients()
        factor = self.config.schedule.factor(index)
        for optimiser, rates in zip(self.optimisers, self._rates, strict=True):
            for group, rate in zip(optimiser.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            optimiser.step()
            optimiser.zero_grad()
        self._copy_to_worker()
        return {name: float(loss.detach()) for name, loss in losses.items()}

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the verdict loss and the auxiliary ones, each a float32 scalar with gradient."""
        hidden = self.hidden_states(batch, every_layer=self.auxiliary is not None)
        embedding = self.worker.get_input_embeddings().weight
        read = hidden[-1][batch.reads[:, 0], batch.reads[:, 1]]
        scores = self.worker.lm_head(read).float().log_softmax(-1)
        smoothing = self.config.label_smoothing
        plus = batch.labels * (1 - 2 * smoothing) + smoothing
        verdicts = plus * scores[:, self.plus_id] + (1 - plus) * scores[:, self.minus_id]
        losses = {"verdict": -verdicts.mean()}
        if self.auxiliary is not None:
            losses |= self.auxiliary.losses(hidden, embedding, batch)
        return losses

    def hidden_states(self, batch: Batch, every_layer: bool = False) -> Sequence[Tensor]:
        """Run the language model; the last entry is normalised, [rows, tokens, hidden]."""
        model = self.worker
        embeds = model.get_input_embeddings()(batch.ids)
        if batch.pixels is not None:
            features = self._image_features(batch.pixels)
            places = (batch.ids == model.config.image_token_id)[..., None]
            embeds = embeds.masked_scatter(places, features.to(embeds.dtype))
        output = model.model.language_model(
            inputs_embeds=embeds, use_cache=False, output_hidden_states=every_layer
        )
        if not every_layer:
            return [output.last_hidden_state]
        return [*output.hidden_states[:-1], output.last_hidden_state]

    def _image_features(self, pixels: Tensor) -> Tensor:
        learned = not {"vision_tower", "multi_modal_projector"} <= set(self.config.frozen)
        with torch.set_grad_enabled(learned):
            output = self.worker.model.get_image_features(
                pixel_values=pixels.to(self.worker.dtype), return_dict=True
            )
        return output.pooler_output  # type: ignore[no-any-return]

    def _trained_pairs(self) -> list[tuple[str, Parameter, Parameter]]:
        pairs = []
        for (name, mine), theirs in zip(
            self.model.named_parameters(), self.worker.parameters(), strict=True
        ):
            learned = not any(part in name for part in self.config.frozen)
            mine.requires_grad_(learned)
            theirs.requires_grad_(learned)
            if learned:
                pairs.append((name, mine, theirs))
        return pairs

    def _take_gradients(self) -> None:
        """Bring the gradients to the float32 parameters and clip them."""
        for _, mine, theirs in self._pairs:
            if mine is not theirs:
                mine.grad = None if theirs.grad is None else theirs.grad.float()
                theirs.grad = None
        clipped = [mine for _, mine, _ in self._pairs if mine.grad is not None]
        torch.nn.utils.clip_grad_norm_(clipped, self.config.max_gradient_norm)

    @torch.no_grad()
    def _copy_to_worker(self) -> None:
        for _, mine, theirs in self._pairs:
            if mine is not theirs:
                theirs.copy_(mine)


def _append(path: Path, record: Mapping[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
