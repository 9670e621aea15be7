"""The conversion: an original InternVL checkpoint becomes a native one, without its code."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from vprm_search.checkpoints import native_files
from vprm_search.checkpoints.identity import file_digests
from vprm_search.checkpoints.native_files import TokenizerFiles, make_tokenizer
from vprm_search.checkpoints.original import (
    Expected,
    OriginalConfig,
    embedding_names,
    mapping,
    read_original_config,
    target_shapes,
)
from vprm_search.checkpoints.output import (
    CopiedShard,
    FileRecord,
    Manifest,
    Staging,
    check_converted,
    exclusive,
)
from vprm_search.checkpoints.source import (
    CONFIG_FILE,
    INDEX_FILE,
    SINGLE_FILE,
    inside,
    locate,
    readable,
)
from vprm_search.checkpoints.weights import (
    TORCH_NAMES,
    Shard,
    Source,
    check_tensors,
    copy_shard,
    open_source,
    shard_parts,
    target_size,
    tensor_chunks,
)
from vprm_search.errors import CheckpointError, ConfigError
from vprm_search.ids import digest
from vprm_search.images.store import CACHE_VARIABLE, cache_folder
from vprm_search.records import read_json

CONVERTER_VERSION = 2
"""Goes up when the same source would be converted into other files."""

OnProgress = Callable[[int, int], None]
"""Called with the bytes of weights done and in all."""

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
_NAME_DIGITS = 32


@dataclass(frozen=True, slots=True)
class ConvertOptions:
    """What the user may say about a conversion.

    Args:
        max_tiles: most tiles of one image; None: 12, as VisualPRM's model card has it (1 if the
            checkpoint does not tile).
        family: the family of process reward models that the weights belong to; None: VisualPRM, if
            the checkpoint says that it is a reward model.

    Raises:
        ConfigError: no tile at all, or a family that has no InternVL checkpoints.
    """

    max_tiles: int | None = None
    family: str | None = None

    def __post_init__(self) -> None:
        if self.max_tiles is not None and self.max_tiles < 1:
            raise ConfigError(f"max_tiles is {self.max_tiles}; at least 1 is needed")
        if self.family is not None and self.family not in native_files.FAMILIES:
            raise ConfigError(
                f"{self.family!r} is no family of reward models with InternVL's weights; known are "
                f"{', '.join(native_files.FAMILIES)}"
            )

    @property
    def key(self) -> str:
        """The options and the converter's version as a text."""
        other = None if self.family == native_files.DEFAULT_FAMILY else self.family
        return json.dumps([CONVERTER_VERSION, self.max_tiles, other])


@dataclass(frozen=True, slots=True)
class _Job:
    """A checked source with all that will be written."""

    source: Source
    config: OriginalConfig
    table: Mapping[str, Expected]
    tokenizer: TokenizerFiles
    dropped: tuple[str, ...]
    warnings: tuple[str, ...]
    options: ConvertOptions
    key: str


def convert_checkpoint(
    source: str | Path,
    out: str | Path,
    options: ConvertOptions | None = None,
    on_progress: OnProgress | None = None,
) -> Manifest:
    """Convert the original checkpoint in `source` into a native one at `out`.

    Everything is checked before the first byte is written. `out` appears when it is complete; an
    interrupted conversion is continued by calling this again. An `out` that already holds this
    conversion is verified, digests included, and left as it is.

    Args:
        source: folder of the original checkpoint; nothing is written into it but the digests of
            its large files (`identity.DIGESTS_FILE`).
        out: folder to make; it may exist if it is empty.
        options: tiles and family.
        on_progress: called with the bytes of weights done and in all.

    Raises:
        CheckpointError: a source that cannot be converted or is no reward model, an `out` that is
            in the way or cannot be written, or too little space.
    """
    place, target = Path(source), Path(out).absolute()
    chosen = options or ConvertOptions()
    if target.resolve().is_relative_to(place.resolve()):
        raise CheckpointError(f"{target} lies in the source {place}; choose another place")
    with readable(place):
        job = _prepare(place, chosen)
    try:
        with exclusive(target):
            existing = _existing(target, job.key)
            return existing or _convert(job, target, on_progress or (lambda done, total: None))
    except OSError as error:
        raise CheckpointError(
            f"{place} cannot be converted into {target}: {error}; give a place that you may write "
            f"to and that has space (${CACHE_VARIABLE} for what is converted on loading)"
        ) from error


def ensure_native(
    path_or_repo: str | Path,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    *,
    family: str | None = None,
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
        family: the family of reward models that the caller will read the weights as. It says that
            they are a reward model's, and changes nothing else: all families share a conversion.
        local_files_only: take a hub name from the hub's local cache only.
        hub_cache_dir: the hub's local cache, if it is not the usual one.

    Raises:
        CheckpointError: the checkpoint is missing, damaged, unfinished, unsafe, no reward model or
            not convertible, or the cache cannot be written.
    """
    directory = locate(path_or_repo, revision, local_files_only, hub_cache_dir)
    with readable(directory):
        if not is_original(directory):
            check_converted(directory)
            return directory
    options = ConvertOptions(family=None if family is None else native_files.DEFAULT_FAMILY)
    config = read_original_config(read_json(inside(directory, CONFIG_FILE)))
    _require_reward_model(directory, config, options)
    name = f"{_plain_name(path_or_repo)}-{conversion_key(directory, options)[:_NAME_DIGITS]}"
    target = (Path(cache_dir) if cache_dir is not None else cache_folder("checkpoints")) / name
    with readable(target):
        if target.is_dir() and check_converted(target) is not None:
            return target
    convert_checkpoint(directory, target, options)
    return target


def is_original(directory: Path) -> bool:
    """Tell whether a directory holds an original InternVL checkpoint, which needs conversion."""
    if not (directory / CONFIG_FILE).is_file():
        return False
    return read_json(inside(directory, CONFIG_FILE)).get("model_type") == "internvl_chat"


def conversion_key(source: Path, options: ConvertOptions) -> str:
    """Return a name for what a conversion of `source` gives: its files' content and the options.

    64 hex digits. Raises `CheckpointError` when a file cannot be read.
    """
    with readable(source):
        named = [source / name for name in _READ_FILES if (source / name).is_file()]
        files = [*named, *sorted(source.glob("*.safetensors"))]
        for path in files:
            inside(source, path.name)
        digests = file_digests(files)
    parts = [
        part for path, found in zip(files, digests, strict=True) for part in (path.name, found)
    ]
    return digest("conversion", *parts, options.key).hex()


def _plain_name(path_or_repo: str | Path) -> str:
    """Return the last part of a path or hub name, fit for a directory's name."""
    name = Path(path_or_repo).resolve().name if Path(path_or_repo).is_dir() else str(path_or_repo)
    return re.sub(r"[^A-Za-z0-9_.]+", "-", name.rsplit("/", 1)[-1]).strip("-.")[:64] or "model"


def _prepare(place: Path, options: ConvertOptions) -> _Job:
    source = open_source(place)
    config = read_original_config(source.config)
    _require_reward_model(place, config, options)
    config, warnings = _with_stored_head(config, source.shards)
    table = mapping(config)
    dropped = check_tensors(config, table, source.shards)
    tokenizer = make_tokenizer(place, config)
    warnings = (*tokenizer.warnings, *warnings)
    key = conversion_key(place, options)
    return _Job(source, config, table, tokenizer, dropped, warnings, options, key)


def _require_reward_model(place: Path, config: OriginalConfig, options: ConvertOptions) -> None:
    if not config.reward_model and options.family is None:
        raise CheckpointError(
            f"{place}: config.json names {config.architecture}, a chat model, and no reward model "
            "(InternVLRewardModel): its scores would mean nothing. If the weights were trained as "
            f"a process reward model, name its family: {', '.join(native_files.FAMILIES)} "
            f"(--family {native_files.DEFAULT_FAMILY}, or family=)"
        )


def _with_stored_head(
    config: OriginalConfig, shards: tuple[Shard, ...]
) -> tuple[OriginalConfig, tuple[str, ...]]:
    """Take a head that is stored and is not the embedding for what it is, whatever the flag says.

    A flag that ties head and embedding would drop it, and with it every score.
    """
    if not config.language.tied:
        return config, ()
    homes = {tensor.name: (shard, tensor) for shard in shards for tensor in shard.tensors}
    pair = [homes[name] for name in embedding_names(config.language) if name in homes]
    if len(pair) < 2:
        return config, ()
    (_, embedding), (_, head) = pair
    alike = (embedding.dtype, embedding.shape) == (head.dtype, head.shape)
    if alike and all(a == b for a, b in zip(*(tensor_chunks(*at) for at in pair), strict=True)):
        return config, ()
    warning = "config.json ties the head to the embedding, but another head is stored: it was kept"
    language = config.language.model_copy(update={"tied": False})
    return config.model_copy(update={"language": language}), (warning,)


def _existing(out: Path, key: str) -> Manifest | None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    manifest = check_converted(out, digests=True) if out.is_dir() else None
    if manifest is None or manifest.key != key:
        raise CheckpointError(
            f"{out} exists and is not a conversion of this checkpoint with these options; delete "
            "it or choose another place"
        )
    return manifest


def _convert(job: _Job, out: Path, on_progress: OnProgress) -> Manifest:
    staging = Staging(out, job.key)
    finished = staging.complete()
    if finished is not None:
        staging.publish()
        return finished
    staging.open()
    copied = _copy_weights(job, staging, on_progress)
    records = [shard.target for shard in copied]
    records += [staging.write(*file) for file in _small_files(job, copied).items()]
    manifest = _manifest(job, copied, records)
    manifest.write(staging.directory)
    staging.publish()
    return manifest


def _copy_weights(job: _Job, staging: Staging, on_progress: OnProgress) -> list[CopiedShard]:
    shards = job.source.shards
    names = _target_names(len(shards))
    todo = [
        target_size(shard, job.table)
        for shard, name in zip(shards, names, strict=True)
        if staging.finished(name) is None
    ]
    staging.require_space(sum(todo))
    done, total = 0, job.source.weight_bytes

    def progress(count: int) -> None:
        nonlocal done
        done += count
        on_progress(done, total)

    copied = []
    for shard, name in zip(shards, names, strict=True):
        finished = staging.finished(name)
        if finished is None:
            finished = copy_shard(shard, job.table, staging.directory / name, progress)
            staging.add(finished)
        else:
            progress(shard.size)
        copied.append(finished)
    return copied


def _target_names(count: int) -> list[str]:
    if count == 1:
        return [SINGLE_FILE]
    return [f"model-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)]


def _small_files(job: _Job, copied: list[CopiedShard]) -> dict[str, bytes]:
    """Return all files but the weights; the model's config comes last."""
    config, ids = job.config, dict(job.tokenizer.special_ids)
    word, number = job.tokenizer.begin or (None, None)
    tiles = job.options.max_tiles or (native_files.MAX_TILES if config.dynamic_tiles else 1)
    data: dict[str, dict[str, Any]] = {
        native_files.SCORER_FILE: native_files.scorer_facts(
            config, word, tiles, job.options.family
        ),
        "generation_config.json": native_files.generation_config(ids, number),
        "processor_config.json": native_files.processor_config(config, tiles),
    }
    if len(copied) > 1:
        data[INDEX_FILE] = _index(job, copied)
    data[CONFIG_FILE] = native_files.model_config(config, _dtype(job.source), ids, number)
    texts = {name: json.dumps(entry, ensure_ascii=False, indent=2) for name, entry in data.items()}
    return {**job.tokenizer.files, **{name: f"{text}\n".encode() for name, text in texts.items()}}


def _index(job: _Job, copied: list[CopiedShard]) -> dict[str, Any]:
    homes = {
        part.name: shard.target.name
        for source, shard in zip(job.source.shards, copied, strict=True)
        for _, part in shard_parts(source, job.table)
    }
    size = sum(shard.target.bytes for shard in copied)
    return {"metadata": {"total_size": size}, "weight_map": dict(sorted(homes.items()))}


def _dtype(source: Source) -> str:
    """Return the dtype that most of the weights have."""
    sizes: Counter[str] = Counter()
    for tensor in (tensor for shard in source.shards for tensor in shard.tensors):
        sizes[tensor.dtype] += tensor.stop - tensor.start
    return TORCH_NAMES[sizes.most_common(1)[0][0]]


def _manifest(job: _Job, copied: list[CopiedShard], records: list[FileRecord]) -> Manifest:
    shapes = target_shapes(job.table)
    written = [p.name for shard in job.source.shards for _, p in shard_parts(shard, job.table)]
    if sorted(written) != sorted(shapes):  # check_tensors promises it; a bug must not go unseen
        raise CheckpointError("not every tensor of the native model was written exactly once")
    return Manifest(
        key=job.key,
        architecture=job.config.architecture,
        language_model=job.config.language.kind,
        dtype=_dtype(job.source),
        tensors=len(shapes),
        parameters=sum(map(prod, shapes.values())),
        sources=tuple(shard.source for shard in copied),
        files=tuple(records),
        dropped=job.dropped,
        warnings=job.warnings,
    )
