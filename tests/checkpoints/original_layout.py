"""Writes small random checkpoints in the original layouts: names, shapes and files as published.

Facts from OpenGVLab/InternVL; nothing of `vprm_search.checkpoints` is used. Weights are drawn
large, so that P('+') spreads over (0, 1).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

INTERNLM2_TAIL = ("<|plugin|>", "<|interpreter|>", "<|action_end|>", "<|action_start|>")
INTERNLM2_TAIL += ("<|im_end|>", "<|im_start|>")
IMAGE_WORDS = ("<img>", "</img>", "<IMG_CONTEXT>", "<quad>", "</quad>", "<ref>", "</ref>")
IMAGE_WORDS += ("<box>", "</box>")
QWEN2_WORDS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>")
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CORPUS = [
    "### Question:\nWhat is the area of the triangle?\n\n### Solution Process:\nStep 1: we "
    "compute the base and the height. So the answer is 12 + 3 - 4 = 11.",
    "system\n你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位",
    'user\nassistant\n+\n-  two  blanks, a tab\t and "quotes" (x * y) / 3',
] * 10
# protobuf numbers of the kinds of pieces
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6


@dataclass(frozen=True)
class Shape:
    """The measures of a random model and the variants of its parts."""

    llm: str = "internlm2"
    hidden: int = 48
    layers: int = 2
    heads: int = 6
    kv_heads: int = 2
    intermediate: int = 64
    bias: bool = False
    max_positions: int = 2048
    rope_theta: float = 1_000_000.0
    rope_scaling: dict[str, Any] | None = None
    tied: bool = False
    vision_hidden: int = 32
    vision_layers: int = 2
    vision_heads: int = 2
    tile: int = 56
    patch: int = 14
    norm_type: str = "layer_norm"
    qk_norm: bool = False
    qkv_bias: bool = True
    architecture: str = "InternVLRewardModel"
    dtype: torch.dtype = torch.float32


VERSIONS = {
    "v1.0": Shape(rope_scaling={"type": "dynamic", "factor": 2.0}),
    "v1.1": Shape(
        llm="qwen2",
        hidden=64,
        heads=4,
        rope_scaling={"rope_type": "dynamic", "type": "dynamic", "factor": 2.0},
    ),
    "v1.0-linear-biased-6b-vit": Shape(
        rope_scaling={"type": "linear", "factor": 4.0},
        bias=True,
        kv_heads=3,
        norm_type="rms_norm",
        qk_norm=True,
        qkv_bias=False,
        dtype=torch.float16,
    ),
    "v1.1-tied": Shape(
        llm="qwen2", hidden=64, heads=4, kv_heads=4, tied=True, rope_theta=1e4, dtype=torch.bfloat16
    ),
}


def config(shape: Shape, vocab: int) -> dict[str, Any]:
    """Return `config.json` as the original code writes it."""
    llm: dict[str, Any] = {
        "architectures": [
            "InternLM2ForCausalLM" if shape.llm == "internlm2" else "Qwen2ForCausalLM"
        ],
        "model_type": shape.llm,
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "intermediate_size": shape.intermediate,
        "vocab_size": vocab,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": shape.rope_theta,
        "rope_scaling": shape.rope_scaling,
        "max_position_embeddings": shape.max_positions,
        "tie_word_embeddings": shape.tied,
    }
    if shape.llm == "internlm2":
        auto = {"AutoModelForCausalLM": "modeling_internlm2.InternLM2ForCausalLM"}
        llm |= {"bias": shape.bias, "attn_implementation": "flash_attention_2", "auto_map": auto}
    else:
        llm |= {"use_sliding_window": False, "sliding_window": 131072, "max_window_layers": 70}
    return {
        "architectures": [shape.architecture],
        "model_type": "internvl_chat",
        "auto_map": {"AutoModel": f"modeling_internvl_chat.{shape.architecture}"},
        "downsample_ratio": 0.5,
        "dynamic_image_size": True,
        "force_image_size": shape.tile,
        "llm_config": llm,
        "max_dynamic_patch": 12,
        "min_dynamic_patch": 1,
        "pad2square": False,
        "ps_version": "v2",
        "select_layer": -1,
        "template": "internvl2_5",
        "torch_dtype": "bfloat16",
        "use_backbone_lora": 0,
        "use_llm_lora": 0,
        "use_thumbnail": True,
        "vision_config": {
            "architectures": ["InternVisionModel"],
            "model_type": "intern_vit_6b",
            "hidden_size": shape.vision_hidden,
            "num_hidden_layers": shape.vision_layers,
            "num_attention_heads": shape.vision_heads,
            "intermediate_size": 2 * shape.vision_hidden,
            "image_size": shape.tile,
            "patch_size": shape.patch,
            "qkv_bias": shape.qkv_bias,
            "qk_normalization": shape.qk_norm,
            "norm_type": shape.norm_type,
            "layer_norm_eps": 1e-6,
            "hidden_act": "gelu",
            "drop_path_rate": 0.1,
            "use_flash_attn": True,
        },
    }


def tensor_shapes(shape: Shape, vocab: int) -> dict[str, tuple[int, ...]]:
    """Return the original names and shapes of all tensors."""
    width, patches = shape.vision_hidden, (shape.tile // shape.patch) ** 2
    found: dict[str, tuple[int, ...]] = {
        "vision_model.embeddings.class_embedding": (1, 1, width),
        "vision_model.embeddings.patch_embedding.weight": (width, 3, shape.patch, shape.patch),
        "vision_model.embeddings.patch_embedding.bias": (width,),
        "vision_model.embeddings.position_embedding": (1, patches + 1, width),
        "mlp1.0.weight": (4 * width,),
        "mlp1.0.bias": (4 * width,),
        "mlp1.1.weight": (shape.hidden, 4 * width),
        "mlp1.1.bias": (shape.hidden,),
        "mlp1.3.weight": (shape.hidden, shape.hidden),
        "mlp1.3.bias": (shape.hidden,),
    }
    for n in range(shape.vision_layers):
        at = f"vision_model.encoder.layers.{n}"
        found |= {f"{at}.ls1": (width,), f"{at}.ls2": (width,)}
        found |= {f"{at}.attn.qkv.weight": (3 * width, width)}
        found |= {f"{at}.attn.proj.weight": (width, width), f"{at}.attn.proj.bias": (width,)}
        found |= {f"{at}.mlp.fc1.weight": (2 * width, width), f"{at}.mlp.fc1.bias": (2 * width,)}
        found |= {f"{at}.mlp.fc2.weight": (width, 2 * width), f"{at}.mlp.fc2.bias": (width,)}
        found |= {f"{at}.norm1.weight": (width,), f"{at}.norm2.weight": (width,)}
        if shape.norm_type == "layer_norm":
            found |= {f"{at}.norm1.bias": (width,), f"{at}.norm2.bias": (width,)}
        if shape.qkv_bias:
            found[f"{at}.attn.qkv.bias"] = (3 * width,)
        if shape.qk_norm:
            found |= {f"{at}.attn.q_norm.weight": (width,), f"{at}.attn.k_norm.weight": (width,)}
    return found | _language_shapes(shape, vocab)


def _language_shapes(shape: Shape, vocab: int) -> dict[str, tuple[int, ...]]:
    hidden, inner = shape.hidden, shape.intermediate
    head = hidden // shape.heads
    top = "language_model.model"
    lm2 = shape.llm == "internlm2"
    found: dict[str, tuple[int, ...]] = {
        f"{top}.{'tok_embeddings' if lm2 else 'embed_tokens'}.weight": (vocab, hidden),
        f"{top}.norm.weight": (hidden,),
        f"language_model.{'output' if lm2 else 'lm_head'}.weight": (vocab, hidden),
    }
    for n in range(shape.layers):
        at = f"{top}.layers.{n}"
        if lm2:
            rows = (shape.heads + 2 * shape.kv_heads) * head
            found |= {f"{at}.attention.wqkv.weight": (rows, hidden)}
            found |= {f"{at}.attention.wo.weight": (hidden, hidden)}
            if shape.bias:
                found |= {
                    f"{at}.attention.wqkv.bias": (rows,),
                    f"{at}.attention.wo.bias": (hidden,),
                }
            found |= {f"{at}.feed_forward.w1.weight": (inner, hidden)}
            found |= {f"{at}.feed_forward.w3.weight": (inner, hidden)}
            found |= {f"{at}.feed_forward.w2.weight": (hidden, inner)}
            found |= {f"{at}.attention_norm.weight": (hidden,), f"{at}.ffn_norm.weight": (hidden,)}
            continue
        for name, out in (
            ("q", hidden),
            ("k", shape.kv_heads * head),
            ("v", shape.kv_heads * head),
        ):
            found[f"{at}.self_attn.{name}_proj.weight"] = (out, hidden)
            found[f"{at}.self_attn.{name}_proj.bias"] = (out,)
        found[f"{at}.self_attn.o_proj.weight"] = (hidden, hidden)
        found[f"{at}.mlp.gate_proj.weight"] = found[f"{at}.mlp.up_proj.weight"] = (inner, hidden)
        found[f"{at}.mlp.down_proj.weight"] = (hidden, inner)
        found[f"{at}.input_layernorm.weight"] = (hidden,)
        found[f"{at}.post_attention_layernorm.weight"] = (hidden,)
    return found


def weights(shape: Shape, vocab: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return random weights by original name."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, size in tensor_shapes(shape, vocab).items():
        values = torch.randn(size, generator=generator)
        if "norm" in name or name == "mlp1.0.weight":
            values = 1 + 0.2 * values if name.endswith("weight") else 0.2 * values
        elif name.endswith(("output.weight", "lm_head.weight")) or (
            shape.tied and name.endswith(("embed_tokens.weight", "tok_embeddings.weight"))
        ):
            values *= 1.5 / shape.hidden**0.5
        elif len(size) > 1 and "embed" not in name:
            values *= 1.4 / size[-1] ** 0.5
        elif len(size) == 1:
            values *= 0.3
        found[name] = values.to(shape.dtype)
    if shape.tied:
        del found[f"language_model.{'output' if shape.llm == 'internlm2' else 'lm_head'}.weight"]
    return found


def write_original(
    directory: Path, shape: Shape, *, shards: int = 2, seed: int = 0, user_defined: bool = False
) -> Path:
    """Write a complete original checkpoint with its tokenizer files and (unused) remote code."""
    directory.mkdir(parents=True)
    if shape.llm == "internlm2":
        vocab = write_internlm2_tokenizer(directory, user_defined=user_defined)
    else:
        vocab = write_qwen2_tokenizer(directory)
    (directory / "config.json").write_text(json.dumps(config(shape, vocab)))
    write_shards(directory, weights(shape, vocab, seed), shards)
    poison = "raise SystemExit('remote code was run')\n"
    (directory / "modeling_internvl_chat.py").write_text(poison)
    (directory / "tokenization_internlm2.py").write_text(poison)
    return directory


def write_shards(directory: Path, tensors: dict[str, torch.Tensor], shards: int) -> None:
    """Write one file, or several with an index, tensors dealt out in turn."""
    if shards == 1:
        save_file(tensors, directory / "model.safetensors", {"format": "pt"})
        return
    homes = {}
    for number in range(shards):
        name = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        mine = dict(list(tensors.items())[number::shards])
        save_file(mine, directory / name, {"format": "pt"})
        homes |= dict.fromkeys(mine, name)
    index = {"metadata": {"total_size": 0}, "weight_map": homes}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


# --- tokenizers --------------------------------------------------------------------------------


def sentencepiece_pieces(*, user_defined: bool = False) -> list[tuple[str, float, int]]:
    """Return `(text, score, kind)` of a BPE model: controls, bytes, merged pieces, characters."""
    tok = Tokenizer(models.BPE())
    tok.normalizer = normalizers.Replace(" ", "\u2581")
    tok.pre_tokenizer = pre_tokenizers.Split("\n", "removed")
    trainer = trainers.BpeTrainer(vocab_size=420, show_progress=False)
    tok.train_from_iterator(CORPUS, trainer)
    model = json.loads(tok.to_str())["model"]
    joined = ["".join(pair) for pair in model["merges"]]
    characters = sorted(set(model["vocab"]) - set(joined))
    characters += ["\x00"]  # InternLM2's vocabulary has it
    pieces = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL)]
    pieces += [(f"<0x{n:02X}>", 0.0, BYTE) for n in range(256)]
    kind = USER_DEFINED if user_defined else NORMAL
    characters += ["\u2581" * 4] if user_defined else []
    unused = [f"[UNUSED_TOKEN_{n}]" for n in range(140, 140 + len(INTERNLM2_TAIL) + 2)]
    scored = list(dict.fromkeys([*joined, *characters, *unused]))
    pieces += [
        (text, -float(rank), kind if text in unused else NORMAL) for rank, text in enumerate(scored)
    ]
    return pieces


def write_internlm2_tokenizer(
    directory: Path, *, user_defined: bool = False, dummy_prefix: bool = False
) -> int:
    """Write tokenizer.model, tokenizer_config.json and added_tokens.json; return the rows."""
    pieces = sentencepiece_pieces(user_defined=user_defined)
    model = sentencepiece_file(pieces, dummy_prefix=dummy_prefix)
    (directory / "tokenizer.model").write_bytes(model)
    size = len(pieces)
    words = dict(enumerate(("<unk>", "<s>", "</s>")))
    words |= dict(enumerate(INTERNLM2_TAIL, size - len(INTERNLM2_TAIL)))
    words |= dict(enumerate(IMAGE_WORDS, size))
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    decoder = {str(n): {"content": word, **flags, "special": True} for n, word in words.items()}
    settings = {
        "add_bos_token": True,
        "add_eos_token": False,
        "added_tokens_decoder": decoder,
        "additional_special_tokens": [*INTERNLM2_TAIL, *IMAGE_WORDS],
        "auto_map": {"AutoTokenizer": ["tokenization_internlm2.InternLM2Tokenizer", None]},
        "bos_token": "<s>",
        "clean_up_tokenization_spaces": False,
        "eos_token": "</s>",
        "model_max_length": 8192,
        "pad_token": "</s>",
        "tokenizer_class": "InternLM2Tokenizer",
        "unk_token": "<unk>",
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    added = dict(zip(IMAGE_WORDS, range(size, size + len(IMAGE_WORDS)), strict=True))
    (directory / "added_tokens.json").write_text(json.dumps(added))
    return size + len(IMAGE_WORDS)


def sentencepiece_file(
    pieces: Sequence[tuple[str, float, int]],
    *,
    dummy_prefix: bool = False,
    extra_blanks: bool = False,
    model_type: int = 2,
    charsmap: bytes = b"",
) -> bytes:
    """Return the bytes of a sentencepiece model, by the published message definitions."""
    out = b""
    for text, score, kind in pieces:
        body = _bytes_field(1, text.encode()) + b"\x15" + struct.pack("<f", score)
        out += _bytes_field(1, body + _number_field(3, kind))
    trainer = _number_field(3, model_type) + _number_field(4, len(pieces)) + _number_field(35, 1)
    normalizer = _bytes_field(1, b"identity") + _bytes_field(2, charsmap)
    normalizer += _number_field(3, dummy_prefix) + _number_field(4, extra_blanks)
    return out + _bytes_field(2, trainer) + _bytes_field(3, normalizer + _number_field(5, 1))


def _varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def _bytes_field(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _number_field(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(int(value))


def qwen2_tokenizer() -> Tokenizer:
    """Return a small byte-level BPE tokenizer as Qwen2's and InternVL3's."""
    tok = Tokenizer(models.BPE())
    tok.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(pattern=Regex(QWEN2_PATTERN), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tok.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tok.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tok.train_from_iterator(CORPUS, trainer)
    tok.add_special_tokens(list(QWEN2_WORDS))
    tok.add_tokens(["<tool_call>", "</tool_call>"])  # not flagged special, as published
    tok.add_special_tokens(list(IMAGE_WORDS))
    return tok


def write_qwen2_tokenizer(directory: Path, *, fast: bool = True) -> int:
    """Write vocab.json, merges.txt, configs and (if `fast`) tokenizer.json; return the rows."""
    tok = qwen2_tokenizer()
    data = json.loads(tok.to_str())
    if fast:
        tok.save(str(directory / "tokenizer.json"))
    (directory / "vocab.json").write_text(json.dumps(data["model"]["vocab"]), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in data["model"]["merges"]), ""]
    (directory / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    flags = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    decoder = {str(t["id"]): {key: t[key] for key in flags} for t in data["added_tokens"]}
    settings = {
        "add_bos_token": False,
        "add_eos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": decoder,
        "additional_special_tokens": [*QWEN2_WORDS[1:], *IMAGE_WORDS],
        "bos_token": None,
        "chat_template": "{{ messages }}",
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 12288,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return len(tok.get_vocab(with_added_tokens=True)) + 3  # published embeddings have spare rows
