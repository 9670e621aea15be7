"""Load a native InternVL checkpoint from a local directory: safetensors only, no remote code."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, InternVLForConditionalGeneration
from transformers.utils.logging import (
    disable_progress_bar,
    enable_progress_bar,
    is_progress_bar_enabled,
)

from vprm_search.errors import CheckpointError, ConfigError
from vprm_search.ids import digest
from vprm_search.scoring.layout import PrmLayout, PromptBuilder
from vprm_search.scoring.preprocess import PreprocessConfig
from vprm_search.scoring.readout import Readout, TokenPairReadout
from vprm_search.scoring.scorer_file import read_json, read_scorer_file
from vprm_search.scoring.tree_attention import TREE_ATTENTION

SUPPORTED_TEXT_MODELS = ("qwen2", "qwen3", "llama")
"""Language models whose attention is plain scaled dot products, as tree attention computes it."""

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
_FULL_DIGEST_BYTES = 256 << 20
_SAMPLE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class PrmCheckpoint:
    """A loaded process reward model with all that scoring needs.

    `identity` names weights, tokenizer, layout, image rule and dtype: equal identity, equal scores
    up to rounding. `max_tokens` is the longest path the model's positions cover.
    """

    model: Any
    tokenizer: Any
    builder: PromptBuilder
    readout: Readout
    preprocess: PreprocessConfig
    tokens_per_tile: int
    max_tokens: int
    device: torch.device
    identity: str


def load_checkpoint(
    path: str | Path,
    *,
    device: str = "auto",
    dtype: str | torch.dtype | None = None,
    layout: PrmLayout | None = None,
) -> PrmCheckpoint:
    """Load a checkpoint directory for scoring.

    `device="auto"` takes CUDA when there is one. Without `dtype` weights are computed in float32 on
    a CPU and in bfloat16 elsewhere, whatever they are stored in. `layout` replaces the one in
    `vprm.json`. Raises `CheckpointError` for a directory that is missing, incomplete, unsafe or of
    another architecture.
    """
    directory = _checked_directory(Path(path))
    place = _device(device)
    kind = _dtype(dtype, place)
    settings = read_scorer_file(directory)
    tokenizer = _load_tokenizer(directory)
    try:
        builder = PromptBuilder(tokenizer, layout or settings.layout)
    except ConfigError as error:
        raise CheckpointError(f"{directory}: {error}") from error
    model = _load_model(directory, kind).to(place).eval()
    _check_agreement(directory, model.config, builder, settings.preprocess)
    identity = digest(
        "scorer",
        _weights_digest(directory),
        builder.layout.model_dump_json(),
        settings.preprocess.model_dump_json(),
        str(kind),
    ).hex()
    return PrmCheckpoint(
        model,
        tokenizer,
        builder,
        TokenPairReadout(model.lm_head.weight, builder.plus_id, builder.minus_id),
        settings.preprocess,
        int(model.config.image_seq_length),
        int(model.config.text_config.max_position_embeddings),
        place,
        identity,
    )


def _checked_directory(directory: Path) -> Path:
    if not (directory / "config.json").is_file():
        raise CheckpointError(
            f"{directory} is no checkpoint directory (no config.json); give a local directory, "
            "models are never downloaded"
        )
    config = read_json(directory / "config.json")
    kind = config.get("model_type")
    if kind != "internvl":
        raise CheckpointError(
            f"{directory} holds a {kind!r} model, needed is 'internvl' (transformers' native "
            "class); checkpoints with remote code such as 'internvl_chat' must be converted first"
        )
    text = config.get("text_config", {})
    if text.get("model_type") not in SUPPORTED_TEXT_MODELS:
        raise CheckpointError(
            f"{directory}: language model {text.get('model_type')!r} is not one of "
            f"{', '.join(SUPPORTED_TEXT_MODELS)}, for which tree attention is known to be exact"
        )
    if "sliding_attention" in (text.get("layer_types") or ()):
        raise CheckpointError(f"{directory}: layers with a sliding window are not supported")
    if not any(directory.glob("*.safetensors")):
        raise CheckpointError(f"{directory} holds no *.safetensors weights; other kinds are unsafe")
    if not any((directory / name).is_file() for name in _TOKENIZER_FILES):
        # transformers would silently make an empty tokenizer
        raise CheckpointError(f"{directory} holds no tokenizer ({', '.join(_TOKENIZER_FILES)})")
    return directory


def _load_tokenizer(directory: Path) -> Any:
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(directory), trust_remote_code=False, local_files_only=True
        )
    except Exception as error:  # the tokenizers library raises bare exceptions
        raise CheckpointError(f"{directory}: the tokenizer cannot be loaded: {error}") from error
    if not tokenizer("a", add_special_tokens=False)["input_ids"]:
        raise CheckpointError(f"{directory}: the tokenizer is empty (it encodes 'a' to nothing)")
    return tokenizer


def _load_model(directory: Path, dtype: torch.dtype) -> Any:
    bars = is_progress_bar_enabled()
    disable_progress_bar()
    try:
        model, info = InternVLForConditionalGeneration.from_pretrained(
            str(directory),
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            attn_implementation={"text_config": TREE_ATTENTION, "vision_config": "sdpa"},
        )
    except Exception as error:  # a damaged file can raise nearly anything
        raise CheckpointError(f"{directory}: the weights cannot be loaded: {error}") from error
    finally:
        if bars:
            enable_progress_bar()
    problems = {name: sorted(map(str, info[name])) for name in info if info[name]}
    if problems:
        raise CheckpointError(f"{directory}: the weights do not fit the config: {problems}")
    return model


def _check_agreement(
    directory: Path, config: Any, builder: PromptBuilder, preprocess: PreprocessConfig
) -> None:
    if builder.image_token_id != config.image_token_id:
        raise CheckpointError(
            f"{directory}: the layout's image token has id {builder.image_token_id}, the model's "
            f"is {config.image_token_id}; set image_token in the layout"
        )
    if max(builder.plus_id, builder.minus_id) >= config.text_config.vocab_size:
        raise CheckpointError(f"{directory}: the tokenizer is larger than the model's vocabulary")
    height, width = config.vision_config.image_size
    side = preprocess.tile_size
    if (height, width) != (side, side):
        raise CheckpointError(
            f"{directory}: tiles are {side} pixels wide, the vision model takes {width}x{height}"
        )
    patch = config.vision_config.patch_size[0]
    tokens = int((side // patch) ** 2 * config.downsample_ratio**2)
    if tokens != config.image_seq_length:
        raise CheckpointError(
            f"{directory}: a tile gives {tokens} tokens, config says {config.image_seq_length}"
        )


def _device(name: str) -> torch.device:
    if name != "auto":
        return torch.device(name)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _dtype(name: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    if isinstance(name, torch.dtype):
        return name
    if name is None:
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise ConfigError(f"{name!r} is no torch dtype; use 'float32', 'bfloat16' or 'float16'")
    return found


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
