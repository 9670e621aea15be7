"""The original model in plain torch, straight from the original files: the oracle.

Written from the published architecture (InternViT, pixel shuffle v2, InternLM2, Qwen2) and from
sentencepiece's description of its BPE. Uses neither `vprm_search` nor transformers' modules.
"""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch.nn import functional

from tests.scoring.oracle import render, tiles

BLANK = "\u2581"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Encode = Callable[[str], list[int]]


class OriginalModel:
    """An original checkpoint that scores the way VisualPRM's own code does."""

    def __init__(self, directory: Path, encode: Encode) -> None:
        self.config = json.loads((directory / "config.json").read_text())
        self.weights: dict[str, torch.Tensor] = {}
        for file in sorted(directory.glob("*.safetensors")):
            self.weights |= load_file(file)
        self.weights = {name: value.float() for name, value in self.weights.items()}
        self.encode = encode

    @torch.inference_mode()
    def score(
        self,
        question: str,
        steps: Sequence[str],
        pngs: Sequence[bytes] = (),
        *,
        max_tiles: int = 12,
        system: str | None = None,
    ) -> list[float]:
        """Return P('+') of every step: one pass, read before each '+'."""
        side = self.config["vision_config"]["image_size"]
        images = [Image.open(io.BytesIO(png)).convert("RGB") for png in pngs]
        pixels = [tiles(image, side, max_tiles, MEAN, STD) for image in images]
        per_tile = (side // self.config["vision_config"]["patch_size"]) ** 2 // 4
        chosen = {} if system is None else {"system": system}
        text = render(question, steps, [len(p) * per_tile for p in pixels], **chosen)
        ids = self.encode(text)
        logits = self.logits(ids, torch.cat(pixels) if pixels else None)
        role = self._bare("<|im_start|>assistant\n")
        mark = self._bare("<|im_start|>assistant\n+<|im_end|>\n")
        found = [i for i in range(len(ids)) if ids[i : i + len(mark)] == mark]
        assert len(found) == len(steps)
        plus, minus = self._word("+"), self._word("-")
        rows = logits[[i + len(role) - 1 for i in found]]
        return torch.softmax(rows[:, [plus, minus]], dim=-1)[:, 0].tolist()

    def logits(self, ids: Sequence[int], pixels: torch.Tensor | None) -> torch.Tensor:
        """Return `[tokens, vocab]`."""
        llm = self.config["llm_config"]
        lm2 = llm["model_type"] == "internlm2"
        top = "language_model.model."
        table = self.weights[top + ("tok_embeddings.weight" if lm2 else "embed_tokens.weight")]
        hidden = table[list(ids)].clone()
        if pixels is not None:
            context = self._word("<IMG_CONTEXT>")
            hidden[[i for i, token in enumerate(ids) if token == context]] = self.vision(pixels)
        cos, sin = self._rope(len(ids))
        layer = self._internlm2_layer if lm2 else self._qwen2_layer
        for number in range(llm["num_hidden_layers"]):
            hidden = layer(f"{top}layers.{number}.", hidden, cos, sin)
        hidden = self._rms(hidden, top + "norm.weight", llm["rms_norm_eps"])
        head = table
        if not llm["tie_word_embeddings"]:
            head = self.weights[
                "language_model.output.weight" if lm2 else "language_model.lm_head.weight"
            ]
        return hidden @ head.T

    # --- vision ---------------------------------------------------------------------------------

    def vision(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the image tokens of all tiles in order, `[tiles * tokens, hidden]`."""
        vit = self.config["vision_config"]
        at = "vision_model.embeddings."
        x = functional.conv2d(
            pixels,
            self.weights[at + "patch_embedding.weight"],
            self.weights[at + "patch_embedding.bias"],
            stride=vit["patch_size"],
        )
        grid = x.shape[-1]
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([self.weights[at + "class_embedding"].expand(len(x), 1, -1), x], dim=1)
        x = x + self.weights[at + "position_embedding"]
        for number in range(vit["num_hidden_layers"]):
            x = self._vision_layer(f"vision_model.encoder.layers.{number}.", x)
        x = x[:, 1:].reshape(len(x), grid, grid, -1)
        # four neighbours (a 2 x 2 block of patches) become one token: rows first, then columns
        x = x.unfold(1, 2, 2).unfold(2, 2, 2)  # [tiles, rows, columns, channels, 2, 2]
        x = x.permute(0, 1, 2, 4, 5, 3).flatten(3).flatten(1, 2)
        x = functional.layer_norm(
            x, x.shape[-1:], self.weights["mlp1.0.weight"], self.weights["mlp1.0.bias"]
        )
        x = functional.gelu(self._linear(x, "mlp1.1"))
        return self._linear(x, "mlp1.3").flatten(0, 1)

    def _vision_layer(self, at: str, x: torch.Tensor) -> torch.Tensor:
        vit = self.config["vision_config"]
        heads = vit["num_attention_heads"]
        y = self._linear(self._vision_norm(x, at + "norm1"), at + "attn.qkv")
        q, k, v = y.chunk(3, dim=-1)
        if vit["qk_normalization"]:
            q = self._rms(q, at + "attn.q_norm.weight", vit["layer_norm_eps"])
            k = self._rms(k, at + "attn.k_norm.weight", vit["layer_norm_eps"])
        q, k, v = (z.unflatten(-1, (heads, -1)).transpose(1, 2) for z in (q, k, v))
        share = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), dim=-1)
        y = self._linear((share @ v).transpose(1, 2).flatten(2), at + "attn.proj")
        x = x + y * self.weights[at + "ls1"]
        y = functional.gelu(self._linear(self._vision_norm(x, at + "norm2"), at + "mlp.fc1"))
        return x + self._linear(y, at + "mlp.fc2") * self.weights[at + "ls2"]

    def _vision_norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        vit = self.config["vision_config"]
        if vit["norm_type"] == "rms_norm":
            return self._rms(x, name + ".weight", vit["layer_norm_eps"])
        centred = x - x.mean(-1, keepdim=True)
        scale = torch.rsqrt(centred.pow(2).mean(-1, keepdim=True) + vit["layer_norm_eps"])
        return centred * scale * self.weights[name + ".weight"] + self.weights[name + ".bias"]

    # --- language -------------------------------------------------------------------------------

    def _internlm2_layer(
        self, at: str, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> torch.Tensor:
        llm = self.config["llm_config"]
        groups = llm["num_key_value_heads"]
        y = self._linear(
            self._rms(x, at + "attention_norm.weight", llm["rms_norm_eps"]), at + "attention.wqkv"
        )
        size = llm["hidden_size"] // llm["num_attention_heads"]
        blocks = y.reshape(len(y), groups, -1, size)  # a group: its query heads, its key, its value
        q = blocks[:, :, :-2].flatten(1, 2)
        y = self._attention(q, blocks[:, :, -2], blocks[:, :, -1], cos, sin)
        x = x + self._linear(y, at + "attention.wo")
        y = self._rms(x, at + "ffn_norm.weight", llm["rms_norm_eps"])
        gate = functional.silu(self._linear(y, at + "feed_forward.w1"))
        return x + self._linear(
            gate * self._linear(y, at + "feed_forward.w3"), at + "feed_forward.w2"
        )

    def _qwen2_layer(
        self, at: str, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
    ) -> torch.Tensor:
        llm = self.config["llm_config"]
        size = llm["hidden_size"] // llm["num_attention_heads"]
        y = self._rms(x, at + "input_layernorm.weight", llm["rms_norm_eps"])
        q, k, v = (
            self._linear(y, f"{at}self_attn.{name}_proj").unflatten(-1, (-1, size))
            for name in "qkv"
        )
        x = x + self._linear(self._attention(q, k, v, cos, sin), at + "self_attn.o_proj")
        y = self._rms(x, at + "post_attention_layernorm.weight", llm["rms_norm_eps"])
        gate = functional.silu(self._linear(y, at + "mlp.gate_proj"))
        return x + self._linear(gate * self._linear(y, at + "mlp.up_proj"), at + "mlp.down_proj")

    def _attention(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
    ) -> torch.Tensor:
        """Causal attention of `[tokens, heads, size]`, key-value heads shared by neighbours."""
        share = q.shape[1] // k.shape[1]
        q, k = _rotated(q, cos, sin), _rotated(k, cos, sin)
        k, v = (z.repeat_interleave(share, dim=1) for z in (k, v))
        logits = torch.einsum("ihd,jhd->hij", q, k) / math.sqrt(q.shape[-1])
        future = torch.ones(len(q), len(q), dtype=torch.bool).triu(1)
        weights = torch.softmax(logits.masked_fill(future, -math.inf), dim=-1)
        return torch.einsum("hij,jhd->ihd", weights, v).flatten(1)

    def _rope(self, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        llm = self.config["llm_config"]
        size, base = llm["hidden_size"] // llm["num_attention_heads"], float(llm["rope_theta"])
        scaling, limit = llm["rope_scaling"] or {}, llm["max_position_embeddings"]
        kind, factor = scaling.get("type"), scaling.get("factor", 1.0)
        if kind == "dynamic" and length > limit:
            base *= (factor * length / limit - (factor - 1)) ** (size / (size - 2))
        steps = torch.arange(length).float() / (factor if kind == "linear" else 1.0)
        angles = torch.outer(steps, base ** (-torch.arange(0, size, 2).float() / size))
        return angles.cos()[:, None], angles.sin()[:, None]

    def _rms(self, x: torch.Tensor, name: str, eps: float) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * self.weights[name]

    def _linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        y = x @ self.weights[name + ".weight"].T
        return y + self.weights[name + ".bias"] if name + ".bias" in self.weights else y

    def _word(self, word: str) -> int:
        (token,) = self._bare(word)
        return token

    def _bare(self, text: str) -> list[int]:
        """Encode without the token that begins a text."""
        empty = len(self.encode(""))
        return self.encode(text)[empty:]


def _rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


# --- tokenizers ----------------------------------------------------------------------------------


def qwen2_encoder(directory: Path) -> Encode:
    """The published fast tokenizer of the source itself."""
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    return lambda text: tokenizer.encode(text).ids


def internlm2_encoder(
    directory: Path, pieces: Sequence[tuple[str, float, int]], *, dummy_prefix: bool = False
) -> Encode:
    """Cut out added tokens, read each stretch between with sentencepiece, put `<s>` first."""
    settings: dict[str, Any] = json.loads((directory / "tokenizer_config.json").read_text())
    added = {entry["content"]: int(n) for n, entry in settings["added_tokens_decoder"].items()}
    cut = re.compile("(" + "|".join(map(re.escape, sorted(added, key=len, reverse=True))) + ")")

    def encode(text: str) -> list[int]:
        ids = [1] if settings.get("add_bos_token", True) else []
        for part in cut.split(text):
            if part in added:
                ids.append(added[part])
            elif part:
                ids.extend(sentencepiece_encode(part, pieces, dummy_prefix=dummy_prefix))
        return ids

    return encode


def sentencepiece_encode(
    text: str, pieces: Sequence[tuple[str, float, int]], *, dummy_prefix: bool = False
) -> list[int]:
    """Join the neighbours whose piece has the best score, leftmost first, as sentencepiece does."""
    ids = {piece: number for number, (piece, _, _) in enumerate(pieces)}
    scores = {piece: score for piece, score, kind in pieces if kind == 1}
    whole = sorted((p for p, _, kind in pieces if kind == 4), key=len, reverse=True)
    text = (BLANK if dummy_prefix else "") + text.replace(" ", BLANK)
    symbols: list[str] = []
    while text:
        fixed = next((word for word in whole if text.startswith(word)), "")
        symbols.append(fixed or text[0])
        text = text[len(symbols[-1]) :]
    frozen = set(whole)
    while True:
        best = None
        for at in range(len(symbols) - 1):
            left, right = symbols[at], symbols[at + 1]
            score = None if {left, right} & frozen else scores.get(left + right)
            if score is not None and (best is None or score > best[0]):
                best = (score, at)
        if best is None:
            break
        at = best[1]
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
    found: list[int] = []
    for symbol in symbols:
        if symbol in ids and (symbol in scores or symbol in frozen):
            found.append(ids[symbol])
        else:
            found.extend(ids[f"<0x{byte:02X}>"] for byte in symbol.encode())
    return found
