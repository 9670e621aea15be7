"""The conversion: an original InternVL checkpoint becomes a native one, without its code."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from vprm_search.checkpoints import native_config
from vprm_search.checkpoints.copy_shard import (
    CopiedShard,
    copy_shard,
    shard_parts,
    target_size,
)
from vprm_search.checkpoints.manifest import FileRecord, Manifest, check_converted
from vprm_search.checkpoints.mapping import check_tensors, mapping, target_shapes
from vprm_search.checkpoints.original_config import OriginalConfig, read_original_config
from vprm_search.checkpoints.safetensors_file import TORCH_NAMES
from vprm_search.checkpoints.scorer_facts import MAX_TILES, SCORER_FILE, scorer_facts
from vprm_search.checkpoints.source import (
    CONFIG_FILE,
    INDEX_FILE,
    SINGLE_FILE,
    Source,
    fingerprint,
    open_source,
)
from vprm_search.checkpoints.staging import Staging, exclusive
from vprm_search.checkpoints.tokenizer_files import TokenizerFiles, make_tokenizer
from vprm_search.errors import CheckpointError, ConfigError
from vprm_search.ids import digest

CONVERTER_VERSION = 1
"""Goes up when the same source would be converted into other files."""

OnProgress = Callable[[int, int], None]
"""Called with the bytes of weights done and in all."""


@dataclass(frozen=True, slots=True)
class ConvertOptions:
    """`max_tiles` of one image; `family` of another process reward model than VisualPRM.

    None for `max_tiles`: 12, as VisualPRM's model card has it (1 if the checkpoint does not tile).
    """

    max_tiles: int | None = None
    family: str | None = None

    def __post_init__(self) -> None:
        if self.max_tiles is not None and self.max_tiles < 1:
            raise ConfigError(f"max_tiles is {self.max_tiles}; at least 1 is needed")

    @property
    def key(self) -> str:
        """The options and the converter's version as a text."""
        return json.dumps([CONVERTER_VERSION, self.max_tiles, self.family])


@dataclass(frozen=True, slots=True)
class _Job:
    """A checked source with all that will be written."""

    source: Source
    config: OriginalConfig
    tokenizer: TokenizerFiles
    dropped: tuple[str, ...]
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
    conversion is verified, digests included, and left as it is. Raises `CheckpointError` for a
    source that cannot be converted, an `out` that is in the way, or too little space.
    """
    place, target = Path(source), Path(out).absolute()
    chosen = options or ConvertOptions()
    if target.resolve().is_relative_to(place.resolve()):
        raise CheckpointError(f"{target} lies in the source {place}; choose another place")
    job = _prepare(place, chosen)
    with exclusive(target):
        existing = _existing(target, job.key)
        return existing or _convert(job, target, on_progress or (lambda done, total: None))


def conversion_key(source: Path, options: ConvertOptions) -> str:
    """Return a name for what a conversion of `source` gives, 64 hex digits."""
    return digest("conversion", fingerprint(source), options.key).hex()


def _prepare(place: Path, options: ConvertOptions) -> _Job:
    source = open_source(place)
    config = read_original_config(source.config)
    dropped = check_tensors(config, source.shards)
    tokenizer = make_tokenizer(place, config)
    return _Job(source, config, tokenizer, dropped, options, conversion_key(place, options))


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
    table = mapping(job.config)
    shards = job.source.shards
    names = _target_names(len(shards))
    todo = [
        target_size(shard, table)
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
            finished = copy_shard(shard, table, staging.directory / name, progress)
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
    config, ids, begin = job.config, dict(job.tokenizer.special_ids), job.tokenizer.begin
    number = None if begin is None else begin.id
    tiles = job.options.max_tiles or (MAX_TILES if config.dynamic_tiles else 1)
    word = None if begin is None else begin.content
    data: dict[str, dict[str, Any]] = {
        SCORER_FILE: scorer_facts(config, word, tiles, job.options.family),
        "generation_config.json": native_config.generation_config(ids, number),
        "processor_config.json": native_config.processor_config(config, tiles),
    }
    if len(copied) > 1:
        data[INDEX_FILE] = _index(job, copied)
    data[CONFIG_FILE] = native_config.model_config(config, _dtype(job.source), ids, number)
    texts = {name: json.dumps(entry, ensure_ascii=False, indent=2) for name, entry in data.items()}
    return {**job.tokenizer.files, **{name: f"{text}\n".encode() for name, text in texts.items()}}


def _index(job: _Job, copied: list[CopiedShard]) -> dict[str, Any]:
    table = mapping(job.config)
    homes = {
        part.name: shard.target.name
        for source, shard in zip(job.source.shards, copied, strict=True)
        for _, part in shard_parts(source, table)
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
    shapes = target_shapes(job.config)
    table = mapping(job.config)
    written = [p.name for shard in job.source.shards for _, p in shard_parts(shard, table)]
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
        warnings=job.tokenizer.warnings,
    )
