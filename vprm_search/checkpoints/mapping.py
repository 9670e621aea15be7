"""Which original tensor becomes which native tensors.

Every native tensor consists of whole rows of one original tensor, so the mapping is a table of row
ranges. Names and layouts of the original are facts from OpenGVLab/InternVL (`modeling_intern_vit`,
`modeling_internvl_chat`, `modeling_internlm2`); native names are those in which transformers
stores `InternVLForConditionalGeneration` and which vLLM reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from vprm_search.checkpoints.config import LanguageShape, OriginalConfig, VisionShape

Rows = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Part:
    """A native tensor made of the row ranges `rows` of its source, in this order."""

    name: str
    shape: tuple[int, ...]
    rows: Rows


@dataclass(frozen=True, slots=True)
class Expected:
    """An original tensor: its shape and what becomes of it (nothing, if it is only dropped)."""

    shape: tuple[int, ...]
    parts: tuple[Part, ...]


def mapping(config: OriginalConfig) -> dict[str, Expected]:
    """Return every tensor the original model has, by its original name."""
    table: dict[str, Expected] = {}
    for name, shape, target in (
        *_vision(config.vision),
        *_projector(config),
        *_language(config.language),
    ):
        table[name] = _whole(shape, target)
    table.update(_vision_qkv(config.vision))
    if config.language.kind == "internlm2":
        table.update(_grouped_qkv(config.language))
    if config.language.tied:
        embedding, head = embedding_names(config.language)
        rows = table[embedding]
        copy = Part("language_model.lm_head.weight", rows.shape, rows.parts[0].rows)
        table[embedding] = Expected(rows.shape, (*rows.parts, copy))
        table[head] = Expected(rows.shape, ())
    return table


def target_shapes(config: OriginalConfig) -> dict[str, tuple[int, ...]]:
    """Return every tensor of the native checkpoint with its shape."""
    parts = [part for expected in mapping(config).values() for part in expected.parts]
    return {part.name: part.shape for part in parts}


def embedding_names(language: LanguageShape) -> tuple[str, str]:
    """Return the original names of the token embedding and of the head."""
    if language.kind == "internlm2":
        return "language_model.model.tok_embeddings.weight", "language_model.output.weight"
    return "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"


def qkv_rows(kv_heads: int, queries: int, head_dim: int) -> tuple[Rows, Rows, Rows]:
    """Return the rows of q, k and v in InternLM2's `wqkv`.

    Its rows stand in one block per key-value head: `queries` query heads that share it, its key,
    its value, each `head_dim` rows. Source: `modeling_internlm2.py` ("h gs d", gs = queries + 2).
    """
    size = (queries + 2) * head_dim
    starts = [block * size for block in range(kv_heads)]
    q = tuple((at, at + queries * head_dim) for at in starts)
    k = tuple((stop, stop + head_dim) for _, stop in q)
    v = tuple((stop, stop + head_dim) for _, stop in k)
    return q, k, v


def _whole(shape: tuple[int, ...], target: str) -> Expected:
    return Expected(shape, (Part(target, shape, ((0, shape[0]),)),))


def _split(source_shape: tuple[int, ...], targets: Iterable[tuple[str, Rows]]) -> Expected:
    parts = []
    for name, rows in targets:
        count = sum(stop - start for start, stop in rows)
        parts.append(Part(name, (count, *source_shape[1:]), rows))
    return Expected(source_shape, tuple(parts))


_Row = tuple[str, tuple[int, ...], str]


def _linear(old: str, new: str, out: int, inner: int, bias: bool = True) -> Iterator[_Row]:
    yield f"{old}.weight", (out, inner), f"{new}.weight"
    if bias:
        yield f"{old}.bias", (out,), f"{new}.bias"


def _vision(vision: VisionShape) -> Iterator[_Row]:
    width, patch = vision.hidden, vision.patch_size
    old, new = "vision_model.embeddings", "vision_tower.embeddings"
    yield f"{old}.class_embedding", (1, 1, width), f"{new}.cls_token"
    yield (
        f"{old}.position_embedding",
        (1, vision.patches + 1, width),
        f"{new}.position_embeddings",
    )
    projection = f"{new}.patch_embeddings.projection"
    yield f"{old}.patch_embedding.weight", (width, 3, patch, patch), f"{projection}.weight"
    yield f"{old}.patch_embedding.bias", (width,), f"{projection}.bias"
    for number in range(vision.layers):
        old = f"vision_model.encoder.layers.{number}"
        new = f"vision_tower.encoder.layer.{number}"
        yield f"{old}.ls1", (width,), f"{new}.lambda_1"
        yield f"{old}.ls2", (width,), f"{new}.lambda_2"
        for norm, name in (("norm1", "layernorm_before"), ("norm2", "layernorm_after")):
            yield f"{old}.{norm}.weight", (width,), f"{new}.{name}.weight"
            if vision.norm_type == "layer_norm":
                yield f"{old}.{norm}.bias", (width,), f"{new}.{name}.bias"
        if vision.qk_norm:
            for norm in ("q_norm", "k_norm"):
                yield f"{old}.attn.{norm}.weight", (width,), f"{new}.attention.{norm}.weight"
        yield from _linear(f"{old}.attn.proj", f"{new}.attention.projection_layer", width, width)
        yield from _linear(f"{old}.mlp.fc1", f"{new}.mlp.fc1", vision.intermediate, width)
        yield from _linear(f"{old}.mlp.fc2", f"{new}.mlp.fc2", width, vision.intermediate)


def _vision_qkv(vision: VisionShape) -> Iterator[tuple[str, Expected]]:
    """InternViT keeps q, k and v as three equal blocks of rows of one `qkv`."""
    width = vision.hidden
    kinds = {"weight": (3 * width, width)} | ({"bias": (3 * width,)} if vision.qkv_bias else {})
    for number in range(vision.layers):
        old = f"vision_model.encoder.layers.{number}.attn.qkv"
        new = f"vision_tower.encoder.layer.{number}.attention"
        for kind, shape in kinds.items():
            yield (
                f"{old}.{kind}",
                _split(
                    shape,
                    (
                        (f"{new}.{letter}_proj.{kind}", ((at * width, (at + 1) * width),))
                        for at, letter in enumerate("qkv")
                    ),
                ),
            )


def _projector(config: OriginalConfig) -> Iterator[_Row]:
    width, hidden, new = config.projector_input, config.language.hidden, "multi_modal_projector"
    for kind in ("weight", "bias"):
        yield f"mlp1.0.{kind}", (width,), f"{new}.layer_norm.{kind}"
    yield from _linear("mlp1.1", f"{new}.linear_1", hidden, width)
    yield from _linear("mlp1.3", f"{new}.linear_2", hidden, hidden)


def _language(language: LanguageShape) -> Iterator[_Row]:
    hidden, new = language.hidden, "language_model.model"
    embedding, head = embedding_names(language)
    yield embedding, (language.vocab, hidden), f"{new}.embed_tokens.weight"
    yield "language_model.model.norm.weight", (hidden,), f"{new}.norm.weight"
    if not language.tied:
        yield head, (language.vocab, hidden), "language_model.lm_head.weight"
    layer = _internlm2_layer if language.kind == "internlm2" else _qwen2_layer
    for number in range(language.layers):
        yield from layer(language, f"{new}.layers.{number}")


def _qwen2_layer(language: LanguageShape, at: str) -> Iterator[_Row]:
    """Qwen2's names are the native ones."""
    hidden, kv_width = language.hidden, language.kv_heads * language.head_dim
    for name, out in (("q_proj", hidden), ("k_proj", kv_width), ("v_proj", kv_width)):
        yield from _linear(f"{at}.self_attn.{name}", f"{at}.self_attn.{name}", out, hidden)
    yield from _linear(f"{at}.self_attn.o_proj", f"{at}.self_attn.o_proj", hidden, hidden, False)
    for name, out, inner in (
        ("gate_proj", language.intermediate, hidden),
        ("up_proj", language.intermediate, hidden),
        ("down_proj", hidden, language.intermediate),
    ):
        yield from _linear(f"{at}.mlp.{name}", f"{at}.mlp.{name}", out, inner, False)
    for name in ("input_layernorm", "post_attention_layernorm"):
        yield f"{at}.{name}.weight", (hidden,), f"{at}.{name}.weight"


def _internlm2_layer(language: LanguageShape, at: str) -> Iterator[_Row]:
    hidden, inner = language.hidden, language.intermediate
    yield from _linear(
        f"{at}.attention.wo", f"{at}.self_attn.o_proj", hidden, hidden, language.bias
    )
    yield from _linear(f"{at}.feed_forward.w1", f"{at}.mlp.gate_proj", inner, hidden, False)
    yield from _linear(f"{at}.feed_forward.w3", f"{at}.mlp.up_proj", inner, hidden, False)
    yield from _linear(f"{at}.feed_forward.w2", f"{at}.mlp.down_proj", hidden, inner, False)
    yield f"{at}.attention_norm.weight", (hidden,), f"{at}.input_layernorm.weight"
    yield f"{at}.ffn_norm.weight", (hidden,), f"{at}.post_attention_layernorm.weight"


def _grouped_qkv(language: LanguageShape) -> Iterator[tuple[str, Expected]]:
    queries = language.heads // language.kv_heads
    rows = qkv_rows(language.kv_heads, queries, language.head_dim)
    height = (queries + 2) * language.kv_heads * language.head_dim
    shapes = {"weight": (height, language.hidden)} | ({"bias": (height,)} if language.bias else {})
    for number in range(language.layers):
        at = f"language_model.model.layers.{number}"
        for kind, shape in shapes.items():
            targets = [
                (f"{at}.self_attn.{letter}_proj.{kind}", part)
                for letter, part in zip("qkv", rows, strict=True)
            ]
            yield f"{at}.attention.wqkv.{kind}", _split(shape, targets)
