"""Load a process reward model from a directory: safetensors only, no remote code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vprm_search.checkpoints import ensure_native
from vprm_search.errors import CheckpointError, ConfigError
from vprm_search.scoring.engine.backbones import (
    Quantization,
    check_directory,
    load_model,
    load_tokenizer,
    token_limit,
)
from vprm_search.scoring.engine.checkpoint_identity import checkpoint_identity
from vprm_search.scoring.engine.readout import (
    FullVocabularyReadout,
    HeadReadout,
    Readout,
    TokenPairReadout,
)
from vprm_search.scoring.engine.score_heads import read_head
from vprm_search.scoring.families import (
    DEFAULT_FAMILY,
    FAMILIES,
    ImageRule,
    Layout,
    PrmFamily,
    ScorerFile,
    find_family,
    read_scorer_file,
)
from vprm_search.scoring.pixels.patches import PixelBudget
from vprm_search.scoring.pixels.tiles import PreprocessConfig
from vprm_search.scoring.prompt.layout import PrmLayout, PromptBuilder
from vprm_search.scoring.prompt.marker_layout import MarkerBuilder

Builder = PromptBuilder | MarkerBuilder


@dataclass(frozen=True, slots=True)
class PrmCheckpoint:
    """A loaded process reward model with all that scoring needs.

    `identity` names weights, tokenizer, layout, image rule, dtype and way of scoring: equal
    identity, equal scores up to rounding. `max_tokens` is the longest path that is computed
    exactly. `preprocess` is None for models that read text only, and `tokens_per_tile` 0 for all
    but those that read tiles. `device` is where embeddings are looked up. `orm` scores whole
    answers instead of steps (`whole_answer`).
    """

    model: Any
    tokenizer: Any
    builder: Builder
    readout: Readout
    preprocess: ImageRule | None
    tokens_per_tile: int
    max_tokens: int
    device: torch.device
    identity: str
    family: PrmFamily = FAMILIES[DEFAULT_FAMILY]
    orm: bool = False

    @property
    def language_model(self) -> Any:
        """The decoder layers; they take embeddings and give hidden states after the last norm."""
        inner = getattr(self.model, "model", self.model)
        return getattr(inner, "language_model", inner)


def load_checkpoint(
    path: str | Path,
    *,
    revision: str | None = None,
    family: str | None = None,
    device: str = "auto",
    dtype: str | torch.dtype | None = None,
    device_map: str | Mapping[str, Any] | None = None,
    quantization: Quantization | None = None,
    layout: Layout | None = None,
    system_prompt: str | None = None,
    orm: bool = False,
) -> PrmCheckpoint:
    """Load a checkpoint for scoring: a local directory, or a repository `Owner/Name`.

    A repository needs its `revision`, the commit; an original VisualPRM checkpoint is converted on
    first use (`checkpoints.ensure_native`).

    `family` names a row of `families.FAMILIES`; without it the one in `vprm.json` counts, and
    without that VisualPRM. `layout` replaces the one in `vprm.json`, `system_prompt` its system
    message. `orm=True` scores the answer so far as one step.

    `device="auto"` takes CUDA when there is one. Without `dtype` weights are computed in float32 on
    a CPU and in bfloat16 elsewhere, whatever they are stored in. `device_map` ("auto", or a map of
    modules) spreads the layers over several devices and needs accelerate; `quantization` ("8bit",
    "4bit") needs bitsandbytes and a GPU.

    Raises `CheckpointError` for a directory that is missing, incomplete, unsafe or of another
    architecture, `ConfigError` for options that contradict each other or a family whose system
    prompt must be given, and `MissingDependencyError`.
    """
    if device_map is not None and device != "auto":
        raise ConfigError(f"device is {device!r} and there is a device_map; give one of them")
    directory = ensure_native(path, revision=revision)
    settings = _settings(directory, family, layout, system_prompt)
    row = find_family(settings.family)
    check_directory(directory, row)
    place = _device(device)
    kind = _dtype(dtype, place)
    tokenizer = load_tokenizer(directory)
    try:
        builder = _builder(tokenizer, settings.layout)
    except ConfigError as error:
        raise CheckpointError(f"{directory}: {error}") from error
    model = load_model(directory, row, kind, place, device_map, quantization)
    _check_agreement(directory, model.config, builder, settings.preprocess)
    table = model.get_input_embeddings().weight
    return PrmCheckpoint(
        model,
        tokenizer,
        builder,
        _readout(directory, model, row, builder),
        settings.preprocess,
        int(getattr(model.config, "image_seq_length", 0)),
        token_limit(model.config),
        place if table.device.type == "meta" else table.device,
        checkpoint_identity(directory, settings, kind, quantization, orm),
        row,
        orm,
    )


def _settings(
    directory: Path, family: str | None, layout: Layout | None, system_prompt: str | None
) -> ScorerFile:
    """Return the checkpoint's settings with the caller's options in their places."""
    if not (directory / "config.json").is_file():
        raise CheckpointError(f"{directory} is no checkpoint directory (no config.json)")
    settings = read_scorer_file(directory, family)
    chosen = layout or settings.layout
    if system_prompt is not None:
        chosen = type(chosen).model_validate(
            {**chosen.model_dump(), "system_prompt": system_prompt}
        )
    row = find_family(settings.family)
    if row.system_prompt_source and chosen.system_prompt is None:
        raise ConfigError(
            f"models of the family {row.name!r} were trained with a system prompt that this "
            f"package does not hold ({row.system_prompt_source}); pass it as system_prompt=… "
            "(or '' to score without its text)"
        )
    return settings.model_copy(update={"layout": chosen})


def _builder(tokenizer: Any, layout: Layout) -> Builder:
    if isinstance(layout, PrmLayout):
        return PromptBuilder(tokenizer, layout)
    return MarkerBuilder(tokenizer, layout)


def _readout(directory: Path, model: Any, family: PrmFamily, builder: Builder) -> Readout:
    if family.head:
        outputs = 2 if family.readout == "two_classes" else 1
        return HeadReadout(read_head(directory, family.head, outputs))
    head: Tensor = model.get_output_embeddings().weight
    if head.device.type == "meta":
        raise CheckpointError(
            f"{directory}: device_map leaves no room for the output head; give it a device"
        )
    plus, minus = builder.plus_id, builder.minus_id
    if plus is None or minus is None:
        raise ConfigError(f"a model of the family {family.name!r} needs plus_word and minus_word")
    if family.readout == "full_vocabulary":
        return FullVocabularyReadout(head, plus)
    return TokenPairReadout(head, plus, minus)


def _check_agreement(
    directory: Path, config: Any, builder: Builder, rule: ImageRule | None
) -> None:
    text = getattr(config, "text_config", config)
    ids = [token for token in (builder.plus_id, builder.minus_id) if token is not None]
    if ids and max(ids) >= text.vocab_size:
        raise CheckpointError(f"{directory}: the tokenizer is larger than the model's vocabulary")
    if rule is None:
        return
    if builder.image_token_id != config.image_token_id:
        raise CheckpointError(
            f"{directory}: the layout's image token has id {builder.image_token_id}, the model's "
            f"is {config.image_token_id}; set image_token in the layout"
        )
    if isinstance(rule, PixelBudget):
        _check_patches(directory, config.vision_config, rule)
    else:
        _check_tiles(directory, config, rule)


def _check_tiles(directory: Path, config: Any, rule: PreprocessConfig) -> None:
    height, width = config.vision_config.image_size
    side = rule.tile_size
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


def _check_patches(directory: Path, config: Any, rule: PixelBudget) -> None:
    wanted = (config.patch_size, config.spatial_merge_size, config.temporal_patch_size)
    if wanted != (rule.patch_size, rule.merge_size, 2):
        raise CheckpointError(
            f"{directory}: the vision model takes patches, merges and frames of {wanted}, the "
            f"image rule gives {(rule.patch_size, rule.merge_size, 2)}"
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
