"""A random InternVL at a given shape, made on the device, and the two published ways to score.

Needs torch and transformers only, of whatever recent version: no tokenizer, no files, no network.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vprm_search.scoring.engine.attention import TREE_ATTENTION
from vprm_search.scoring.engine.readout import TokenPairReadout

PLUS, MINUS, IMAGE = 10, 12, 7
"""Made-up token ids; every other token of a path is drawn from 20 on."""


@dataclass(frozen=True)
class Shape:
    """The measures of a model and of the image it is shown."""

    hidden: int
    layers: int
    intermediate: int
    heads: int
    kv_heads: int
    vocab: int
    vision_hidden: int
    vision_layers: int
    vision_heads: int
    vision_intermediate: int
    tile: int
    tiles: int
    patch: int = 14
    positions: int = 16_384

    @property
    def tile_tokens(self) -> int:
        return (self.tile // self.patch) ** 2 // 4

    @property
    def image_tokens(self) -> int:
        return self.tiles * self.tile_tokens


SHAPES = {
    # VisualPRM-8B-v1.1: a Qwen2 language model behind InternViT-300M at 448 pixels, 13 tiles
    "8b": Shape(3584, 28, 18944, 28, 4, 151_674, 1024, 24, 16, 4096, 448, 13),
    "100m": Shape(768, 12, 2048, 12, 4, 16_384, 384, 12, 6, 768, 448, 3),
    "tiny": Shape(64, 3, 128, 4, 2, 512, 32, 2, 2, 64, 56, 3),
}


def build(shape: Shape, device: torch.device, dtype: torch.dtype) -> Any:
    """Return the model with random weights."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from transformers import InternVLConfig, InternVLForConditionalGeneration

    text = {
        "model_type": "qwen2",
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "intermediate_size": shape.intermediate,
        "vocab_size": shape.vocab,
        "max_position_embeddings": shape.positions,
        "tie_word_embeddings": False,
        "rope_theta": 1e6,
    }
    vision = {
        "hidden_size": shape.vision_hidden,
        "num_hidden_layers": shape.vision_layers,
        "num_attention_heads": shape.vision_heads,
        "intermediate_size": shape.vision_intermediate,
        "image_size": [shape.tile, shape.tile],
        "patch_size": [shape.patch, shape.patch],
        "attention_bias": True,
    }
    config = InternVLConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=IMAGE,
        image_seq_length=shape.tile_tokens,
        downsample_ratio=0.5,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = InternVLForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(before)
    return _redrawn(model.eval().requires_grad_(False))


@torch.no_grad()
def _redrawn(model: Any) -> Any:
    """Draw the weights anew, whatever this version of transformers initialises or leaves out."""
    for name, weight in model.named_parameters():
        if weight.ndim >= 2:
            weight.normal_(0, 1 / weight.shape[-1] ** 0.5 if "embed" not in name else 1.0)
        elif name.endswith("bias") or "lambda" in name:
            weight.fill_(0.0 if name.endswith("bias") else 0.1)
        else:
            weight.fill_(1.0)
    return model


@dataclass
class BareCheckpoint:
    """What `TreeForward` needs of a checkpoint."""

    model: Any
    device: torch.device
    readout: TokenPairReadout = field(init=False)

    def __post_init__(self) -> None:
        self.readout = TokenPairReadout(self.model.lm_head.weight, PLUS, MINUS)

    @property
    def language_model(self) -> Any:
        return self.model.model.language_model


def use_attention(model: Any, *, tree: bool) -> None:
    """Switch the language model between transformers' own attention and ours."""
    name = TREE_ATTENTION if tree else "sdpa"
    for module in model.model.language_model.modules():
        if hasattr(module, "config"):
            module.config._attn_implementation = name


def image_features(model: Any, pixels: Tensor) -> Tensor:
    """Return the embeddings of all tiles, `[image tokens, hidden]`."""
    out = model.get_image_features(pixel_values=pixels)
    out = getattr(out, "pooler_output", out)
    out = torch.cat(list(out)) if isinstance(out, list | tuple) else out
    return out.reshape(-1, out.shape[-1])


@torch.inference_mode()
def one_pass(model: Any, ids: Sequence[int], reads: Sequence[int], pixels: Tensor) -> list[float]:
    """Score the steps read at `reads` in one forward pass, the image in it, as published.

    The published first version does this for every step with one read, the second for a candidate.
    In their favour, the head is computed at the reads only.
    """
    device = pixels.device
    logits = model(
        input_ids=torch.tensor([list(ids)], device=device),
        pixel_values=pixels,
        use_cache=False,
        logits_to_keep=torch.tensor(list(reads), device=device),
    ).logits[0]
    return logits[:, [PLUS, MINUS]].float().softmax(-1)[:, 0].tolist()


def flops_of_rows(model: Any, shape: Shape, rows: int, pairs: int) -> float:
    """Return the arithmetic of `rows` rows that see `pairs` (query, key) pairs in the text model.

    Two operations per weight and row, four per visible pair, head and head number.
    """
    language = model.model.language_model
    weights = sum(p.numel() for n, p in language.named_parameters() if "embed" not in n)
    return 2.0 * weights * rows + 4.0 * shape.layers * shape.hidden * pairs


def flops_of_image(model: Any, shape: Shape) -> float:
    """Return the arithmetic of encoding the image."""
    inner = model.model
    vision = sum(p.numel() for p in inner.vision_tower.parameters())
    projector = sum(p.numel() for p in inner.multi_modal_projector.parameters())
    patches = (shape.tile // shape.patch) ** 2 + 1
    attention = 4.0 * shape.vision_layers * shape.vision_hidden * patches**2
    each = 2.0 * vision * patches + attention + 2.0 * projector * shape.tile_tokens
    return shape.tiles * each
