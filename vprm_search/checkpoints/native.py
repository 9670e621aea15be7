"""From a path or a hub name to a directory that transformers and vLLM load without remote code."""

from __future__ import annotations

import os
import re
from pathlib import Path

from vprm_search.checkpoints.convert import ConvertOptions, conversion_key, convert_checkpoint
from vprm_search.checkpoints.manifest import check_converted
from vprm_search.checkpoints.source import CONFIG_FILE, inside, read_json
from vprm_search.errors import CheckpointError, MissingDependencyError
from vprm_search.images.store import CACHE_VARIABLE

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
_NAME_DIGITS = 32


def ensure_native(
    path_or_repo: str | Path,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    *,
    local_files_only: bool = False,
    hub_cache_dir: str | Path | None = None,
) -> Path:
    """Return a native checkpoint's directory, converting an original one on first use.

    A directory with anything but an original InternVL checkpoint comes back as it is. An original
    one is converted once into `cache_dir`; processes that come at the same time wait for the first.
    A hub name ("Owner/Name", where there is no such directory) is fetched first, with `revision`,
    which must be a commit (40 hex digits): a branch can change under you.

    Args:
        path_or_repo: a directory or a hub name.
        revision: the commit of a hub name.
        cache_dir: where conversions go; `$VPRM_SEARCH_CACHE/checkpoints` or the user's cache.
        local_files_only: take a hub name from the hub's local cache only.
        hub_cache_dir: the hub's local cache, if it is not the usual one.

    Raises:
        CheckpointError: the checkpoint is missing, damaged, unfinished, unsafe or not convertible.
    """
    directory = Path(path_or_repo)
    if not directory.is_dir():
        directory = fetch(path_or_repo, revision, local_files_only, hub_cache_dir)
    elif revision is not None:
        raise CheckpointError(f"{directory} is a directory; a revision belongs to a hub name")
    if not is_original(directory):
        check_converted(directory)
        return directory
    options = ConvertOptions()
    name = f"{_readable(path_or_repo)}-{conversion_key(directory, options)[:_NAME_DIGITS]}"
    target = (Path(cache_dir) if cache_dir is not None else default_cache()) / name
    if target.is_dir() and check_converted(target) is not None:
        return target
    convert_checkpoint(directory, target, options)
    return target


def is_original(directory: Path) -> bool:
    """Tell whether a directory holds an original InternVL checkpoint, which needs conversion."""
    if not (directory / CONFIG_FILE).is_file():
        return False
    return read_json(inside(directory, CONFIG_FILE)).get("model_type") == "internvl_chat"


def default_cache() -> Path:
    """Return the directory for converted checkpoints; it may not exist yet.

    `$VPRM_SEARCH_CACHE/checkpoints`, else `$XDG_CACHE_HOME/vprm-search/checkpoints`, else the same
    under `~/.cache`.
    """
    configured = os.environ.get(CACHE_VARIABLE)
    if configured:
        return Path(configured) / "checkpoints"
    cache = os.environ.get("XDG_CACHE_HOME")
    root = Path(cache) if cache else Path.home() / ".cache"
    return root / "vprm-search" / "checkpoints"


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
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise MissingDependencyError("huggingface_hub", "local") from error
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


def _readable(path_or_repo: str | Path) -> str:
    """Return the last part of a path or hub name, fit for a directory's name."""
    name = Path(path_or_repo).resolve().name if Path(path_or_repo).is_dir() else str(path_or_repo)
    return re.sub(r"[^A-Za-z0-9_.]+", "-", name.rsplit("/", 1)[-1]).strip("-.")[:64] or "model"
