"""One decoding step of a small Qwen2 language model, for many half-shared texts at once.

Texts that are equal so far share a *lane*: one row of keys and values, one row of the forward
pass. A lane splits only when its texts draw different tokens, so sixteen continuations of one
prefix cost one row until they differ. Plain matrix products, grouped-query attention without
repeating keys, no mask arithmetic beyond the left padding of the prompts.

Draws belong to a seed, not to a stream, so a child draws the same numbers in any batch: torch's
generators have one state per stream, and hundreds of streams per step would cost more than the
model. Child k's numbers u(seed_k, 0), u(seed_k, 1), ... come from a counter-based hash (the
finaliser of splitmix64), and tokens are picked by inverting the cumulative distribution.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from transformers import InternVLForConditionalGeneration

_PADDED = -1e9


@dataclass(frozen=True)
class _Layer:
    """The weights of one decoder layer, q/k/v and gate/up each joined to one matrix."""

    input_norm: Any
    post_norm: Any
    qkv: Tensor
    qkv_bias: Tensor
    out: Tensor
    gate_up: Tensor
    down: Tensor


class Lanes:
    """Keys and values of all lanes: `store[layer, 0|1, lane, kv head, position, head size]`."""

    def __init__(self, store: Tensor, bias: Tensor, positions: Tensor, filled: int) -> None:
        self.store, self.bias, self.positions, self.filled = store, bias, positions, filled

    @property
    def count(self) -> int:
        """Number of lanes in use, dead ones included."""
        return len(self.positions)

    def place(self, parents: Tensor) -> Tensor:
        """Give every new text (a continuation of lane `parents[i]`, sorted) a lane; return them.

        The first child of a lane stays where it is; the others are copied into lanes nobody uses
        any more, then to the end. Only copies cost memory traffic.
        """
        first = torch.ones_like(parents, dtype=torch.bool)
        first[1:] = parents[1:] != parents[:-1]
        lanes = parents.clone()
        extra = int((~first).sum())
        if extra:
            free = torch.ones(self.count, dtype=torch.bool)
            free[parents] = False
            slots = free.nonzero().squeeze(1)[:extra]
            grown = extra - len(slots)
            if grown:
                slots = torch.cat([slots, torch.arange(self.count, self.count + grown)])
                self._grow(grown)
            self._copy(parents[~first], slots)
            lanes[~first] = slots
        return lanes

    def compact(self, used: Tensor) -> None:
        """Keep only the lanes `used`, in that order."""
        kept = self.store[:, :, used, :, : self.filled]
        self.store[:, :, : len(used), :, : self.filled] = kept
        self.bias, self.positions = self.bias[used], self.positions[used]

    def _grow(self, lanes: int) -> None:
        missing = self.count + lanes - self.store.shape[2]
        if missing > 0:
            room = max(missing, self.store.shape[2])
            shape = list(self.store.shape)
            shape[2] = room
            self.store = torch.cat([self.store, self.store.new_zeros(shape)], dim=2)
        self.bias = torch.cat([self.bias, self.bias.new_zeros(lanes, self.bias.shape[1])])
        self.positions = torch.cat([self.positions, self.positions.new_zeros(lanes)])

    def _copy(self, source: Tensor, target: Tensor) -> None:
        self.store[:, :, target, :, : self.filled] = self.store[:, :, source, :, : self.filled]
        self.bias[target], self.positions[target] = self.bias[source], self.positions[source]


class LaneDecoder:
    """The language model of an InternVL checkpoint, unrolled for decoding on one device."""

    def __init__(self, model: InternVLForConditionalGeneration) -> None:
        config = model.config.text_config
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_size = config.hidden_size // self.heads
        self.model = model
        self.embedding = model.get_input_embeddings().weight.detach()
        self.head = model.lm_head.weight.detach()
        self.norm = model.model.language_model.norm
        self.layers = [_read_layer(layer) for layer in model.model.language_model.layers]
        theta = float(config.rope_parameters["rope_theta"])
        exponents = torch.arange(0, self.head_size, 2).float() / self.head_size
        angles = torch.outer(
            torch.arange(config.max_position_embeddings).float(), theta**-exponents
        )
        angles = torch.cat([angles, angles], dim=-1).to(self.embedding.device)
        self.cos, self.sin = angles.cos(), angles.sin()

    def prefill(self, embeds: Tensor, mask: Tensor, room: int) -> tuple[Tensor, Lanes]:
        """Read left-padded prompts; return the last hidden states and lanes with `room` free.

        `embeds` is [prompts, length, hidden], `mask` [prompts, length] with 1 at real tokens.
        """
        from transformers import DynamicCache

        cache = DynamicCache(config=self.model.config.text_config)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        hidden = self.model.model.language_model(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state[:, -1]
        rows, length = mask.shape
        shape = (len(self.layers), 2, rows, self.kv_heads, length + room, self.head_size)
        store = embeds.new_zeros(shape)
        for index, layer in enumerate(cache.layers):
            store[index, 0, :, :, :length] = layer.keys
            store[index, 1, :, :, :length] = layer.values
        bias = embeds.new_zeros(rows, length + room)
        bias[:, :length].masked_fill_(mask == 0, _PADDED)
        return hidden, Lanes(store, bias, mask.sum(-1), length)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return fp32 logits [lanes, vocabulary] of final hidden states."""
        return functional.linear(hidden, self.head).float()

    def step(self, tokens: Tensor, lanes: Lanes) -> Tensor:
        """Append one token to every lane; return the final hidden states [lanes, hidden]."""
        count, column = lanes.count, lanes.filled
        cos, sin = self.cos[lanes.positions], self.sin[lanes.positions]
        state = self.embedding[tokens]
        cos, sin = cos[:, None].to(state.dtype), sin[:, None].to(state.dtype)
        bias = lanes.bias[:, None, None, : column + 1]
        for index, layer in enumerate(self.layers):
            joined = functional.linear(layer.input_norm(state), layer.qkv, layer.qkv_bias)
            joined = joined.view(count, self.heads + 2 * self.kv_heads, self.head_size)
            rotated = _rotate(joined[:, : self.heads + self.kv_heads], cos, sin)
            keys, values = lanes.store[index, 0, :count], lanes.store[index, 1, :count]
            keys[:, :, column] = rotated[:, self.heads :]
            values[:, :, column] = joined[:, self.heads + self.kv_heads :]
            query = rotated[:, : self.heads].reshape(count, self.kv_heads, -1, self.head_size)
            scores = query @ keys[:, :, : column + 1].transpose(-1, -2)
            weights = (scores * self.head_size**-0.5 + bias).float().softmax(-1).to(state.dtype)
            mixed = (weights @ values[:, :, : column + 1]).reshape(count, -1)
            state = state + functional.linear(mixed, layer.out)
            gate, up = functional.linear(layer.post_norm(state), layer.gate_up).chunk(2, dim=-1)
            state = state + functional.linear(functional.silu(gate) * up, layer.down)
        lanes.filled += 1
        lanes.positions = lanes.positions + 1
        return self.norm(state)  # type: ignore[no-any-return]


def _rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of [rows, heads, size] in the half-split convention of Qwen2."""
    half = heads.shape[-1] // 2
    turned = torch.cat([-heads[..., half:], heads[..., :half]], dim=-1)
    return heads * cos + turned * sin


def _read_layer(layer: Any) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    return _Layer(
        input_norm=layer.input_layernorm,
        post_norm=layer.post_attention_layernorm,
        qkv=torch.cat([p.weight for p in projections]).detach(),
        qkv_bias=torch.cat([p.bias for p in projections]).detach(),
        out=attention.o_proj.weight.detach(),
        gate_up=torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]).detach(),
        down=mlp.down_proj.weight.detach(),
    )


# --- draws ---


def draw_tokens(logits: Tensor, temperature: Tensor, draws: Tensor, lane: Tensor) -> Tensor:
    """Pick one token per child, [children].

    `logits` is [lanes, vocabulary], `temperature` [lanes] (0: the most likely token), `draws` one
    number in [0, 1) per child, and `lane` the row of `logits` that each child draws from.
    """
    probabilities = (logits / temperature.clamp(min=1e-6)[:, None]).softmax(-1).double()
    cumulative = probabilities.cumsum(-1)
    # One search for all children: lane i's distribution is moved to the interval (i, i + 1].
    ladder = cumulative / cumulative[:, -1:] + torch.arange(len(logits))[:, None]
    size = logits.shape[1]
    found = torch.searchsorted(ladder.flatten(), draws + lane, right=True)
    sampled = (found - lane * size).clamp(0, size - 1)
    return torch.where(temperature[lane] > 0, sampled, logits.argmax(-1)[lane])


def uniforms(seeds: np.ndarray[Any, Any], position: int) -> np.ndarray[Any, Any]:
    """Return u(seed, position) in [0, 1) for every seed, [seeds] float64 (splitmix64 finaliser)."""
    with np.errstate(over="ignore"):
        step = np.uint64(((position + 1) * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF)
        z = _mix(seeds) + step
        return (_mix(z) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(z: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray[Any, Any] = z ^ (z >> np.uint64(31))
    return mixed
