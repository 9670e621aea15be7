"""Reward models with SmolLM2-135M-Instruct as their language half, in VisualPRM's original layout.

The vision half is small and random. Qwen2 is a Llama with biases on queries, keys and values, so
zeros there make the real weights a checkpoint that the converter knows.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from tests.checkpoints.original_layout import (
    IMAGE_WORDS,
    Shape,
    config,
    weights,
    write_shards,
)

WORDS = (*IMAGE_WORDS, "<s>", "<prm>")
"""What the two families need beyond the real tokenizer: images, and MM-PRM's marker."""


def write_reward_model(checkpoint: Path, directory: Path) -> Path:
    """Write the original layout with the language model and the tokenizer of `checkpoint`."""
    directory.mkdir(parents=True)
    vocab = _write_tokenizer(checkpoint, directory)
    llm = json.loads((checkpoint / "config.json").read_text())
    shape = Shape(
        llm="qwen2",
        hidden=llm["hidden_size"],
        layers=llm["num_hidden_layers"],
        heads=llm["num_attention_heads"],
        kv_heads=llm["num_key_value_heads"],
        intermediate=llm["intermediate_size"],
        max_positions=llm["max_position_embeddings"],
        rope_theta=llm["rope_parameters"]["rope_theta"],
        tied=True,
        dtype=torch.bfloat16,
    )
    assert abs(llm["rms_norm_eps"] - config(shape, vocab)["llm_config"]["rms_norm_eps"]) < 1e-9
    random = weights(replace(shape, layers=0), 1)
    tensors = {k: v for k, v in random.items() if not k.startswith("language_model.")}
    for name, value in load_file(checkpoint / "model.safetensors").items():
        tensors[f"language_model.{name}"] = value
        if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")):
            bias = torch.zeros(len(value), dtype=value.dtype)
            tensors[f"language_model.{name.removesuffix('weight')}bias"] = bias
    table = tensors["language_model.model.embed_tokens.weight"]
    new = table.float().mean(0, keepdim=True).expand(vocab - len(table), -1)
    tensors["language_model.model.embed_tokens.weight"] = torch.cat([table, new.to(table.dtype)])
    (directory / "config.json").write_text(json.dumps(config(shape, vocab)))
    write_shards(directory, tensors, 2)
    return directory


def _write_tokenizer(checkpoint: Path, directory: Path) -> int:
    """Write the tokenizer with `WORDS` added; return how many tokens it has."""
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    tokenizer.add_special_tokens(list(WORDS))
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "Qwen2Tokenizer",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>", *WORDS],
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return int(tokenizer.get_vocab_size(with_added_tokens=True))
