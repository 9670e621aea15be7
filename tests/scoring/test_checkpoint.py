"""Directories that cannot be scored with are refused before any weight is read."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from tests.scoring.random_internvl import write_checkpoint
from vprm_search.errors import CheckpointError, ConfigError
from vprm_search.scoring import PreprocessConfig, PrmLayout, ScorerFile, TransformersScorer
from vprm_search.scoring.engine.checkpoint import load_checkpoint, load_tokenizer


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("good"))


def edit_config(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def apply(directory: Path) -> None:
        config = json.loads((directory / "config.json").read_text())
        change(config)
        (directory / "config.json").write_text(json.dumps(config))

    return apply


def edit_weights(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def apply(directory: Path) -> None:
        weights = load_file(directory / "model.safetensors")
        change(weights)
        save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})

    return apply


def pickled_only(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")


def without_tokenizer(directory: Path) -> None:
    for file in directory.glob("tokenizer*"):
        file.unlink()


def other_tile_size(directory: Path) -> None:
    ScorerFile(preprocess=PreprocessConfig(tile_size=448)).write(directory)


def drop_a_layer(weights: dict[str, torch.Tensor]) -> None:
    del weights[next(name for name in weights if "layers.1.mlp" in name)]


def other_shape(weights: dict[str, torch.Tensor]) -> None:
    name = next(name for name in weights if name.endswith("lm_head.weight"))
    weights[name] = weights[name][:, :-1].contiguous()


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "no config": (lambda d: (d / "config.json").unlink(), "no config.json"),
    "config is no JSON": (lambda d: (d / "config.json").write_text("{"), "cannot be read as JSON"),
    "remote code": (edit_config(lambda c: c.update(model_type="internvl_chat")), "converted"),
    "other model": (edit_config(lambda c: c.update(model_type="qwen2_vl")), "'qwen2_vl'"),
    "other text model": (
        edit_config(lambda c: c["text_config"].update(model_type="gemma2")),
        "'gemma2'",
    ),
    "sliding window": (
        edit_config(lambda c: c["text_config"].update(layer_types=["sliding_attention"] * 3)),
        "sliding window",
    ),
    "pickle": (pickled_only, r"no \*\.safetensors"),
    "empty tokenizer": (without_tokenizer, "no tokenizer"),
    "other image token": (edit_config(lambda c: c.update(image_token_id=7)), "image token"),
    "other tile size": (other_tile_size, "448 pixels"),
    "other tile tokens": (edit_config(lambda c: c.update(image_seq_length=9)), "9"),
    "missing weight": (edit_weights(drop_a_layer), "do not fit"),
    "weight of another shape": (edit_weights(other_shape), "weights"),
    "truncated weights": (
        lambda d: (d / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{"),
        "weights",
    ),
    "broken vprm.json": (lambda d: (d / "vprm.json").write_text('{"layuot": 1}'), r"vprm\.json"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_directories_are_refused(good: Path, tmp_path: Path, name: str) -> None:
    directory = tmp_path / "model"
    shutil.copytree(good, directory)
    damage, message = BROKEN[name]
    damage(directory)
    with pytest.raises(CheckpointError, match=message):
        TransformersScorer.from_pretrained(directory)


def test_a_model_name_needs_a_commit() -> None:
    with pytest.raises(CheckpointError, match="commit"):
        TransformersScorer.from_pretrained("OpenGVLab/VisualPRM-8B")


def test_code_beside_the_weights_never_runs(good: Path, tmp_path: Path) -> None:
    directory = tmp_path / "model"
    shutil.copytree(good, directory)
    canary = tmp_path / "canary"
    code = f"open({str(canary)!r}, 'w')\n"
    for name in ("modeling_internvl_chat.py", "tokenization_internlm2.py"):
        (directory / name).write_text(code)
    edit_config(
        lambda c: c.update(
            auto_map={"AutoModel": "modeling_internvl_chat.InternVLChatModel"},
        )
    )(directory)
    file = directory / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    settings["auto_map"] = {"AutoTokenizer": ["tokenization_internlm2.Tokenizer", None]}
    file.write_text(json.dumps(settings))
    TransformersScorer.from_pretrained(directory)
    assert not canary.exists()


def test_a_layout_that_does_not_fit_the_tokenizer_is_refused(good: Path) -> None:
    with pytest.raises(CheckpointError, match="not_there"):
        TransformersScorer.from_pretrained(good, layout=PrmLayout(im_start="<|not_there|>"))


@pytest.mark.parametrize("dtype", ["float33", "load", "nn"])
def test_an_unknown_dtype_is_refused(good: Path, dtype: str) -> None:
    with pytest.raises(ConfigError, match="float32"):
        TransformersScorer.from_pretrained(good, dtype=dtype)


@pytest.mark.parametrize("device", ["tpu", "cuda:99", "cpu:x"])
def test_a_device_that_is_not_there_is_refused_by_name(good: Path, device: str) -> None:
    with pytest.raises(ConfigError, match=f"device '{device}' cannot be used here"):
        TransformersScorer.from_pretrained(good, device=device)


@pytest.mark.parametrize("part", ["whole", "text", "both"])
def test_a_stored_head_is_read_although_the_config_says_tied(
    good: Path, tmp_path: Path, part: str
) -> None:
    directory = shutil.copytree(good, tmp_path / "model")
    config = json.loads((directory / "config.json").read_text())
    config["tie_word_embeddings"] = part != "text"
    config["text_config"]["tie_word_embeddings"] = part != "whole"
    (directory / "config.json").write_text(json.dumps(config))
    plain, tied = load_checkpoint(good), load_checkpoint(directory)
    hidden = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(plain.readout(hidden), tied.readout(hidden))
    if part == "text":
        return  # the whole says that a head is stored: without one the directory is refused
    edit_weights(lambda weights: weights.pop("language_model.lm_head.weight"))(directory)
    shared = load_checkpoint(directory).model  # nothing else to read
    assert torch.equal(shared.lm_head.weight, shared.get_input_embeddings().weight)


def test_a_large_tokenizer_that_is_none_of_mistrals_loads_without_a_warning(
    good: Path, tmp_path: Path
) -> None:
    """Converted configs do not say which transformers wrote them; v1.1 has 151,674 words."""
    words = {word: n for n, word in enumerate(["a", *map(str, range(100_001))])}
    large = Tokenizer(WordLevel(words, unk_token="a"))
    large.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=large).save_pretrained(tmp_path)
    config = json.loads((good / "config.json").read_text())
    config.pop("transformers_version", None)
    (tmp_path / "config.json").write_text(json.dumps(config))
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    try:
        tokenizer = load_tokenizer(tmp_path)
    finally:
        logger.removeHandler(handler)
    assert len(tokenizer) > 100_000
    assert said == []
