"""What is refused in a source: pickles, strange paths, missing, extra and misshapen tensors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.checkpoints.original_layout import Shape, config, write_original
from vprm_search.checkpoints import convert_checkpoint, ensure_native
from vprm_search.checkpoints.original import read_original_config
from vprm_search.errors import CheckpointError

FIRST = "model-00001-of-00002.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_original(tmp_path / "src", Shape())


def _refused(source: Path, reason: str) -> None:
    out = source.parent / "out"
    with pytest.raises(CheckpointError, match=reason):
        convert_checkpoint(source, out)
    assert sorted(p.name for p in source.parent.iterdir()) == ["src"], "something was written"


class _Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (self.path, "boom"))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth"])
def test_pickles_are_refused_and_never_opened(source: Path, name: str, tmp_path: Path) -> None:
    for file in source.glob("*.safetensors*"):
        file.unlink()
    canary = source / "canary"
    torch.save(_Bomb(canary), source / name)
    _refused(source, "pickles")
    with pytest.raises(CheckpointError, match=name):
        ensure_native(source, cache_dir=tmp_path / "cache")
    assert not canary.exists()
    torch.load(source / name, weights_only=False)
    assert canary.exists(), "the canary does not sing: this test shows nothing"


def test_pickles_beside_safetensors_are_left_alone(source: Path, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    torch.save(_Bomb(canary), source / "pytorch_model.bin")
    convert_checkpoint(source, tmp_path / "out")
    assert not canary.exists()
    assert not list((tmp_path / "out").glob("*.bin"))
    assert not list((tmp_path / "out").glob("*.py"))


@pytest.mark.parametrize(
    "name",
    [
        "../outside.safetensors",
        "/etc/passwd",
        "sub/x.safetensors",
        "..\\x.safetensors",
        "x.bin",
        ".safetensors",
        "a\0.safetensors",
        "",
    ],
)
def test_an_index_cannot_point_elsewhere(source: Path, name: str) -> None:
    index = json.loads((source / INDEX).read_text())
    index["weight_map"]["mlp1.0.bias"] = name
    (source / INDEX).write_text(json.dumps(index))
    _refused(source, "only plain names")


@pytest.mark.parametrize("name", [FIRST, "config.json", "tokenizer.model"])
def test_a_link_cannot_lead_outside(source: Path, name: str, tmp_path_factory: Any) -> None:
    outside = tmp_path_factory.mktemp("outside") / name
    (source / name).rename(outside)
    (source / name).symlink_to(outside)
    _refused(source, "outside the checkpoint")


def test_a_missing_file_is_named(source: Path) -> None:
    (source / FIRST).unlink()
    _refused(source, FIRST)


def test_an_index_that_disagrees_with_the_files_is_refused(source: Path) -> None:
    index = json.loads((source / INDEX).read_text())
    name = next(n for n, home in index["weight_map"].items() if home == FIRST)
    index["weight_map"][name] = "model-00002-of-00002.safetensors"
    (source / INDEX).write_text(json.dumps(index))
    _refused(source, name)


def test_several_files_need_an_index(source: Path) -> None:
    (source / INDEX).unlink()
    _refused(source, INDEX)


def _change(source: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(source / FIRST)
    change(tensors)
    save_file(tensors, source / FIRST)
    index = json.loads((source / INDEX).read_text())
    homes = {n: home for n, home in index["weight_map"].items() if home != FIRST}
    index["weight_map"] = homes | dict.fromkeys(tensors, FIRST)
    (source / INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t.pop("mlp1.0.weight"), "lack tensors.*mlp1.0.weight"),
        (lambda t: t.update({"value_head.weight": torch.zeros(2)}), "too many.*value_head"),
        (lambda t: t.update({"mlp1.0.weight": torch.zeros(3)}), r"misshape.*\(3,\)"),
        (lambda t: t.update({"mlp1.0.weight": torch.zeros(128, dtype=torch.int8)}), "I8"),
        (lambda t: t.update({"mlp1.0.weight": torch.zeros(128, dtype=torch.float64)}), "F64"),
    ],
)
def test_other_tensors_than_the_models_are_refused(
    source: Path, change: Callable[[dict[str, torch.Tensor]], object], reason: str
) -> None:
    _change(source, change)
    _refused(source, reason)


def test_a_tensor_in_two_files_is_refused(source: Path) -> None:
    second = source / "model-00002-of-00002.safetensors"
    save_file(load_file(second) | {"mlp1.0.weight": torch.zeros(128)}, second)
    _refused(source, "mlp1.0.weight is in")


def test_computed_frequencies_are_dropped_and_said(source: Path, tmp_path: Path) -> None:
    name = "language_model.model.layers.0.attention.rotary_emb.inv_freq"
    _change(source, lambda t: t.update({name: torch.zeros(4)}))
    manifest = convert_checkpoint(source, tmp_path / "out")
    assert manifest.dropped == (name,)


@pytest.mark.parametrize("at", [0, 7, 100, -1])
def test_truncated_weights_are_refused(source: Path, at: int) -> None:
    (source / FIRST).write_bytes((source / FIRST).read_bytes()[:at])
    _refused(source, "again")


@pytest.mark.parametrize(
    "name", ["config.json", INDEX, "tokenizer_config.json", "added_tokens.json"]
)
@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe", b"[" * 100_000])
def test_damaged_json_is_refused(source: Path, name: str, content: bytes) -> None:
    (source / name).write_bytes(content)
    _refused(source, name)


@pytest.mark.parametrize(
    ("section", "changes", "reason"),
    [
        ("", {"architectures": ["InternVLForEverything"]}, "InternVLForEverything"),
        ("", {"model_type": "llava"}, "llava"),
        ("", {"ps_version": "v1"}, "ps_version"),
        ("", {"ps_version": None}, "ps_version"),
        ("", {"select_layer": -4}, "select_layer"),
        ("", {"template": "Hermes-2"}, "Hermes-2"),
        ("", {"use_llm_lora": 16}, "use_llm_lora"),
        ("", {"force_image_size": 448}, "force_image_size"),
        ("", {"downsample_ratio": 0.3}, "downsample_ratio"),
        ("", {"downsample_ratio": 0}, "downsample_ratio"),
        ("", {"system_message": 3}, "system_message"),
        ("", {"llm_config": None}, "llm_config"),
        ("vision_config", {"norm_type": "batch_norm"}, "batch_norm"),
        ("vision_config", {"layer_norm_eps": 1e-5, "qk_normalization": True}, "layer_norm_eps"),
        ("vision_config", {"num_attention_heads": 5}, "multiple"),
        ("vision_config", {"hidden_size": -32}, "hidden_size"),
        ("vision_config", {"hidden_size": "32"}, "hidden_size"),
        ("llm_config", {"architectures": ["Phi3ForCausalLM"]}, "Phi3"),
        ("llm_config", {"rope_scaling": {"type": "yarn", "factor": 2.0}}, "yarn"),
        ("llm_config", {"rope_scaling": [2]}, "rope_scaling"),
        ("llm_config", {"rope_pos_id_version": "v2pe_fix"}, "v2pe_fix"),
        ("llm_config", {"use_sliding_window": True}, "sliding"),
        ("llm_config", {"num_key_value_heads": 4}, "multiple"),
        ("llm_config", {"num_hidden_layers": float("inf")}, "num_hidden_layers"),
        ("vision_config", {"num_hidden_layers": 10**9}, "num_hidden_layers"),
    ],
)
def test_unsupported_configs_are_typed_errors(
    section: str, changes: dict[str, Any], reason: str
) -> None:
    data = config(Shape(), 50)
    (data[section] if section else data).update(changes)
    with pytest.raises(CheckpointError, match=reason):
        read_original_config(data)
