"""From the last hidden state at a read position to P('+'), by the head a family has."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vprm_search.errors import CheckpointError

_VOCABULARY_CHUNK = 16_384


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
        logits = hidden.float() @ self._rows.to(hidden.device).T
        plus = logits.softmax(dim=-1)[:, 0]
        return plus.masked_fill(~logits.isfinite().all(dim=-1), torch.nan)


class FullVocabularyReadout:
    """Softmax over the whole vocabulary: P('+') = exp(l+) / sum of exp(l).

    The head is read in pieces, each in float32, so that no `[rows, vocabulary]` float32 copy of
    the logits exists. Source: DreamPRM-1.5, `utils.py`.
    """

    def __init__(self, head: Tensor, plus_id: int) -> None:
        self._head = head.detach()
        self._plus = head[plus_id].detach().float()

    def __call__(self, hidden: Tensor) -> Tensor:
        """Return P('+'), `[rows]`."""
        rows = hidden.float().to(self._head.device)
        pieces = [
            (rows @ piece.float().T).logsumexp(-1) for piece in self._head.split(_VOCABULARY_CHUNK)
        ]
        total = torch.stack(pieces).logsumexp(0)
        plus = (rows @ self._plus.to(rows.device) - total).exp()
        return plus.clamp(max=1).masked_fill(~total.isfinite(), torch.nan)


class HeadReadout:
    """A small head of its own: linear layers with ReLU between them, computed in float32.

    One output is a logit of '+' (sigmoid), two are the logits of '-' and '+' (softmax). Sources:
    Qwen2.5-Math-PRM (two classes, two layers), Skywork-o1-PRM and URSA-RM (one value, one layer).
    """

    def __init__(self, layers: Sequence[tuple[Tensor, Tensor | None]]) -> None:
        self._layers = [(w.float(), None if b is None else b.float()) for w, b in layers]

    def __call__(self, hidden: Tensor) -> Tensor:
        """Return P('+'), `[rows]`; the layers move to the device of the first `hidden`."""
        values, place = hidden.float(), hidden.device
        if self._layers[0][0].device != place:
            self._layers = [
                (w.to(place), None if b is None else b.to(place)) for w, b in self._layers
            ]
        for number, (weight, bias) in enumerate(self._layers):
            values = values.relu() if number else values
            values = torch.nn.functional.linear(values, weight, bias)
        plus = values.softmax(-1)[:, 1] if values.shape[-1] == 2 else values[:, 0].sigmoid()
        return plus.masked_fill(~values.isfinite().all(dim=-1), torch.nan)


Layers = list[tuple[Tensor, Tensor | None]]


def read_head(directory: Path, name: str, outputs: int) -> Layers:
    """Return the linear layers of a head, in order.

    `name` is the head's name in the checkpoint: either one layer (`name.weight`, `name.bias`) or a
    sequence (`name.0.weight`, `name.2.weight`, …) with activations between. Raises
    `CheckpointError` when there is no such head, or its last layer has not `outputs` outputs.
    """
    found = _tensors(
        directory, re.compile(rf"(?:^|\.){re.escape(name)}\.(?:(\d+)\.)?(weight|bias)$")
    )
    numbers = sorted({number for number, kind in found if kind == "weight"})
    layers: Layers = [(found[n, "weight"], found.get((n, "bias"))) for n in numbers]
    if not layers:
        raise CheckpointError(
            f"{directory} holds no scoring head {name!r} (a tensor '{name}.weight'); is this the "
            "reward model, and its family the right one?"
        )
    shape = tuple(layers[-1][0].shape)
    if len(shape) != 2 or shape[0] != outputs:
        raise CheckpointError(
            f"{directory}: the scoring head {name!r} ends with a weight of shape {shape}; "
            f"{outputs} outputs are needed"
        )
    return layers


def _tensors(directory: Path, pattern: re.Pattern[str]) -> dict[tuple[int, str], Tensor]:
    found: dict[tuple[int, str], Tensor] = {}
    for file in sorted(directory.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt") as stored:
                for key in stored.keys():  # noqa: SIM118 - not a dictionary
                    match = pattern.search(key)
                    if match:
                        found[int(match[1] or 0), match[2]] = stored.get_tensor(key)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{file} cannot be read: {error}") from error
    return found
