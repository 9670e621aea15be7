"""Which native transformers classes hold a family's weights, and how they are loaded safely."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
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

from vprm_search.errors import CheckpointError, ConfigError, MissingDependencyError
from vprm_search.scoring.engine.attention import TREE_ATTENTION
from vprm_search.scoring.families import PrmFamily, read_json

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
# the head is read in rows, and the vision model is small and sensitive
_NOT_QUANTIZED = ("lm_head", "vision_tower", "multi_modal_projector", "visual")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def check_directory(directory: Path, family: PrmFamily) -> None:
    """Raise `CheckpointError` for a directory that is incomplete, unsafe or of another kind."""
    if not (directory / "config.json").is_file():
        raise CheckpointError(f"{directory} is no checkpoint directory (no config.json)")
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
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(directory), trust_remote_code=False, local_files_only=True
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
