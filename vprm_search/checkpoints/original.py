"""What an original InternVL checkpoint is: its configuration, its tensors and their native names.

Facts (names, defaults, meaning) from OpenGVLab/InternVL: `configuration_internvl_chat.py`,
`configuration_intern_vit.py`, `configuration_internlm2.py` and the `modeling_` files beside them;
Qwen2's from transformers. Native names are those in which transformers stores
`InternVLForConditionalGeneration` and which vLLM reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationError,
    model_validator,
)

from vprm_search.errors import CheckpointError

# --- the configuration ---

REWARD_MODEL = "InternVLRewardModel"
ARCHITECTURES = (REWARD_MODEL, "InternVLChatModel")
_NOTHING_ELSE = "; nothing else can be expressed in transformers' native InternVL class"
_QK_NORM_EPS = 1e-6  # fixed in transformers' InternVLVisionRMSNorm
_LANGUAGE_MODELS: dict[str, dict[str, Any]] = {
    "InternLM2ForCausalLM": {
        "kind": "internlm2",
        "intermediate_size": 11008,
        "vocab_size": 103168,
        "max_position_embeddings": 2048,
    },
    "Qwen2ForCausalLM": {
        "kind": "qwen2",
        "intermediate_size": 22016,
        "vocab_size": 151936,
        "max_position_embeddings": 32768,
    },
}
"""The language models that can be converted, and the defaults in which they differ."""

_Layers = Annotated[int, Field(gt=0, le=1000)]  # a hostile file's: each becomes rows of a table
_Measure = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Section(BaseModel):
    """A section of `config.json`; a field of one value only stands for what cannot be converted."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class VisionShape(_Section):
    """InternViT: 300M has layer norms and biased qkv, 6B has RMS norms and normalised q and k."""

    hidden: PositiveInt = Field(3200, alias="hidden_size")
    layers: _Layers = Field(48, alias="num_hidden_layers")
    heads: PositiveInt = Field(25, alias="num_attention_heads")
    intermediate: PositiveInt = Field(12800, alias="intermediate_size")
    image_size: PositiveInt = 224
    patch_size: PositiveInt = 14
    qkv_bias: bool = False
    qk_norm: bool = Field(True, alias="qk_normalization")
    norm_type: Literal["layer_norm", "rms_norm"] = "rms_norm"
    norm_eps: _Measure = Field(1e-6, alias="layer_norm_eps")
    activation: str = Field("gelu", alias="hidden_act")
    num_channels: Literal[3] = 3

    @property
    def patches(self) -> int:
        """Patches of one tile."""
        return (self.image_size // self.patch_size) ** 2

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.qk_norm and self.norm_eps != _QK_NORM_EPS:
            raise ValueError(
                f"layer_norm_eps is {self.norm_eps} with qk_normalization; only {_QK_NORM_EPS} can "
                "be expressed in transformers' native InternVL class"
            )
        _divides("hidden_size and num_attention_heads", self.hidden, self.heads)
        _divides("image_size and patch_size", self.image_size, self.patch_size)
        return self


def _linear_rope(scaling: Any) -> Any:
    """Return the divisor of linear scaling.

    Dynamic scaling changes nothing up to `max_position_embeddings`, which is as far as a scorer
    goes. It is left out, so that no server has a say in where it begins.
    """
    if scaling is None:
        return None
    kind = scaling.get("rope_type", scaling.get("type")) if isinstance(scaling, dict) else None
    if kind in ("default", "dynamic"):
        return None
    if kind != "linear":
        raise ValueError("it cannot be converted")
    factor = scaling.get("factor", 1.0)
    return None if factor == 1 and factor is not True else factor


def _older_rope(data: dict[str, Any]) -> dict[str, Any]:
    """Return the rotary entries of a config in the older spelling; none if it is in that.

    transformers 5 writes `rope_parameters` where the original code and 4.x have `rope_theta` and
    `rope_scaling`: a checkpoint that was loaded and saved again with it has only these.
    """
    given = data.get("rope_parameters")
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise ValueError(f"rope_parameters is {given!r}, no object")
    theta, scaling = given.get("rope_theta", 10000.0), {"rope_type": "default"} | given
    before = data.get("rope_scaling")
    differs = before is not None and _linear_rope(before) != _linear_rope(scaling)
    if differs or data.get("rope_theta", theta) != theta:
        raise ValueError("rope_parameters is not what rope_theta and rope_scaling say")
    return {"rope_theta": theta, "rope_scaling": scaling}


class LanguageShape(_Section):
    """The language model; `linear_rope` is the divisor of linearly scaled positions, or None.

    `bias` is InternLM2's flag for biases of wqkv and wo; Qwen2 always has them on q, k and v.
    """

    kind: Literal["internlm2", "qwen2"]
    hidden: PositiveInt = Field(4096, alias="hidden_size")
    layers: _Layers = Field(32, alias="num_hidden_layers")
    heads: PositiveInt = Field(32, alias="num_attention_heads")
    kv_heads: PositiveInt = Field(alias="num_key_value_heads")
    intermediate: PositiveInt = Field(alias="intermediate_size")
    vocab: PositiveInt = Field(alias="vocab_size")
    bias: bool = True
    activation: str = Field("silu", alias="hidden_act")
    norm_eps: _Measure = Field(1e-6, alias="rms_norm_eps")
    max_positions: PositiveInt = Field(alias="max_position_embeddings")
    rope_theta: _Measure = 10000.0
    linear_rope: Annotated[_Measure | None, BeforeValidator(_linear_rope)] = Field(
        None, alias="rope_scaling"
    )
    tied: bool = Field(False, alias="tie_word_embeddings")
    rope_pos_id_version: Literal["default"] = "default"
    use_sliding_window: Literal[False, None] = False

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden // self.heads

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        architecture = _architecture(data)
        if architecture not in _LANGUAGE_MODELS:
            raise ValueError(
                f"the language model {architecture!r} cannot be converted; "
                f"{' and '.join(_LANGUAGE_MODELS)} can"
            )
        own = _LANGUAGE_MODELS[architecture]
        found = {**own, **data, **_older_rope(data), "kind": own["kind"]}
        if found.get("num_key_value_heads") is None:
            found["num_key_value_heads"] = data.get("num_attention_heads", 32)
        return found if own["kind"] == "internlm2" else found | {"bias": True}

    @model_validator(mode="after")
    def _fits(self) -> Self:
        _divides("hidden_size and num_attention_heads", self.hidden, self.heads)
        _divides("num_attention_heads and num_key_value_heads", self.heads, self.kv_heads)
        return self


class OriginalConfig(_Section):
    """All that a conversion needs to know about an original checkpoint.

    `reward_model` says whether the checkpoint names VisualPRM's class, as its architecture or as
    the class that remote code would load; a chat model has the same tensors.
    """

    architecture: str
    reward_model: bool
    vision: VisionShape = Field(alias="vision_config")
    language: LanguageShape = Field(alias="llm_config")
    downsample_ratio: Annotated[float, Field(gt=0, le=1)] = 0.5
    min_tiles: PositiveInt = Field(1, alias="min_dynamic_patch")
    thumbnail: bool = Field(False, alias="use_thumbnail")
    dynamic_tiles: bool = Field(False, alias="dynamic_image_size")
    system_message: str | None = None
    select_layer: Literal[-1] = -1
    ps_version: Literal["v2"]
    template: Literal["internvl2_5"]
    pad2square: Literal[False] = False
    use_backbone_lora: Literal[0, None] = 0
    use_llm_lora: Literal[0, None] = 0
    force_image_size: int | None = None

    @property
    def projector_input(self) -> int:
        """Width of what enters the projector: the channels of the patches that become one token."""
        return self.vision.hidden * int(1 / self.downsample_ratio) ** 2

    @property
    def tokens_per_tile(self) -> int:
        """Image tokens of one tile."""
        return int(self.vision.patches * self.downsample_ratio**2)

    @model_validator(mode="before")
    @classmethod
    def _named(cls, data: dict[str, Any]) -> dict[str, Any]:
        architecture, remote = _architecture(data), data.get("auto_map")
        if data.get("model_type") != "internvl_chat" or architecture not in ARCHITECTURES:
            raise ValueError(
                f"model_type {data.get('model_type')!r} with architecture {architecture!r}; only "
                f"'internvl_chat' with {' or '.join(ARCHITECTURES)} is converted"
            )
        named = remote.values() if isinstance(remote, dict) else ()
        classes = {architecture, *(str(name).rsplit(".", 1)[-1] for name in named)}
        return {**data, "architecture": architecture, "reward_model": REWARD_MODEL in classes}

    @model_validator(mode="after")
    def _fits(self) -> Self:
        ratio, size = self.downsample_ratio, self.vision.image_size
        side = size // self.vision.patch_size
        if (1 / ratio) % 1 or side % int(1 / ratio):
            raise ValueError(f"downsample_ratio {ratio} does not divide {side}")
        if (self.force_image_size or size) != size:
            raise ValueError(f"force_image_size is {self.force_image_size}, not image_size {size}")
        return self


def read_original_config(config: dict[str, Any]) -> OriginalConfig:
    """Read `config.json` of an original checkpoint.

    Raises `CheckpointError` for another architecture and for each option that transformers' native
    class cannot express: they would be converted without an error, into another model.
    """
    try:
        return OriginalConfig.model_validate(config)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    where, value = ".".join(map(str, first["loc"])), first["input"]
    shown = "" if isinstance(value, dict) and len(value) > 4 else f" is {value!r:.80}"
    place = f"{where}{shown}: " if where else ""  # none: fields that do not fit together
    raise CheckpointError(
        f"config.json: {place}{first['msg'].removeprefix('Value error, ')}"
        + (_NOTHING_ELSE if first["type"] == "literal_error" else "")
    )


def _architecture(config: dict[str, Any]) -> str | None:
    found = config.get("architectures")
    return str(found[0]) if isinstance(found, list) and found else None


def _divides(where: str, whole: int, part: int) -> None:
    if whole % part:
        raise ValueError(f"{where}: {whole} is not a multiple of {part}")


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


def target_shapes(table: Mapping[str, Expected]) -> dict[str, tuple[int, ...]]:
    """Return every tensor of the native checkpoint with its shape."""
    return {part.name: part.shape for expected in table.values() for part in expected.parts}


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


def _split(
    old: str, new: str, shape: tuple[int, int], bias: bool, rows: Iterable[Rows]
) -> Iterator[tuple[str, Expected]]:
    """Give `rows` of the joint projection `old` to q, k and v of the attention `new`."""
    for kind, whole in (("weight", shape), ("bias", shape[:1]))[: 1 + bias]:
        yield (
            f"{old}.{kind}",
            Expected(
                whole,
                tuple(
                    Part(
                        f"{new}.{letter}_proj.{kind}",
                        (sum(stop - start for start, stop in part), *whole[1:]),
                        part,
                    )
                    for letter, part in zip("qkv", rows, strict=True)
                ),
            ),
        )


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
    rows = tuple(((at * width, (at + 1) * width),) for at in range(3))
    for number in range(vision.layers):
        old = f"vision_model.encoder.layers.{number}.attn.qkv"
        new = f"vision_tower.encoder.layer.{number}.attention"
        yield from _split(old, new, (3 * width, width), vision.qkv_bias, rows)


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
    shape = (queries + 2) * language.kv_heads * language.head_dim, language.hidden
    for number in range(language.layers):
        at = f"language_model.model.layers.{number}"
        yield from _split(f"{at}.attention.wqkv", f"{at}.self_attn", shape, language.bias, rows)
