"""Conversions from end to end: manifest, interruption, space, memory, what lies in the way."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoTokenizer, InternVLForConditionalGeneration

from tests.checkpoints.original_layout import (
    VERSIONS,
    Shape,
    config,
    sentencepiece_pieces,
    tensor_shapes,
    write_internlm2_tokenizer,
    write_original,
    write_qwen2_tokenizer,
    write_shards,
)
from vprm_search.checkpoints import (
    ConvertOptions,
    FileRecord,
    check_converted,
    convert_checkpoint,
    ensure_native,
    native_files,
)
from vprm_search.errors import CheckpointError, ConfigError
from vprm_search.scoring.families import FAMILIES, read_scorer_file

ROOT = Path(__file__).parents[2]


def _contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_original(tmp_path / "src", Shape(), shards=4)


@pytest.mark.parametrize("version", list(VERSIONS))
@pytest.mark.parametrize("shards", [1, 3])
def test_transformers_loads_it_natively(version: str, shards: int, tmp_path: Path) -> None:
    source = write_original(tmp_path / "src", VERSIONS[version], shards=shards)
    before = _contents(source)
    manifest = convert_checkpoint(source, tmp_path / "out")
    assert _contents(source) == before
    out = tmp_path / "out"
    model, info = InternVLForConditionalGeneration.from_pretrained(
        out, trust_remote_code=False, use_safetensors=True, output_loading_info=True, dtype="auto"
    )
    assert not any(info.values()), info
    assert sum(p.numel() for p in model.parameters()) == manifest.parameters
    assert len(model.state_dict()) == manifest.tensors
    assert model.generation_config.eos_token_id == AutoTokenizer.from_pretrained(
        out
    ).convert_tokens_to_ids("<|im_end|>")
    loaded = AutoConfig.from_pretrained(out)
    assert loaded.text_config.model_type == ("llama" if "1.0" in version else "qwen2")
    assert (out / "model.safetensors.index.json").exists() == (shards > 1)


def test_the_processor_has_imagenet_statistics(source: Path, tmp_path: Path) -> None:
    """CLIP's, the default of transformers, move the scores. It needs torchvision to be loaded."""
    convert_checkpoint(source, tmp_path / "out", ConvertOptions(max_tiles=5))
    processor = json.loads((tmp_path / "out" / "processor_config.json").read_text())
    for part in ("image_processor", "video_processor"):
        assert processor[part]["image_mean"] == [0.485, 0.456, 0.406]
        assert processor[part]["image_std"] == [0.229, 0.224, 0.225]
        assert processor[part]["size"] == {"height": 56, "width": 56}
    assert processor["image_processor"]["max_patches"] == 5
    assert processor["image_seq_length"] == 4


def test_the_manifest_is_true(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    manifest = convert_checkpoint(source, out)
    written = _contents(out)
    for record in manifest.files:
        content = written.pop(record.name)
        digest = hashlib.sha256(content).hexdigest()
        assert record == FileRecord(record.name, len(content), digest)
    assert list(written) == ["vprm_conversion.json"]
    for record in manifest.sources:
        content = (source / record.name).read_bytes()
        assert record.sha256 == hashlib.sha256(content).hexdigest()
    assert check_converted(out, digests=True) == manifest
    assert manifest.language_model == "internlm2"
    again = convert_checkpoint(source, tmp_path / "again")
    assert _contents(out) == _contents(tmp_path / "again")
    assert again == manifest


def test_the_scorer_file_holds_the_facts(source: Path, tmp_path: Path) -> None:
    convert_checkpoint(source, tmp_path / "out")
    facts = read_scorer_file(tmp_path / "out")
    layout, rule = facts.layout, facts.preprocess
    assert layout is not None
    assert rule is not None
    assert layout.system_prompt is not None
    assert layout.system_prompt.startswith("你是书生·万象")
    assert layout.begin_token == "<s>"
    assert (layout.max_steps, layout.plus_word, layout.minus_word) == (12, "+", "-")
    assert (rule.tile_size, rule.min_tiles, rule.max_tiles, rule.thumbnail) == (56, 1, 12, True)
    assert rule.mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize("written", ["", "You are strict."])
def test_a_system_message_in_the_config_counts(written: str, source: Path, tmp_path: Path) -> None:
    data = json.loads((source / "config.json").read_text()) | {"system_message": written}
    (source / "config.json").write_text(json.dumps(data))
    convert_checkpoint(source, tmp_path / "out", ConvertOptions(max_tiles=3))
    facts = json.loads((tmp_path / "out" / "vprm.json").read_text())
    assert facts["layout"]["system_prompt"] == written
    assert facts["preprocess"]["max_tiles"] == 3


def test_another_family_writes_its_name_only(source: Path, tmp_path: Path) -> None:
    convert_checkpoint(source, tmp_path / "out", ConvertOptions(family="mm-prm"))
    facts = json.loads((tmp_path / "out" / "vprm.json").read_text())
    assert facts == {"version": 1, "family": "mm-prm"}
    with pytest.raises(ConfigError, match="max_tiles"):
        ConvertOptions(max_tiles=0)


@pytest.mark.parametrize("version", list(VERSIONS))
def test_every_reader_finds_the_rotary_base(version: str, tmp_path: Path) -> None:
    """transformers 5 reads `rope_parameters`; 4.x reads the other two, or takes its defaults."""
    shape = VERSIONS[version]
    convert_checkpoint(write_original(tmp_path / "src", shape), tmp_path / "out")
    text = json.loads((tmp_path / "out" / "config.json").read_text())["text_config"]
    linear = (shape.rope_scaling or {}).get("type") == "linear"
    scaling = {"rope_type": "linear", "factor": 4.0} if linear else None
    assert text["rope_theta"] == shape.rope_theta
    assert text["rope_scaling"] == scaling
    plain = {"rope_type": "default"}
    assert text["rope_parameters"] == (scaling or plain) | {"rope_theta": shape.rope_theta}
    loaded = AutoConfig.from_pretrained(tmp_path / "out").text_config
    assert loaded.rope_parameters["rope_theta"] == shape.rope_theta
    assert loaded.rope_parameters["rope_type"] == ("linear" if linear else "default")


@pytest.mark.parametrize("version", list(VERSIONS))
def test_the_rotary_base_is_read_in_the_newer_spelling_too(version: str, tmp_path: Path) -> None:
    """Saved again by transformers 5, a config lost it: another base was taken (scores .39 off)."""
    source = write_original(tmp_path / "src", VERSIONS[version])
    convert_checkpoint(source, tmp_path / "before")
    data = json.loads((source / "config.json").read_text())
    language = data["llm_config"]
    theta, scaling = language.pop("rope_theta"), language.pop("rope_scaling") or {}
    named = {"rope_type": scaling.get("type", "default")} if scaling else {}
    language["rope_parameters"] = {"rope_theta": theta} | scaling | named
    (source / "config.json").write_text(json.dumps(data))
    convert_checkpoint(source, tmp_path / "after")
    made = [(tmp_path / name / "config.json").read_text() for name in ("before", "after")]
    assert made[0] == made[1]
    language["rope_theta"] = 2 * theta
    (source / "config.json").write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match="rope_theta"):
        convert_checkpoint(source, tmp_path / "out")


@pytest.mark.parametrize("version", ["v1.0", "v1.1"])
def test_a_stored_head_is_kept_whatever_the_flag_says(version: str, tmp_path: Path) -> None:
    """A flag that ties head and embedding dropped another head unread, and moved scores by .61."""
    shape = VERSIONS[version]
    source = write_original(tmp_path / "src", shape)
    data = json.loads((source / "config.json").read_text())
    data["llm_config"]["tie_word_embeddings"] = True
    (source / "config.json").write_text(json.dumps(data))
    manifest = convert_checkpoint(source, tmp_path / "out")
    assert manifest.dropped == ()
    assert "another head is stored" in " ".join(manifest.warnings)
    stored, made = _tensors(source), _tensors(tmp_path / "out")
    head = "output" if shape.llm == "internlm2" else "lm_head"
    kept = stored[f"language_model.{head}.weight"]
    assert torch.equal(made["language_model.lm_head.weight"], kept)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    assert config["text_config"]["tie_word_embeddings"] is False
    model = InternVLForConditionalGeneration.from_pretrained(tmp_path / "out", dtype="auto")
    assert torch.equal(model.get_output_embeddings().weight, kept)


def test_a_stored_head_that_is_the_embedding_is_dropped(tmp_path: Path) -> None:
    shape = VERSIONS["v1.1-tied"]
    source = write_original(tmp_path / "src", shape, shards=1)
    tensors = _tensors(source)
    embedding = tensors["language_model.model.embed_tokens.weight"]
    save_file(
        {**tensors, "language_model.lm_head.weight": embedding.clone()},
        source / "model.safetensors",
    )
    manifest = convert_checkpoint(source, tmp_path / "out")
    assert manifest.dropped == ("language_model.lm_head.weight",)
    assert manifest.warnings == ()


def _tensors(directory: Path) -> dict[str, torch.Tensor]:
    return {k: v for file in directory.glob("*.safetensors") for k, v in load_file(file).items()}


# --- what kind of model it is --------------------------------------------------------------------


def test_a_chat_model_is_refused_unless_a_family_is_named(tmp_path: Path) -> None:
    """It has the tensors of VisualPRM; its scores mean nothing."""
    chat = replace(VERSIONS["v1.1"], architecture="InternVLChatModel")
    source = write_original(tmp_path / "src", chat)
    with pytest.raises(CheckpointError, match=r"chat model.*mm-prm.*--family visualprm"):
        convert_checkpoint(source, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["src"]
    named = convert_checkpoint(source, tmp_path / "out", ConvertOptions(family="visualprm"))
    assert named.architecture == "InternVLChatModel"
    assert read_scorer_file(tmp_path / "out").family == "visualprm"


def test_the_class_of_the_remote_code_tells_a_reward_model(tmp_path: Path) -> None:
    source = write_original(tmp_path / "src", VERSIONS["v1.1"])
    data = json.loads((source / "config.json").read_text())
    data["architectures"] = ["InternVLChatModel"]
    (source / "config.json").write_text(json.dumps(data))
    convert_checkpoint(source, tmp_path / "out")
    # naming the family changes nothing, so the finished conversion is recognised
    again = convert_checkpoint(source, tmp_path / "out", ConvertOptions(family="visualprm"))
    assert again.architecture == "InternVLChatModel"


def test_only_families_with_these_weights_are_taken() -> None:
    rows = {row.name for row in FAMILIES.values() if row.backbone == "internvl"}
    assert set(native_files.FAMILIES) == rows
    for name in ("nosuch", "math-shepherd"):
        with pytest.raises(ConfigError, match=r"dreamprm-1\.5, mm-prm, visualprm"):
            ConvertOptions(family=name)


# --- interruption --------------------------------------------------------------------------------

_KILLED = """
import os, signal, sys
from pathlib import Path
from vprm_search.checkpoints import convert_checkpoint
source, out, limit = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
def progress(done, total):
    if done >= limit:
        os.kill(os.getpid(), signal.SIGKILL)
convert_checkpoint(source, out, on_progress=progress)
"""


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five files of about 9 MB, more than a chunk each."""
    shape = Shape(hidden=384, layers=3, intermediate=3072, heads=6, kv_heads=2)
    return write_original(tmp_path_factory.mktemp("big") / "src", shape, shards=5)


@pytest.fixture(scope="module")
def reference(big: Path) -> dict[str, bytes]:
    """What an undisturbed conversion gives."""
    convert_checkpoint(big, big.parent / "reference")
    return _contents(big.parent / "reference")


def _run_killed(source: Path, out: Path, share: float) -> int:
    total = sum(path.stat().st_size for path in source.glob("*.safetensors"))
    command = [sys.executable, "-c", _KILLED, str(source), str(out), str(int(total * share))]
    done = subprocess.run(command, cwd=ROOT, timeout=120, check=False, capture_output=True)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr.decode()
    return done.returncode


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
@pytest.mark.parametrize("shares", [(0.05,), (0.35, 0.3, 0.75), (0.55, 0.95), (0.999,)])
def test_a_killed_conversion_goes_on(
    shares: tuple[float, ...], big: Path, reference: dict[str, bytes], tmp_path: Path
) -> None:
    out, partial = tmp_path / "out", tmp_path / "out.partial"
    kept: dict[str, tuple[int, int]] = {}
    for share in shares:
        assert _run_killed(big, out, share) == -signal.SIGKILL
        assert not out.exists()
        with pytest.raises(CheckpointError, match="unfinished"):
            check_converted(partial)
        done = json.loads((partial / "vprm_progress.json").read_text())["done"]
        assert len(done) >= int(share * 5) - 1
        kept = {entry["target"]["name"]: _identity(partial, entry) for entry in done}
    convert_checkpoint(big, out)
    assert _contents(out) == reference
    assert {name: _file_identity(out / name) for name in kept} == kept, "copied again"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def _identity(partial: Path, entry: dict[str, dict[str, str]]) -> tuple[int, int]:
    return _file_identity(partial / entry["target"]["name"])


def _file_identity(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_ino, stat.st_mtime_ns


@pytest.fixture
def interrupted(source: Path, tmp_path: Path) -> Path:
    """A conversion that stopped by an error after two files."""

    def stop(done: int, total: int) -> None:
        if done > 0.6 * total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_checkpoint(source, tmp_path / "out", on_progress=stop)
    return tmp_path / "out.partial"


def test_a_damaged_finished_file_is_made_again(interrupted: Path, source: Path) -> None:
    first = interrupted / "model-00001-of-00004.safetensors"
    good = first.read_bytes()
    first.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    (interrupted / "stray.tmp").write_bytes(b"x")
    out = interrupted.with_name("out")
    convert_checkpoint(source, out)
    assert (out / first.name).read_bytes() == good
    assert not (out / "stray.tmp").exists()


def test_another_source_does_not_take_over_the_rest(interrupted: Path, source: Path) -> None:
    shutil.rmtree(source)
    other = write_original(source, Shape(), shards=4, seed=1)
    out = interrupted.with_name("out")
    convert_checkpoint(other, out)
    assert check_converted(out, digests=True) is not None
    convert_checkpoint(other, interrupted.with_name("fresh"))
    assert _contents(out) == _contents(interrupted.with_name("fresh"))


@pytest.mark.parametrize("content", [b"", b"[]", b'{"key": 1}', b'{"done": [{}]}'])
def test_a_damaged_journal_starts_anew(interrupted: Path, source: Path, content: bytes) -> None:
    (interrupted / "vprm_progress.json").write_bytes(content)
    out = interrupted.with_name("out")
    convert_checkpoint(source, out)
    assert check_converted(out, digests=True) is not None


def test_killed_between_the_journal_and_the_rename(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert_checkpoint(source, out)
    before = _file_identity(out / "config.json")
    out.rename(tmp_path / "out.partial")
    convert_checkpoint(source, out)
    assert _file_identity(out / "config.json") == before


# --- what lies in the way ------------------------------------------------------------------------


def test_converting_again_verifies(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = convert_checkpoint(source, out)
    before = _file_identity(out / "config.json")
    assert convert_checkpoint(source, out) == first
    assert _file_identity(out / "config.json") == before
    weights = out / "model-00002-of-00004.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    check_converted(out)
    with pytest.raises(CheckpointError, match="was changed"):
        convert_checkpoint(source, out)
    weights.write_bytes(content[:-1])
    with pytest.raises(CheckpointError, match="another size"):
        check_converted(out)


def test_other_things_at_the_target_are_left_alone(source: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("x")
    (tmp_path / "other.partial").mkdir()
    (tmp_path / "other.partial" / "thesis.txt").write_text("years of work")
    for name in ("full", "file", "other"):
        with pytest.raises(CheckpointError, match=r"is not a conversion|in the way"):
            convert_checkpoint(source, tmp_path / name)
    assert (tmp_path / "full" / "thesis.txt").exists()
    assert (tmp_path / "other.partial" / "thesis.txt").exists()
    (tmp_path / "empty").mkdir()
    convert_checkpoint(source, tmp_path / "empty")
    with pytest.raises(CheckpointError, match="lies in the source"):
        convert_checkpoint(source, source / "out")
    convert_checkpoint(source, tmp_path / "tiles", ConvertOptions(max_tiles=2))
    with pytest.raises(CheckpointError, match="these options"):
        convert_checkpoint(source, tmp_path / "tiles")


def test_no_lock_is_left(source: Path, tmp_path: Path) -> None:
    """Neither after success nor after an error, whenever it came."""

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_checkpoint(source, tmp_path / "out", on_progress=stop)
    (tmp_path / "taken").write_text("x")
    with pytest.raises(CheckpointError):
        convert_checkpoint(source, tmp_path / "taken")
    convert_checkpoint(source, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "src", "taken"]


def test_a_place_that_cannot_be_written_is_named(source: Path, tmp_path: Path) -> None:
    """It ended as a bug of the program, exit code 70."""
    (tmp_path / "file").write_text("x")
    places = [tmp_path / "file" / "out"]
    if sys.platform == "linux":
        places.append(Path("/proc/self/out"))  # nobody may write there, root included
    for out in places:
        with pytest.raises(CheckpointError, match=rf"{out}.*may write"):
            convert_checkpoint(source, out)
    with pytest.raises(CheckpointError, match="VPRM_SEARCH_CACHE"):
        ensure_native(source, cache_dir=places[-1])


def test_too_little_space_is_said_before_anything_is_written(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 64 << 20})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(CheckpointError, match="bytes free"):
        convert_checkpoint(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not list((tmp_path / "out.partial").glob("*.safetensors*"))


def test_a_source_that_changes_meanwhile_is_refused(source: Path, tmp_path: Path) -> None:
    last = source / "model-00004-of-00004.safetensors"

    def cut(done: int, total: int) -> None:
        if last.stat().st_size > 1000:
            os.truncate(last, 1000)

    with pytest.raises(CheckpointError, match=r"cut off|changed"):
        convert_checkpoint(source, tmp_path / "out", on_progress=cut)
    assert not (tmp_path / "out").exists()


# --- memory --------------------------------------------------------------------------------------

_PEAK = """
import sys
from vprm_search.checkpoints import convert_checkpoint
import filelock, tokenizers
def high_water():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
before = high_water()
convert_checkpoint(sys.argv[1], sys.argv[2])
print(high_water() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("llm", ["internlm2", "qwen2"])
def test_peak_memory_stays_below_two_files(llm: str, tmp_path: Path) -> None:
    """Of files of 20 MB and more, far less than one is ever held."""
    source = tmp_path / "src"
    source.mkdir()
    shape = Shape(llm=llm, hidden=1024, layers=4, heads=8, kv_heads=2, intermediate=2048)
    write = write_internlm2_tokenizer if llm == "internlm2" else write_qwen2_tokenizer
    rows = write(source)
    (source / "config.json").write_text(json.dumps(config(shape, rows)))
    tensors = {name: torch.zeros(size) for name, size in tensor_shapes(shape, rows).items()}
    write_shards(source, tensors, 5)
    smallest = min(path.stat().st_size for path in source.glob("*.safetensors"))
    assert smallest > 15e6
    command = [sys.executable, "-c", _PEAK, str(source), str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, timeout=300, check=True, capture_output=True)
    peak = int(done.stdout)
    print(f"{llm}: held {peak / 1e6:.1f} MB at most; the smallest file has {smallest / 1e6:.1f} MB")
    assert 1e6 < peak < 2 * smallest


def test_the_builders_have_the_published_special_ids() -> None:
    """The last six pieces are replaced by added tokens, as in InternLM2's files."""
    assert [p for p, _, _ in sentencepiece_pieces()][-6:] == [
        f"[UNUSED_TOKEN_{n}]" for n in range(142, 148)
    ]
