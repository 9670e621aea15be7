"""`ensure_native`: what comes back as it is, what is converted once, what a hub name needs."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.checkpoints.original_layout import VERSIONS, Shape, write_original
from tests.scoring.random_internvl import write_checkpoint
from vprm_search.checkpoints import check_converted, convert_checkpoint, ensure_native
from vprm_search.errors import CheckpointError
from vprm_search.scoring import TransformersScorer
from vprm_search.types import Problem, ScoreRequest

ROOT = Path(__file__).parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_original(tmp_path / "Vis ual-PRM", Shape())


def test_native_directories_come_back_as_they_are(source: Path, tmp_path: Path) -> None:
    native = write_checkpoint(tmp_path / "native")
    cache = tmp_path / "cache"
    assert ensure_native(native, cache_dir=cache) == native
    convert_checkpoint(source, tmp_path / "out")
    assert ensure_native(str(tmp_path / "out"), cache_dir=cache) == tmp_path / "out"
    (tmp_path / "empty").mkdir()
    assert ensure_native(tmp_path / "empty", cache_dir=cache) == tmp_path / "empty"
    assert not cache.exists()


def test_an_original_is_converted_once(source: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    found = ensure_native(source, cache_dir=cache)
    assert found.parent == cache
    assert found.name.startswith("Vis-ual-PRM-")
    made = (found / "config.json").stat()
    assert ensure_native(source, cache_dir=cache) == found
    assert (found / "config.json").stat().st_mtime_ns == made.st_mtime_ns
    assert [path.name for path in cache.iterdir()] == [found.name]
    TransformersScorer.from_pretrained(found, device="cpu")


def test_a_changed_source_is_another_conversion(source: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = ensure_native(source, cache_dir=cache)
    shutil.rmtree(source)
    write_original(source, Shape(), seed=1)
    second = ensure_native(source, cache_dir=cache)
    assert first != second
    config = source / "config.json"
    config.write_text(
        config.read_text().replace('"min_dynamic_patch": 1', '"min_dynamic_patch": 2')
    )
    assert ensure_native(source, cache_dir=cache) not in (first, second)
    (source / "README.json").write_text("{}")  # a file that no conversion reads
    assert len(list(cache.iterdir())) == 3
    ensure_native(source, cache_dir=cache)
    assert len(list(cache.iterdir())) == 3


def test_dates_and_places_do_not_matter(source: Path, tmp_path: Path) -> None:
    """A copy, or `touch`, would otherwise convert 16 GB anew."""
    cache = tmp_path / "cache"
    first = ensure_native(source, cache_dir=cache)
    for file in source.iterdir():
        os.utime(file, ns=(1, 1))
    assert ensure_native(source, cache_dir=cache) == first
    copy = tmp_path / "elsewhere" / source.name
    shutil.copytree(source, copy)
    assert ensure_native(copy, cache_dir=cache) == first


def test_a_chat_model_needs_a_family_every_time(tmp_path: Path) -> None:
    """Also when it was converted before, by somebody who named one."""
    source = write_original(tmp_path / "chat", Shape(architecture="InternVLChatModel"))
    cache = tmp_path / "cache"
    found = ensure_native(source, cache_dir=cache, family="mm-prm")
    assert ensure_native(source, cache_dir=cache, family="visualprm") == found
    with pytest.raises(CheckpointError, match="chat model"):
        ensure_native(source, cache_dir=cache)


def test_the_cache_follows_the_environment(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VPRM_SEARCH_CACHE", str(tmp_path / "a"))
    assert ensure_native(source).parent == tmp_path / "a" / "checkpoints"
    monkeypatch.delenv("VPRM_SEARCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert ensure_native(source).parent == tmp_path / "b" / "vprm-search" / "checkpoints"


def test_unfinished_and_damaged_conversions_are_refused(source: Path, tmp_path: Path) -> None:
    found = ensure_native(source, cache_dir=tmp_path / "cache")
    (found / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="convert again"):
        ensure_native(found)
    with pytest.raises(CheckpointError, match="convert again"):
        ensure_native(source, cache_dir=tmp_path / "cache")
    partial = tmp_path / "x.partial"
    partial.mkdir()
    (partial / "vprm_progress.json").write_text("{}")
    with pytest.raises(CheckpointError, match="unfinished"):
        ensure_native(partial)


_CONVERT = """
import sys
from vprm_search.checkpoints import ensure_native
print(ensure_native(sys.argv[1], cache_dir=sys.argv[2]))
"""


@pytest.mark.slow
def test_processes_at_the_same_time_convert_once(tmp_path: Path) -> None:
    shape = Shape(hidden=384, layers=3, intermediate=3072)
    source, cache = write_original(tmp_path / "src", shape, shards=4), tmp_path / "cache"
    command = [sys.executable, "-c", _CONVERT, str(source), str(cache)]
    started = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(4)
    ]
    found = set()
    for process in started:
        output, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors.decode()
        found.add(output.decode().strip())
    (only,) = found
    assert check_converted(Path(only), digests=True) is not None
    assert [path.name for path in cache.iterdir()] == [Path(only).name]


def test_the_scorer_converts_on_first_use(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VPRM_SEARCH_CACHE", str(tmp_path / "cache"))
    request = ScoreRequest(Problem("What is the area?"), ("Step 1", "so 18"))
    convert_checkpoint(source, tmp_path / "out")
    values = []
    for place in (source, tmp_path / "out", source):
        scorer = TransformersScorer.from_pretrained(place, device="cpu")
        (result,) = scorer.score_sync([request])
        values.append([score.value for score in result.scores])
    assert values[0] == values[1] == values[2]
    assert None not in values[0]
    assert len(list((tmp_path / "cache" / "checkpoints").iterdir())) == 1


# --- hub names -----------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """A hub cache as huggingface_hub keeps it: blobs by digest, links by name in a snapshot."""
    repo = tmp_path / "hub" / "models--OpenGVLab--VisualPRM-8B"
    snapshot, blobs = repo / "snapshots" / COMMIT, repo / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    original = write_original(tmp_path / "plain", VERSIONS["v1.0"])
    (original / "pytorch_model.bin").write_bytes(b"\x80\x04never")
    for path in original.iterdir():
        blob = blobs / hashlib.sha256(path.read_bytes()).hexdigest()
        path.rename(blob)
        (snapshot / path.name).symlink_to(os.path.relpath(blob, snapshot))
    return tmp_path / "hub"


def test_a_hub_name_is_taken_from_the_cache(hub: Path, tmp_path: Path) -> None:
    found = ensure_native(
        "OpenGVLab/VisualPRM-8B",
        COMMIT,
        tmp_path / "cache",
        local_files_only=True,
        hub_cache_dir=hub,
    )
    assert found.name.startswith("VisualPRM-8B-")
    assert check_converted(found, digests=True) is not None
    assert not any(path.is_symlink() for path in found.iterdir())


def test_the_scorer_takes_a_hub_name(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VPRM_SEARCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    scorer = TransformersScorer.from_pretrained(
        "OpenGVLab/VisualPRM-8B", revision=COMMIT, device="cpu"
    )
    (result,) = scorer.score_sync([ScoreRequest(Problem("q"), ("a step",))])
    assert result.scores[0].value is not None


@pytest.mark.parametrize("revision", [None, "main", "v1.0", COMMIT[:8], COMMIT.upper()])
def test_a_hub_name_needs_a_commit(revision: str | None, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="40 hex digits"):
        ensure_native("OpenGVLab/VisualPRM-8B", revision, tmp_path, local_files_only=True)


@pytest.mark.parametrize(
    "name", ["nowhere", "/no/such/place", "../a/b", "a/b/c", "a/../b", "-/x", ""]
)
def test_what_is_no_place_and_no_name(name: str, tmp_path: Path) -> None:
    if name == "":
        name = str(tmp_path / "missing")
    with pytest.raises(CheckpointError, match="is no directory; give"):
        ensure_native(name, COMMIT, tmp_path, local_files_only=True)
    with pytest.raises(CheckpointError, match="is no directory; give"):
        ensure_native(Path("Owner/Name"), COMMIT, tmp_path, local_files_only=True)


def test_what_is_not_there_is_a_typed_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be had"):
        ensure_native("Owner/Name", COMMIT, tmp_path, local_files_only=True, hub_cache_dir=tmp_path)


def test_a_revision_of_a_directory_is_refused(source: Path) -> None:
    with pytest.raises(CheckpointError, match="belongs to a hub name"):
        ensure_native(source, COMMIT)


def test_only_harmless_files_are_fetched() -> None:
    from fnmatch import fnmatch

    from vprm_search.checkpoints.source import WANTED_FILES

    def wanted(name: str) -> bool:
        return any(fnmatch(name, pattern) for pattern in WANTED_FILES)

    assert all(map(wanted, ("model-00001-of-00004.safetensors", "config.json", "tokenizer.model")))
    for name in (
        "pytorch_model.bin",
        "x.pt",
        "x.pth",
        "x.pkl",
        "x.ckpt",
        "modeling.py",
        "x.msgpack",
    ):
        assert not wanted(name)
