"""Random-weights InternVL checkpoints with a tokenizer trained on the spot: models for tests.

Weights are drawn large, so that P('+') spreads over (0, 1) instead of sitting at one half.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    InternVLConfig,
    InternVLForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from vprm_search.scoring.families import ScorerFile
from vprm_search.scoring.pixels import PreprocessConfig
from vprm_search.scoring.prompt.layout import PrmLayout

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>"]
CORPUS = [
    "### Question:\nWhat is the area of the triangle?\n\n### Solution Process:\nStep 1: we "
    "compute the base and the height. So the answer is 12 + 3 - 4 = 11.",
    "system\nYou are a careful judge.",
    "user\nassistant\n+",
    "Look at the figure: the red bar is higher than the blue bar, so x = 2 * y / 3.",
] * 10
# the pattern of Qwen2's published tokenizer: words, single digits, punctuation, line breaks
QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Size:
    """The measures of a random model."""

    hidden: int = 64
    layers: int = 3
    heads: int = 4
    kv_heads: int = 2
    intermediate: int = 128
    vision_hidden: int = 32
    vision_layers: int = 2
    vision_heads: int = 2
    tile: int = 56
    patch: int = 14
    vocab: int = 420
    max_positions: int = 4096
    text_model: str = "qwen2"


def qwen_like_tokenizer(vocab: int = 420, extra: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer with Qwen2's pattern, trained on the little corpus."""
    tok = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(pattern=_regex(QWEN_PATTERN), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tok.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tok.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tok.train_from_iterator(CORPUS, trainer)
    if extra:
        tok.add_tokens(list(extra))  # not flagged special, like Qwen's <tool_call>
    return PreTrainedTokenizerFast(
        tokenizer_object=tok, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )


def _regex(pattern: str) -> Any:
    from tokenizers import Regex

    return Regex(pattern)


def build_model(size: Size, image_token_id: int, seed: int = 0) -> InternVLForConditionalGeneration:
    """Return a random model in float32, ready to score."""
    rope = {"rope_type": "default", "rope_theta": 10_000.0}
    config = InternVLConfig(
        vision_config={
            "hidden_size": size.vision_hidden,
            "num_hidden_layers": size.vision_layers,
            "num_attention_heads": size.vision_heads,
            "intermediate_size": 2 * size.vision_hidden,
            "image_size": [size.tile, size.tile],
            "patch_size": [size.patch, size.patch],
            "attention_bias": True,
        },
        text_config={
            "model_type": size.text_model,
            "hidden_size": size.hidden,
            "num_hidden_layers": size.layers,
            "num_attention_heads": size.heads,
            "num_key_value_heads": size.kv_heads,
            "head_dim": size.hidden // size.heads,
            "intermediate_size": size.intermediate,
            "vocab_size": size.vocab,
            "max_position_embeddings": size.max_positions,
            "rope_parameters": rope,
        },
        image_token_id=image_token_id,
        image_seq_length=(size.tile // size.patch) ** 2 // 4,
        downsample_ratio=0.5,
        tie_word_embeddings=False,
    )
    torch.manual_seed(seed)
    model = InternVLForConditionalGeneration(config).float().eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim >= 2 and "position" not in name:
                scale = 1.0 if "embed" in name else 1.6 / weight.shape[-1] ** 0.5
                weight.normal_(0, scale)
            elif not name.endswith("norm.weight"):
                weight.normal_(0, 0.3)
        model.lm_head.weight.normal_(0, 1.5 / size.hidden**0.5)
    return model


def write_checkpoint(
    directory: Path,
    size: Size | None = None,
    *,
    layout: PrmLayout | None = None,
    preprocess: PreprocessConfig | None = None,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Path:
    """Write a complete checkpoint: weights, config, tokenizer and `vprm.json`."""
    size = size or Size()
    tokenizer = qwen_like_tokenizer(size.vocab)
    model = build_model(size, tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"), seed)
    model.to(dtype).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    rule = preprocess or PreprocessConfig(tile_size=size.tile, max_tiles=4)
    ScorerFile(layout=layout or PrmLayout(), preprocess=rule).write(directory)
    config = json.loads((directory / "config.json").read_text())
    assert config["model_type"] == "internvl"
    return directory
