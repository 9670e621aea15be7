"""A complete random checkpoint of every family: weights under the public names, and a tokenizer.

Weights are drawn large, so that P('+') spreads over (0, 1) instead of sitting at one half.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from tests.families.tiny_tokenizers import TOKENIZERS, VOCAB
from tests.scoring.random_internvl import Size, build_model
from vprm_search.scoring.families import FAMILIES
from vprm_search.scoring.pixels import PixelBudget, PreprocessConfig

HIDDEN = 64
TEXT = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}
TILES = PreprocessConfig(tile_size=56, max_tiles=4)
PIXELS = PixelBudget(min_pixels=4 * 28 * 28, max_pixels=16 * 28 * 28)
HEADS = {
    "qwen2.5-math-prm": {"score.0": (HIDDEN, HIDDEN), "score.2": (2, HIDDEN)},
    "skywork-o1-prm": {"v_head.summary": (1, HIDDEN)},
    "ursa-rm": {"score": (1, HIDDEN)},
}
ARCHITECTURES = {
    "qwen2.5-math-prm": "Qwen2ForProcessRewardModel",
    "skywork-o1-prm": "Qwen2ForPrmModel",
    "ursa-rm": "Qwen2ForTokenClassification",
}


def write_family(directory: Path, name: str, seed: int = 0) -> Path:
    """Write a checkpoint of a family without a `vprm.json`."""
    random_model(name, seed).save_pretrained(directory)
    TOKENIZERS[name]().save_pretrained(directory)
    if name in HEADS:
        _add_head(directory, name)
    return directory


def random_model(name: str, seed: int = 0) -> Any:
    """Return a family's random model, without a scoring head."""
    torch.manual_seed(seed)
    return _MODELS[FAMILIES[name].backbone](name, TOKENIZERS[name]())


def write_settings(directory: Path, name: str, **more: Any) -> Path:
    """Write the `vprm.json` that names the family, and the small images of the random models."""
    rule = {"qwen2_5_vl": PIXELS, "internvl": TILES}.get(FAMILIES[name].backbone)
    data = {"version": 1, "family": name, **more}
    if rule is not None:
        data["preprocess"] = json.loads(rule.model_dump_json())
    (directory / "vprm.json").write_text(json.dumps(data), encoding="utf-8")
    return directory


def enlarge(model: torch.nn.Module) -> Any:
    """Draw the weights anew, large enough for scores that differ."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim >= 2:
                scale = 1.0 if "embed_tokens" in name else 1.6 / weight[0].numel() ** 0.5
                weight.normal_(0, scale)
            elif not name.endswith(("norm.weight", "norm1.weight", "norm2.weight", "ln_q.weight")):
                weight.normal_(0, 0.3)
    return model.float().eval()


def _text_model(name: str, tokenizer: Any) -> Any:
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}}
    if name == "rlhflow":
        return enlarge(LlamaForCausalLM(LlamaConfig(**TEXT, **rope)))
    if name == "math-shepherd":
        return enlarge(MistralForCausalLM(MistralConfig(**TEXT, **rope, sliding_window=1024)))
    return enlarge(Qwen2ForCausalLM(Qwen2Config(**TEXT, **rope)))


def _internvl(name: str, tokenizer: Any) -> Any:
    size = Size(vocab=VOCAB, hidden=HIDDEN)
    return build_model(size, tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"), seed=5)


def _qwen_vl(name: str, tokenizer: Any) -> Any:
    config = Qwen2_5_VLConfig(
        text_config={
            **TEXT,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10_000.0,
                "mrope_section": [2, 3, 3],
            },
        },
        vision_config={
            "depth": 4,
            "hidden_size": 32,
            "num_heads": 2,
            "intermediate_size": 64,
            "out_hidden_size": HIDDEN,
            "window_size": 56,
            "fullatt_block_indexes": [1, 3],
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
        tie_word_embeddings=False,
    )
    return enlarge(Qwen2_5_VLForConditionalGeneration(config))


def _add_head(directory: Path, name: str) -> None:
    file = directory / "model.safetensors"
    tensors: dict[str, Tensor] = load_file(file)
    if name == "qwen2.5-math-prm":
        del tensors["lm_head.weight"]  # the public file has none; Skywork's keeps it
    for layer, shape in HEADS[name].items():
        tensors[f"{layer}.weight"] = torch.randn(shape) * 2 / HIDDEN**0.5
        tensors[f"{layer}.bias"] = torch.randn(shape[0]) * 0.1
    save_file(tensors, file, metadata={"format": "pt"})
    config = json.loads((directory / "config.json").read_text())
    config["architectures"] = [ARCHITECTURES[name]]
    (directory / "config.json").write_text(json.dumps(config))


_MODELS = {"text": _text_model, "internvl": _internvl, "qwen2_5_vl": _qwen_vl}
