"""Names, shapes and rows: the mapping against transformers' own model, and as a bijection."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import InternVLForConditionalGeneration

from tests.checkpoints.original_layout import Shape, config, tensor_shapes, write_original
from vprm_search.checkpoints import convert_checkpoint
from vprm_search.checkpoints.native_files import model_config
from vprm_search.checkpoints.original import mapping, qkv_rows, read_original_config, target_shapes

VOCAB = 50
IDS = {"<IMG_CONTEXT>": 7, "<|im_end|>": 3}


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    kv_heads = draw(st.integers(1, 3))
    heads = kv_heads * draw(st.integers(1, 3))
    vision_heads = draw(st.integers(1, 3))
    return Shape(
        llm=draw(st.sampled_from(["internlm2", "qwen2"])),
        hidden=heads * 2 * draw(st.integers(1, 4)),
        layers=draw(st.integers(1, 3)),
        heads=heads,
        kv_heads=kv_heads,
        intermediate=draw(st.integers(1, 9)),
        bias=draw(st.booleans()),
        tied=draw(st.booleans()),
        vision_hidden=vision_heads * draw(st.integers(1, 5)),
        vision_layers=draw(st.integers(1, 3)),
        vision_heads=vision_heads,
        tile=28,
        norm_type=draw(st.sampled_from(["layer_norm", "rms_norm"])),
        qk_norm=draw(st.booleans()),
        qkv_bias=draw(st.booleans()),
    )


@given(kv_heads=st.integers(1, 12), queries=st.integers(1, 12), head_dim=st.integers(1, 16))
def test_grouped_qkv_is_a_bijection_of_rows(kv_heads: int, queries: int, head_dim: int) -> None:
    parts = qkv_rows(kv_heads, queries, head_dim)
    rows = [row for part in parts for start, stop in part for row in range(start, stop)]
    assert sorted(rows) == list(range((queries + 2) * kv_heads * head_dim))
    # the published layout: [groups, queries + 2, head_dim], written here with a reshape
    blocks = torch.arange(len(rows)).reshape(kv_heads, queries + 2, head_dim)
    expected = (blocks[:, :-2], blocks[:, -2], blocks[:, -1])
    for part, want in zip(parts, expected, strict=True):
        assert [r for start, stop in part for r in range(start, stop)] == want.flatten().tolist()


@settings(max_examples=25)
@given(shape=shapes())
def test_the_targets_are_the_native_model(shape: Shape) -> None:
    """transformers, asked for the native model of our config, has exactly our tensors."""
    original = read_original_config(config(shape, VOCAB))
    native = model_config(original, "float32", IDS, None)
    loaded = InternVLForConditionalGeneration.config_class(**native)
    with torch.device("meta"):
        model = InternVLForConditionalGeneration(loaded)
    ours = {_model_name(name): size for name, size in target_shapes(mapping(original)).items()}
    assert ours == {name: tuple(value.shape) for name, value in model.state_dict().items()}


@settings(max_examples=60)
@given(shape=shapes())
def test_every_row_of_every_original_tensor_is_used_once(shape: Shape) -> None:
    table = mapping(read_original_config(config(shape, VOCAB)))
    published = tensor_shapes(shape, VOCAB)
    assert {name: expected.shape for name, expected in table.items()} == published
    for name, expected in table.items():
        rows = [r for part in expected.parts for a, b in part.rows for r in range(a, b)]
        copies = 2 if shape.tied and "embed" in name and "language" in name else 1
        if shape.tied and name.startswith(("language_model.output", "language_model.lm_head")):
            copies = 0
        assert sorted(rows) == sorted(list(range(expected.shape[0])) * copies)


@settings(max_examples=8)
@given(shape=shapes(), dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
def test_values_stay_bit_for_bit(
    shape: Shape, dtype: torch.dtype, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("bits")
    shape = replace(shape, dtype=dtype)
    source = write_original(root / "src", shape, shards=3)
    convert_checkpoint(source, root / "out")
    before, after = _tensors(source), _tensors(root / "out")
    if shape.tied:
        head = after.pop("language_model.lm_head.weight")
        assert torch.equal(head, after["language_model.model.embed_tokens.weight"])
    for name in [name for name in before if name.endswith(("qkv.weight", "qkv.bias"))]:
        whole, kind = before.pop(name), name.rsplit(".", 1)[1]
        at = _native_attention(name)
        q, k, v = (after.pop(f"{at}.{letter}_proj.{kind}") for letter in "qkv")
        if ".wqkv." in name:
            per_group = (shape.kv_heads, -1, shape.hidden // shape.heads, *whole.shape[1:])
            joined = torch.cat([part.reshape(per_group) for part in (q, k, v)], dim=1)
        else:
            joined = torch.cat([q, k, v])
        assert torch.equal(joined.reshape(whole.shape), whole)
    # what is left was only renamed
    assert Counter(map(_bits, before.values())) == Counter(map(_bits, after.values()))


def _tensors(directory: Path) -> dict[str, torch.Tensor]:
    return {k: v for file in directory.glob("*.safetensors") for k, v in load_file(file).items()}


def _bits(value: torch.Tensor) -> tuple[str, tuple[int, ...], bytes]:
    raw = value.contiguous().view(torch.uint8).numpy().tobytes()
    return str(value.dtype), tuple(value.shape), raw


def _native_attention(name: str) -> str:
    number = name.split("layers.")[1].split(".")[0]
    if name.startswith("vision_model"):
        return f"vision_tower.encoder.layer.{number}.attention"
    return f"language_model.model.layers.{number}.self_attn"


def _model_name(stored: str) -> str:
    """Return the name inside the model of a name in a file, as transformers renames it."""
    if stored.startswith("language_model.model."):
        return "model.language_model." + stored.removeprefix("language_model.model.")
    if stored.startswith("language_model.lm_head."):
        return stored.removeprefix("language_model.")
    return "model." + stored
