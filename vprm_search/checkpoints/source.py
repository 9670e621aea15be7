"""Where a checkpoint comes from, a folder or a hub, and what is safe to read there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vprm_search.errors import CheckpointError, need
from vprm_search.records import read_json

CONFIG_FILE = "config.json"
INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"

WANTED_FILES = (
    "*.safetensors",
    "*.json",
    "*.jinja",
    "tokenizer.model",
    "merges.txt",
)
"""All that is fetched from a hub: no pickles, no code."""

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.\-]*/[A-Za-z0-9][\w.\-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*\.safetensors")


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


def weight_files(directory: Path) -> tuple[list[str], dict[str, str]]:
    """Return the names of the weight files, and for each tensor of the index its file.

    Raises `CheckpointError` when there are none (pickles are never opened), when some are missing,
    or when the index names a file outside the directory.
    """
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


@contextmanager
def readable(directory: Path) -> Iterator[None]:
    """Turn an `OSError` while a checkpoint is read into a `CheckpointError` that names it."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"{directory} cannot be read: {error}; change its permissions or take a copy"
        ) from error


def locate(
    path_or_repo: str | Path,
    revision: str | None,
    local_files_only: bool = False,
    hub_cache_dir: str | Path | None = None,
) -> Path:
    """Return the directory of a checkpoint: itself, or the snapshot of a hub name (`fetch`).

    Raises `CheckpointError` for a directory with a revision or one that cannot be read, and what
    `fetch` raises.
    """
    directory = Path(path_or_repo)
    with readable(directory):
        if not directory.is_dir():
            return fetch(path_or_repo, revision, local_files_only, hub_cache_dir)
    if revision is not None:
        raise CheckpointError(f"{directory} is a directory; a revision belongs to a hub name")
    return directory


def fetch(
    path_or_repo: str | Path,
    revision: str | None,
    local_files_only: bool = False,
    hub_cache_dir: str | Path | None = None,
) -> Path:
    """Return the local snapshot of a hub repository at a commit, fetching what is missing.

    Raises `CheckpointError` for anything but "Owner/Name" with a commit, and when the files can be
    had neither from the cache nor from the hub.
    """
    name = str(path_or_repo)
    if not isinstance(path_or_repo, str) or not _HUB_NAME.fullmatch(name):
        raise CheckpointError(f"{name} is no directory; give a checkpoint's directory")
    if revision is None or not _COMMIT.fullmatch(revision):
        raise CheckpointError(
            f"{name} is no directory here; as a hub name it needs revision= with a commit of 40 "
            f"hex digits (it is {revision!r}), so that the weights cannot change under you. The "
            "hub shows it under 'Files' / 'History'"
        )
    need("huggingface_hub", "local")
    from huggingface_hub import snapshot_download

    try:
        found = snapshot_download(
            name,
            revision=revision,
            allow_patterns=list(WANTED_FILES),
            local_files_only=local_files_only,
            cache_dir=hub_cache_dir,
        )
    except Exception as error:  # connection, authorisation, missing repository or commit …
        raise CheckpointError(
            f"{name} at {revision[:12]} cannot be had from the hub: {error}. Without network, "
            "download its *.safetensors, *.json and tokenizer files elsewhere and give the "
            "directory (HF_HUB_OFFLINE=0 allows the network in the command line program)"
        ) from error
    return Path(found)
