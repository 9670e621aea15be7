"""The tiny vision-language model: a plain InternVL of about 0.9 M parameters."""

from __future__ import annotations

import copy
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import (
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLVisionConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from examples.tiny_models.tokenizer import IMAGE_TOKENS
from vprm_search.tiny.sampler import IMAGE_MEAN, IMAGE_STD
from vprm_search.tiny.world import IMAGE_SIZE

PATCH_SIZE = 8
DOWNSAMPLE_RATIO = 0.5
LINEAR_GAIN = 0.7
"""Linear layers start with a standard deviation of gain / sqrt(fan-in)."""


@dataclass(frozen=True, slots=True)
class TinyShape:
    """Sizes of the tiny model; the defaults are those of the shipped policy."""

    width: int = 128
    layers: int = 3
    heads: int = 4
    key_value_heads: int = 2
    vision_width: int = 96
    vision_layers: int = 2
    expansion: int = 3


def build_config(tokenizer: PreTrainedTokenizerFast, shape: TinyShape) -> InternVLConfig:
    """Describe the model as a transformers InternVL configuration."""
    vision = InternVLVisionConfig(
        hidden_size=shape.vision_width,
        num_hidden_layers=shape.vision_layers,
        num_attention_heads=shape.vision_width // 32,
        intermediate_size=shape.vision_width * shape.expansion,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        layer_scale_init_value=0.5,
        attention_bias=True,
        hidden_act="gelu",
    )
    text = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        intermediate_size=shape.width * shape.expansion,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        use_sliding_window=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return InternVLConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=IMAGE_TOKENS,
        downsample_ratio=DOWNSAMPLE_RATIO,
        tie_word_embeddings=True,
    )


def build_model(
    tokenizer: PreTrainedTokenizerFast, shape: TinyShape | None = None, seed: int = 0
) -> InternVLForConditionalGeneration:
    """Build a randomly initialised fp32 model; the global random state is kept."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = InternVLForConditionalGeneration(build_config(tokenizer, shape or TinyShape()))
        _initialise(model)
    model.set_attn_implementation("sdpa")
    return model


@torch.no_grad()
def _initialise(model: InternVLForConditionalGeneration) -> None:
    """Start louder than the library does: a small model needs signal in every layer at once."""
    embeddings = model.model.vision_tower.embeddings
    embeddings.position_embeddings.normal_(0, 0.3)
    embeddings.cls_token.normal_(0, 0.1)
    patch_inputs = 3 * PATCH_SIZE**2
    embeddings.patch_embeddings.projection.weight.normal_(0, patch_inputs**-0.5)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and "embed" not in name:
            parameter.normal_(0, parameter.shape[1] ** -0.5 * LINEAR_GAIN)


def deepen(
    model: InternVLForConditionalGeneration, extra_layers: int, seed: int = 0
) -> InternVLForConditionalGeneration:
    """Return a copy with `extra_layers` decoder layers on top that change nothing at first.

    The new layers' output projections are zero, so the deeper model computes the same function; a
    reward model starts from it and can compare the policy's own prediction with the written token.
    """
    config = copy.deepcopy(model.config)
    old = config.text_config.num_hidden_layers
    config.text_config.num_hidden_layers = old + extra_layers
    config.text_config.layer_types = ["full_attention"] * (old + extra_layers)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        deeper = InternVLForConditionalGeneration(config)
        _initialise(deeper)
    deeper.load_state_dict(model.state_dict(), strict=False)
    with torch.no_grad():
        for layer in deeper.model.language_model.layers[old:]:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    deeper.set_attn_implementation("sdpa")
    return deeper


def count_parameters(model: torch.nn.Module) -> int:
    """Count the parameters, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def save_checkpoint(
    model: InternVLForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    path: Path,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write weights (safetensors), configuration, tokenizer and processor files; all or nothing.

    The folder appears complete or not at all, so a killed run never leaves half a checkpoint.
    `InternVLForConditionalGeneration.from_pretrained(path)` reads it back.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as scratch:
        folder = Path(scratch) / "checkpoint"
        copy.deepcopy(model).to(dtype).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        text = json.dumps(_processor_config(), indent=2) + "\n"
        (folder / "processor_config.json").write_text(text, encoding="utf-8")
        if path.exists():
            shutil.rmtree(path)
        os.replace(folder, path)


def _processor_config() -> dict[str, object]:
    """Describe the preprocessing: one 64x64 tile, ImageNet normalisation."""
    image_processor = {
        "image_processor_type": "GotOcr2ImageProcessor",
        "crop_to_patches": False,
        "min_patches": 1,
        "max_patches": 1,
        "do_resize": True,
        "size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(IMAGE_MEAN),
        "image_std": list(IMAGE_STD),
        "do_convert_rgb": True,
    }
    return {
        "processor_class": "InternVLProcessor",
        "image_seq_length": IMAGE_TOKENS,
        "image_processor": image_processor,
    }
