"""Where the packaged weights of the tiny world are."""

from __future__ import annotations

import os
from pathlib import Path

from vprm_search.errors import CheckpointError

WEIGHT_NAMES = ("policy", "prm")
WEIGHTS_VARIABLE = "VPRM_SEARCH_TINY_WEIGHTS"

_PACKAGED = Path(__file__).parent / "weights"


def weights_root() -> Path:
    """Return the folder of all weights: the packaged one, or `$VPRM_SEARCH_TINY_WEIGHTS`."""
    configured = os.environ.get(WEIGHTS_VARIABLE)
    return Path(configured) if configured else _PACKAGED


def weights_path(name: str) -> Path:
    """Return the folder of one model.

    Args:
        name: "policy" or "prm".

    Raises:
        CheckpointError: the model is unknown or not there.
    """
    if name not in WEIGHT_NAMES:
        raise CheckpointError(
            f"there is no tiny model {name!r}; there are: {', '.join(WEIGHT_NAMES)}"
        )
    path = weights_root() / name
    if not (path / "model.safetensors").is_file():
        raise CheckpointError(
            f"the tiny model {name!r} is not in {weights_root()}; reinstall the package, or set "
            f"{WEIGHTS_VARIABLE} to a folder that has it"
        )
    return path
