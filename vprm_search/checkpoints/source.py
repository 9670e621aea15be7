"""Opens an original checkpoint's directory: which files it has, and nothing unsafe among them."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vprm_search.checkpoints.safetensors_file import Shard, read_shard
from vprm_search.errors import CheckpointError
from vprm_search.ids import digest

CONFIG_FILE = "config.json"
INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
MAX_JSON_BYTES = 64 << 20

_READ_FILES = (
    CONFIG_FILE,
    INDEX_FILE,
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*\.safetensors")
_FULL_DIGEST_BYTES = 4 << 20
_SAMPLE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Source:
    """A directory with an original checkpoint; `shards` are in the order of their names."""

    directory: Path
    config: dict[str, Any]
    shards: tuple[Shard, ...]

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weight files."""
        return sum(shard.size for shard in self.shards)


def open_source(directory: Path) -> Source:
    """Read config, index and the headers of all weight files.

    Raises `CheckpointError` when the directory has no config or no safetensors weights (pickles
    are never opened), when the index names a file outside the directory or a tensor that is not
    where it says, or when a tensor occurs twice.
    """
    config = read_json(inside(directory, CONFIG_FILE))
    names, index = _weight_files(directory)
    shards = tuple(read_shard(inside(directory, name)) for name in names)
    homes: dict[str, str] = {}
    for name, shard in zip(names, shards, strict=True):
        for tensor in shard.tensors:
            if tensor.name in homes:
                raise CheckpointError(
                    f"{directory}: the tensor {tensor.name} is in {homes[tensor.name]} and in "
                    f"{name}; one of the files does not belong here"
                )
            homes[tensor.name] = name
    wrong = sorted(name for name, home in index.items() if homes.get(name) != home)
    if wrong:
        raise CheckpointError(
            f"{directory}: {INDEX_FILE} names {len(wrong)} tensors that are not in the file it "
            f"gives, the first is {wrong[0]!r} in {index[wrong[0]]!r}; download the files again"
        )
    return Source(directory, config, shards)


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object from a file. Raises `CheckpointError` if there is none."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise CheckpointError(f"{path} is larger than {MAX_JSON_BYTES} bytes")
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path} is missing: {path.parent} is no checkpoint directory"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} holds no JSON object")
    return data


def inside(directory: Path, name: str) -> Path:
    """Return the path of a file of a checkpoint; a link may lead into a hub cache's `blobs` only.

    Raises `CheckpointError` for a link that leads anywhere else.
    """
    path = directory / name
    target, home = path.resolve(), directory.resolve()
    # the hub's cache keeps files as snapshots/<commit>/name -> ../../blobs/<digest>
    blobs = home.parent.parent / "blobs" if home.parent.name == "snapshots" else home
    if not (target.is_relative_to(home) or target.is_relative_to(blobs)):
        raise CheckpointError(
            f"{path} is a link to {target}, outside the checkpoint; put the file itself there"
        )
    return path


def fingerprint(directory: Path) -> str:
    """Return a digest of the files a conversion reads, 64 hex digits; quick even for huge files.

    Small files are read whole; of large ones the size, the time of the last change, and the first
    and last mebibyte count (the first holds the header with every name, shape and offset).
    """
    parts: list[str | bytes | int] = ["checkpoint"]
    named = [directory / name for name in _READ_FILES if (directory / name).is_file()]
    for path in [*named, *sorted(directory.glob("*.safetensors"))]:
        inside(directory, path.name)
        stat = path.stat()
        with path.open("rb") as stream:
            if stat.st_size <= _FULL_DIGEST_BYTES:
                parts += [path.name, stream.read()]
            else:
                head = stream.read(_SAMPLE_BYTES)
                stream.seek(-_SAMPLE_BYTES, 2)
                tail = stream.read()
                parts += [path.name, stat.st_size, stat.st_mtime_ns]
                parts += [hashlib.sha256(head).digest(), hashlib.sha256(tail).digest()]
    return digest(*parts).hex()


def _weight_files(directory: Path) -> tuple[list[str], dict[str, str]]:
    """Return the names of the weight files, and for each tensor of the index its file."""
    if (directory / INDEX_FILE).is_file():
        index = read_json(inside(directory, INDEX_FILE)).get("weight_map")
        if not isinstance(index, dict) or not index:
            raise CheckpointError(f"{directory / INDEX_FILE} has no weight_map")
        for name in set(map(str, index.values())):
            if not _PLAIN_NAME.fullmatch(name):
                raise CheckpointError(
                    f"{directory / INDEX_FILE} points to {name!r}; only plain names of "
                    "*.safetensors files in the same directory are allowed"
                )
        names = sorted(set(index.values()))
        missing = [name for name in names if not (directory / name).is_file()]
        if missing:
            raise CheckpointError(
                f"{directory}: {len(missing)} of {len(names)} weight files are missing: "
                f"{', '.join(missing)}; download them"
            )
        return names, index
    found = sorted(path.name for path in directory.glob("*.safetensors"))
    if len(found) == 1:
        return found, {}
    if found:
        raise CheckpointError(
            f"{directory} holds {len(found)} *.safetensors files but no {INDEX_FILE}; download it"
        )
    pickles = sorted(path.name for kind in _PICKLES for path in directory.glob(kind))
    if pickles:
        raise CheckpointError(
            f"{directory} holds its weights as pickles ({', '.join(pickles[:3])}), which run code "
            "when they are opened; they are refused. Use the revision with *.safetensors files, "
            "or re-save the weights as safetensors in an environment you can throw away"
        )
    raise CheckpointError(f"{directory} holds no *.safetensors weights")
