"""Save and restore a training run: weights and optimiser state as safetensors, never pickle."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import Parameter

from vprm_search.errors import CheckpointError


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
