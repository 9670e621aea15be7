"""The name of everything a score depends on besides the request."""

from __future__ import annotations

from pathlib import Path

import torch

from vprm_search.checkpoints.identity import checkpoint_digest
from vprm_search.ids import digest
from vprm_search.scoring.families import DEFAULT_FAMILY, ScorerFile


def checkpoint_identity(
    directory: Path,
    settings: ScorerFile,
    dtype: torch.dtype,
    quantization: str | None,
    orm: bool,
) -> str:
    """Return the checkpoint's name; what is not VisualPRM's plain way adds to it."""
    rule = settings.preprocess
    parts: list[str | bytes] = [
        checkpoint_digest(directory),
        settings.layout.model_dump_json(),
        "" if rule is None else rule.model_dump_json(),
        str(dtype),
    ]
    if settings.family != DEFAULT_FAMILY:
        parts.append(f"family {settings.family}")
    parts += [] if quantization is None else [f"quantized {quantization}"]
    parts += ["orm"] if orm else []
    return digest("scorer", *parts).hex()
