"""Read the scoring head of a checkpoint from its files, by the names of its tensors."""

from __future__ import annotations

import re
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from vprm_search.errors import CheckpointError

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
