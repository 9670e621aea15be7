"""The name of everything a score depends on besides the request."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from vprm_search.ids import digest
from vprm_search.scoring.families import DEFAULT_FAMILY, ScorerFile

_FULL_DIGEST_BYTES = 256 << 20
_SAMPLE_BYTES = 1 << 20


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
        _weights_digest(directory),
        settings.layout.model_dump_json(),
        "" if rule is None else rule.model_dump_json(),
        str(dtype),
    ]
    if settings.family != DEFAULT_FAMILY:
        parts.append(f"family {settings.family}")
    parts += [] if quantization is None else [f"quantized {quantization}"]
    parts += ["orm"] if orm else []
    return digest("scorer", *parts).hex()


def _weights_digest(directory: Path) -> bytes:
    """Digest weights, config and tokenizer; of huge files the ends, the size and the time."""
    state = hashlib.sha256()
    files = sorted([*directory.glob("*.safetensors"), *directory.glob("*.json")])
    files += sorted(directory.glob("*.model"))
    for file in files:
        stat = file.stat()
        with file.open("rb") as stream:
            if stat.st_size <= _FULL_DIGEST_BYTES:
                part = hashlib.file_digest(stream, "sha256").digest()
            else:
                head = stream.read(_SAMPLE_BYTES)
                stream.seek(-_SAMPLE_BYTES, 2)
                part = digest(head, stream.read(), stat.st_size, stat.st_mtime_ns)
        state.update(digest(file.name, part))
    return state.digest()
