"""Load a process reward model from a directory: safetensors only, no remote code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import (
    AutoTokenizer,
    BitsAndBytesConfig,
    InternVLForConditionalGeneration,
    LlamaForCausalLM,
    LlamaModel,
    MistralForCausalLM,
    MistralModel,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2ForCausalLM,
    Qwen2Model,
    Qwen3ForCausalLM,
    Qwen3Model,
)
from transformers.utils.logging import (
    disable_progress_bar,
    enable_progress_bar,
    get_verbosity,
    is_progress_bar_enabled,
    set_verbosity,
    set_verbosity_error,
)

from vprm_search.checkpoints import ensure_native
from vprm_search.errors import CheckpointError, ConfigError, MissingDependencyError
from vprm_search.records import read_json
from vprm_search.scoring.engine.attention import TREE_ATTENTION
from vprm_search.scoring.engine.readout import (
    FullVocabularyReadout,
    HeadReadout,
    Readout,
    TokenPairReadout,
    read_head,
)
from vprm_search.scoring.families import (
    DEFAULT_FAMILY,
    FAMILIES,
    ImageRule,
    Layout,
    PrmFamily,
    ScorerFile,
    find_family,
    read_scorer_file,
    scorer_identity,
)
from vprm_search.scoring.pixels import PixelBudget, PreprocessConfig
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

    def with_tiles(self, most: int) -> PrmCheckpoint:
        """Return the checkpoint with at most so many tiles of a picture, under a name of its own.

        Raises `ConfigError` if it reads no tiles.
        """
        if not isinstance(self.preprocess, PreprocessConfig):
            raise ConfigError(f"{self.family.name} reads no tiles: their number cannot be chosen")
        if most == self.preprocess.max_tiles:
            return self
        rule = PreprocessConfig(**{**self.preprocess.model_dump(), "max_tiles": most})
        return replace(self, preprocess=rule, identity=f"{self.identity}/tiles-{most}")

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
    """Load a checkpoint for scoring; an original VisualPRM one is converted on first use.

    Args:
        path, revision, family, device, dtype, device_map, quantization, layout, system_prompt, orm:
            see `TransformersScorer.from_pretrained`.

    Raises:
        CheckpointError: the directory is missing, incomplete, unsafe or of another architecture.
        ConfigError: options contradict each other, the device cannot be used, or the family's
            system prompt must be given.
        MissingDependencyError: accelerate or bitsandbytes is needed and not installed.
    """
    if device_map is not None and device != "auto":
        raise ConfigError(f"device is {device!r} and there is a device_map; give one of them")
    directory = ensure_native(path, revision=revision, family=family)
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
        scorer_identity(directory, settings, str(kind), quantization=quantization, orm=orm),
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
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:  # an unknown name, a device that is not there, and a build of torch without its kind
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConfigError(
            f"device {name!r} cannot be used here; give 'auto', 'cpu' or a GPU that "
            f"`vprm-search doctor` lists (torch: {reason})"
        ) from error


def _dtype(name: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    if isinstance(name, torch.dtype):
        return name
    if name is None:
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise ConfigError(f"{name!r} is no torch dtype; use 'float32', 'bfloat16' or 'float16'")
    return found


Quantization = Literal["8bit", "4bit"]

# Language models whose attention is plain scaled dot products, as tree attention computes it:
# without a head, and with one word per row of it.
_TEXT_MODELS: Mapping[str, tuple[Any, Any]] = {
    "qwen2": (Qwen2Model, Qwen2ForCausalLM),
    "qwen3": (Qwen3Model, Qwen3ForCausalLM),
    "llama": (LlamaModel, LlamaForCausalLM),
    "mistral": (MistralModel, MistralForCausalLM),
}
_VISION_MODELS: Mapping[str, Any] = {
    "internvl": InternVLForConditionalGeneration,
    "qwen2_5_vl": Qwen2_5_VLForConditionalGeneration,
}
_VISION_TEXT_MODELS = {
    "internvl": ("qwen2", "qwen3", "llama"),
    "qwen2_5_vl": ("qwen2_5_vl_text",),
}
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
# the head is read in rows, and the vision model is small and sensitive
_NOT_QUANTIZED = ("lm_head", "vision_tower", "multi_modal_projector", "visual")


def check_directory(directory: Path, family: PrmFamily) -> None:
    """Raise `CheckpointError` for a directory that is incomplete, unsafe or of another kind."""
    config = read_json(directory / "config.json")
    _check_kind(directory, config, family)
    text = config.get("text_config", config)
    if family.backbone == "internvl" and "sliding_attention" in (text.get("layer_types") or ()):
        raise CheckpointError(f"{directory}: layers with a sliding window are not supported")
    if not any(directory.glob("*.safetensors")):
        raise CheckpointError(f"{directory} holds no *.safetensors weights; other kinds are unsafe")
    if not any((directory / name).is_file() for name in _TOKENIZER_FILES):
        # transformers would silently make an empty tokenizer
        raise CheckpointError(f"{directory} holds no tokenizer ({', '.join(_TOKENIZER_FILES)})")


def _check_kind(directory: Path, config: dict[str, Any], family: PrmFamily) -> None:
    kind = config.get("model_type")
    known = tuple(_TEXT_MODELS) if family.backbone == "text" else (family.backbone,)
    if kind not in known:
        why = f" ({family.note})" if family.note and family.backbone == "text" else ""
        raise CheckpointError(
            f"{directory} holds a {kind!r} model, needed for the family {family.name!r} is "
            f"{' or '.join(map(repr, known))} (transformers' native classes){why}; give the family "
            "it belongs to, as family=… or in its vprm.json"
        )
    if family.backbone == "text":
        return
    # older Qwen2.5-VL files have no part for the text model: it is Qwen2.5-VL's own
    default = "qwen2_5_vl_text" if family.backbone == "qwen2_5_vl" else None
    text = config.get("text_config", {}).get("model_type", default)
    supported = _VISION_TEXT_MODELS[family.backbone]
    if text not in supported:
        raise CheckpointError(
            f"{directory}: language model {text!r} is not one of {', '.join(supported)}, for "
            "which tree attention is known to be exact"
        )


def load_tokenizer(directory: Path) -> Any:
    """Load a tokenizer. Raises `CheckpointError` when it is damaged or empty."""
    # without this answer transformers asks whether every large tokenizer is a faulty one of Mistral
    # if the config does not say which version of transformers wrote it
    kind = read_json(directory / "config.json").get("model_type")
    answer = {} if kind == "mistral" else {"fix_mistral_regex": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(directory), trust_remote_code=False, local_files_only=True, **answer
        )
    except Exception as error:  # the tokenizers library raises bare exceptions
        raise CheckpointError(f"{directory}: the tokenizer cannot be loaded: {error}") from error
    if not tokenizer("a", add_special_tokens=False)["input_ids"]:
        raise CheckpointError(f"{directory}: the tokenizer is empty (it encodes 'a' to nothing)")
    return tokenizer


def load_model(
    directory: Path,
    family: PrmFamily,
    dtype: torch.dtype,
    device: torch.device,
    device_map: str | Mapping[str, Any] | None = None,
    quantization: Quantization | None = None,
) -> Any:
    """Load the weights, ready to compute; on `device` unless there is a `device_map`.

    Raises `CheckpointError` when weights are missing, damaged or too many, and
    `MissingDependencyError` without the libraries that `device_map` and `quantization` need.
    """
    options = _placement(dtype, device, device_map, quantization)
    bars, verbosity = is_progress_bar_enabled(), get_verbosity()
    disable_progress_bar()
    set_verbosity_error()  # what it would report about tensors is judged below
    try:
        model, info = _model_class(directory, family).from_pretrained(
            str(directory),
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            attn_implementation=_attention(family),
            **options,
        )
    except Exception as error:  # a damaged file can raise nearly anything
        raise CheckpointError(f"{directory}: the weights cannot be loaded: {error}") from error
    finally:
        set_verbosity(verbosity)
        if bars:
            enable_progress_bar()
    problems = {name: sorted(map(str, info[name])) for name in info if info[name]}
    if family.head:
        problems["unexpected_keys"] = _not_of_a_head(problems.get("unexpected_keys", []), family)
    problems = {name: found for name, found in problems.items() if found}
    if problems:
        raise CheckpointError(f"{directory}: the weights do not fit the config: {problems}")
    return (model if options else model.to(device)).eval()


def _not_of_a_head(names: list[str], family: PrmFamily) -> list[str]:
    """Leave out the scoring head, which is read apart, and the unused head for words."""
    return [n for n in names if not n.startswith(f"{family.head}.") and n != "lm_head.weight"]


def _model_class(directory: Path, family: PrmFamily) -> Any:
    if family.backbone != "text":
        return _VISION_MODELS[family.backbone]
    bare, with_words = _TEXT_MODELS[read_json(directory / "config.json")["model_type"]]
    return bare if family.head else with_words


def _attention(family: PrmFamily) -> str | dict[str, str]:
    if family.backbone == "text":
        return TREE_ATTENTION
    return {"text_config": TREE_ATTENTION, "vision_config": "sdpa"}


def _placement(
    dtype: torch.dtype,
    device: torch.device,
    device_map: str | Mapping[str, Any] | None,
    quantization: Quantization | None,
) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if device_map is not None or quantization is not None:
        _require("accelerate")
        options["device_map"] = {"": device} if device_map is None else device_map
    if quantization is not None:
        if quantization not in ("8bit", "4bit"):
            raise ConfigError(f"quantization is {quantization!r}; use '8bit' or '4bit'")
        _require("bitsandbytes")
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_8bit=quantization == "8bit",
            load_in_4bit=quantization == "4bit",
            bnb_4bit_compute_dtype=dtype,
            bnb_4bit_quant_type="nf4",
            llm_int8_skip_modules=list(_NOT_QUANTIZED),
        )
    return options


def _require(package: str) -> None:
    if find_spec(package) is None:
        raise MissingDependencyError(package, "gpu")


def token_limit(config: Any) -> int:
    """Return the longest path that is computed exactly: the positions, or a sliding window."""
    text = getattr(config, "text_config", config)
    limit = int(text.max_position_embeddings)
    kinds = getattr(text, "layer_types", None)
    window = getattr(text, "sliding_window", None)
    slides = "sliding_attention" in kinds if kinds else bool(window)
    return min(limit, int(window)) if slides and window else limit
