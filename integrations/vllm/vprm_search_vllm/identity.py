"""A name for everything a score depends on besides the request."""

from __future__ import annotations

from pathlib import Path

from vprm_search_vllm.shared.ids import digest

_SAMPLE_BYTES = 1 << 20


def model_identity(directory: Path, *settings: str) -> str:
    """Return 64 hex digits over a checkpoint's files and the settings it is served with.

    Of each file the name, the size and its first and last megabyte count: enough to tell
    checkpoints apart, and quick for 16 GB.
    """
    parts: list[str | bytes | int] = ["vllm-scorer", *settings]
    patterns = ("*.safetensors", "*.json", "*.model")
    for file in sorted(path for pattern in patterns for path in directory.glob(pattern)):
        size = file.stat().st_size
        with file.open("rb") as stream:
            head = stream.read(_SAMPLE_BYTES)
            stream.seek(max(0, size - _SAMPLE_BYTES))
            parts += [file.name, size, head, stream.read()]
    return digest(*parts).hex()
