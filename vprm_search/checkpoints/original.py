"""What an original InternVL checkpoint is: its configuration, its tensors and their native names.

Facts (names, defaults, meaning) from OpenGVLab/InternVL: `configuration_internvl_chat.py`,
`configuration_intern_vit.py`, `configuration_internlm2.py` and the `modeling_` files beside them;
Qwen2's from transformers. Native names are those in which transformers stores
`InternVLForConditionalGeneration` and which vLLM reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from vprm_search.errors import CheckpointError

# --- the configuration ---


REWARD_MODEL = "InternVLRewardModel"
ARCHITECTURES = (REWARD_MODEL, "InternVLChatModel")
TEMPLATE = "internvl2_5"
_LANGUAGE_MODELS: dict[str, Literal["internlm2", "qwen2"]] = {
    "InternLM2ForCausalLM": "internlm2",
    "Qwen2ForCausalLM": "qwen2",
}
_MAX_LAYERS = 1000  # of a file that may be hostile: every layer becomes a row of a table
_QK_NORM_EPS = 1e-6  # fixed in transformers' InternVLVisionRMSNorm
_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class VisionShape:
    """InternViT: 300M has layer norms and biased qkv, 6B has RMS norms and normalised q and k."""

    hidden: int
    layers: int
    heads: int
    intermediate: int
    image_size: int
    patch_size: int
    qkv_bias: bool
    qk_norm: bool
    norm_type: str
    norm_eps: float
    activation: str

    @property
    def patches(self) -> int:
        """Patches of one tile."""
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True, slots=True)
class LanguageShape:
    """The language model; `linear_rope` is the divisor of linearly scaled positions, or None.

    `bias` is InternLM2's flag for biases of wqkv and wo; Qwen2 always has them on q, k and v.
    """

    kind: Literal["internlm2", "qwen2"]
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocab: int
    bias: bool
    activation: str
    norm_eps: float
    max_positions: int
    rope_theta: float
    linear_rope: float | None
    tied: bool

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden // self.heads


@dataclass(frozen=True, slots=True)
class OriginalConfig:
    """All that a conversion needs to know about an original checkpoint.

    `reward_model` says whether the checkpoint names VisualPRM's class, as its architecture or as
    the class that remote code would load; a chat model has the same tensors.
    """

    architecture: str
    reward_model: bool
    vision: VisionShape
    language: LanguageShape
    downsample_ratio: float
    min_tiles: int
    thumbnail: bool
    dynamic_tiles: bool
    system_message: str | None

    @property
    def projector_input(self) -> int:
        """Width of what enters the projector: the channels of the patches that become one token."""
        return self.vision.hidden * int(1 / self.downsample_ratio) ** 2

    @property
    def tokens_per_tile(self) -> int:
        """Image tokens of one tile."""
        return int(self.vision.patches * self.downsample_ratio**2)


def read_original_config(config: dict[str, Any]) -> OriginalConfig:
    """Read `config.json` of an original checkpoint.

    Raises `CheckpointError` for another architecture and for each option that transformers' native
    class cannot express: they would be converted without an error, into another model.
    """
    architecture = (config.get("architectures") or [None])[0]
    if config.get("model_type") != "internvl_chat" or architecture not in ARCHITECTURES:
        raise CheckpointError(
            f"config.json: model_type {config.get('model_type')!r} with architecture "
            f"{architecture!r}; only 'internvl_chat' with {' or '.join(ARCHITECTURES)} is converted"
        )
    vision = _vision(_section(config, "vision_config"))
    _check_options(config, vision)
    ratio = _get(config, "downsample_ratio", float, 0.5)
    side = vision.image_size // vision.patch_size
    if not 0 < ratio <= 1 or (1 / ratio) % 1 or side % int(1 / ratio):
        raise CheckpointError(f"config.json: downsample_ratio {ratio} does not divide {side}")
    return OriginalConfig(
        architecture=str(architecture),
        reward_model=REWARD_MODEL in _named_classes(config),
        vision=vision,
        language=_language(_section(config, "llm_config")),
        downsample_ratio=ratio,
        min_tiles=_get(config, "min_dynamic_patch", int, 1),
        thumbnail=_get(config, "use_thumbnail", bool, False),
        dynamic_tiles=_get(config, "dynamic_image_size", bool, False),
        system_message=config.get("system_message"),
    )


def _named_classes(config: dict[str, Any]) -> set[str]:
    """Return the classes that `architectures` and `auto_map` name."""
    found = config.get("auto_map")
    remote = found.values() if isinstance(found, dict) else ()
    return {str(config["architectures"][0]), *(str(name).rsplit(".", 1)[-1] for name in remote)}


def _check_options(config: dict[str, Any], vision: VisionShape) -> None:
    _only("select_layer", config.get("select_layer", -1), -1)
    _only("ps_version", config.get("ps_version", "v1"), "v2")
    _only("template", config.get("template"), TEMPLATE)
    _only("pad2square", config.get("pad2square", False), False)
    for adapter in ("use_backbone_lora", "use_llm_lora"):
        _only(adapter, config.get(adapter) or 0, 0)
    _only(
        "force_image_size", config.get("force_image_size") or vision.image_size, vision.image_size
    )
    system = config.get("system_message")
    if system is not None and not isinstance(system, str):
        raise CheckpointError(f"config.json: system_message is {system!r}, not a text")


def _vision(config: dict[str, Any]) -> VisionShape:
    vision = VisionShape(
        hidden=_get(config, "hidden_size", int, 3200),
        layers=_layers(config, 48),
        heads=_get(config, "num_attention_heads", int, 25),
        intermediate=_get(config, "intermediate_size", int, 12800),
        image_size=_get(config, "image_size", int, 224),
        patch_size=_get(config, "patch_size", int, 14),
        qkv_bias=_get(config, "qkv_bias", bool, False),
        qk_norm=_get(config, "qk_normalization", bool, True),
        norm_type=_get(config, "norm_type", str, "rms_norm"),
        norm_eps=_get(config, "layer_norm_eps", float, 1e-6),
        activation=_get(config, "hidden_act", str, "gelu"),
    )
    _only("vision_config.num_channels", config.get("num_channels", 3), 3)
    if vision.norm_type not in ("layer_norm", "rms_norm"):
        raise CheckpointError(f"config.json: vision_config.norm_type is {vision.norm_type!r}")
    if vision.qk_norm:
        _only("vision_config.layer_norm_eps (with qk_normalization)", vision.norm_eps, _QK_NORM_EPS)
    _divides("vision_config", vision.hidden, vision.heads)
    _divides("vision_config (image_size, patch_size)", vision.image_size, vision.patch_size)
    return vision


def _language(config: dict[str, Any]) -> LanguageShape:
    architecture = (config.get("architectures") or [None])[0]
    kind = _LANGUAGE_MODELS.get(str(architecture))
    if kind is None:
        raise CheckpointError(
            f"config.json: the language model {architecture!r} cannot be converted; "
            f"{' and '.join(_LANGUAGE_MODELS)} can"
        )
    lm2 = kind == "internlm2"
    heads = _get(config, "num_attention_heads", int, 32)
    kv_heads = config.get("num_key_value_heads")
    shape = LanguageShape(
        kind=kind,
        hidden=_get(config, "hidden_size", int, 4096),
        layers=_layers(config, 32),
        heads=heads,
        kv_heads=heads if kv_heads is None else _get(config, "num_key_value_heads", int, 32),
        intermediate=_get(config, "intermediate_size", int, 11008 if lm2 else 22016),
        vocab=_get(config, "vocab_size", int, 103168 if lm2 else 151936),
        bias=_get(config, "bias", bool, True) if lm2 else True,
        activation=_get(config, "hidden_act", str, "silu"),
        norm_eps=_get(config, "rms_norm_eps", float, 1e-6),
        max_positions=_get(config, "max_position_embeddings", int, 2048 if lm2 else 32768),
        rope_theta=_get(config, "rope_theta", float, 10000.0),
        linear_rope=_linear_rope(config.get("rope_scaling")),
        tied=_get(config, "tie_word_embeddings", bool, False),
    )
    _only("llm_config.rope_pos_id_version", config.get("rope_pos_id_version", "default"), "default")
    _only("llm_config.use_sliding_window", bool(config.get("use_sliding_window")), False)
    _divides("llm_config", shape.hidden, shape.heads)
    _divides("llm_config (heads, key-value heads)", shape.heads, shape.kv_heads)
    return shape


def _linear_rope(scaling: Any) -> float | None:
    """Return the divisor of linear scaling.

    Dynamic scaling changes nothing up to `max_position_embeddings`, which is as far as a scorer
    goes. It is left out, so that no server has a say in where it begins.
    """
    if scaling is None:
        return None
    kind = scaling.get("rope_type", scaling.get("type")) if isinstance(scaling, dict) else None
    if kind in ("default", "dynamic"):
        return None
    if kind == "linear":
        factor = _get(scaling, "factor", float, 1.0)
        return None if factor == 1.0 else factor
    raise CheckpointError(f"config.json: llm_config.rope_scaling {scaling!r} cannot be converted")


def _section(config: dict[str, Any], name: str) -> dict[str, Any]:
    section = config.get(name)
    if not isinstance(section, dict):
        raise CheckpointError(f"config.json has no {name}")
    return section


def _layers(config: dict[str, Any], default: int) -> int:
    layers = _get(config, "num_hidden_layers", int, default)
    if layers > _MAX_LAYERS:
        raise CheckpointError(f"config.json: num_hidden_layers is {layers}, above {_MAX_LAYERS}")
    return layers


def _get(config: dict[str, Any], name: str, kind: type[_Value], default: _Value) -> _Value:
    value = config.get(name, default)
    if kind is float and type(value) is int:
        value = float(value)
    positive = not isinstance(value, (int, float)) or 0 < value < float("inf")
    if type(value) is not kind or not (positive or kind is bool):
        raise CheckpointError(f"config.json: {name} is {value!r}; a {kind.__name__} is needed")
    return value


def _only(name: str, value: object, allowed: object) -> None:
    if value != allowed:
        raise CheckpointError(
            f"config.json: {name} is {value!r}; only {allowed!r} can be expressed in transformers' "
            "native InternVL class"
        )


def _divides(where: str, whole: int, part: int) -> None:
    if whole % part:
        raise CheckpointError(f"config.json: {where}: {whole} is not a multiple of {part}")


# --- the tensors ---


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
        *_vision_rows(config.vision),
        *_projector(config),
        *_language_rows(config.language),
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


def _vision_rows(vision: VisionShape) -> Iterator[_Row]:
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


def _language_rows(language: LanguageShape) -> Iterator[_Row]:
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
