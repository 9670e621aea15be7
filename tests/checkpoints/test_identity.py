"""A checkpoint's name follows its bytes: not its dates, not its place."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest

from vprm_search.checkpoints.identity import DIGESTS_FILE, checkpoint_digest, file_digests

LARGE = (256 << 20) + 4096  # as a shard of a real checkpoint is read


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a checkpoint with a large (sparse) shard, and files that are read whole."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.model").write_bytes(b"pieces")
    with (folder / "model.safetensors").open("wb") as shard:
        shard.write(b"header")
        shard.truncate(LARGE)
    return folder


def overwrite(path: Path, at: int) -> None:
    """Change one byte and hide it: same size, same time of change."""
    stat = path.stat()
    with path.open("r+b") as stream:
        stream.seek(at)
        byte = stream.read(1)
        stream.seek(at)
        stream.write(bytes([byte[0] ^ 1]))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_a_copy_and_a_touch_keep_the_identity_and_a_byte_changes_it(
    folder: Path, tmp_path: Path
) -> None:
    before = checkpoint_digest(folder)
    copy = shutil.copytree(folder, tmp_path / "elsewhere")
    (copy / "model.safetensors").touch()
    assert checkpoint_digest(copy) == before
    time.sleep(0.2)  # so that digests are remembered
    assert checkpoint_digest(copy) == before
    assert (copy / DIGESTS_FILE).is_file()
    overwrite(copy / "model.safetensors", LARGE // 2)
    changed = checkpoint_digest(copy)
    assert changed != before
    overwrite(copy / "model.safetensors", LARGE // 2)
    assert checkpoint_digest(copy) == before
    overwrite(copy / "config.json", 0)
    assert checkpoint_digest(copy) != before


def test_the_merges_of_a_tokenizer_count_where_it_is_made_from_them(folder: Path) -> None:
    """The same words merged in another way are other tokens, and other scores (.12 became .48)."""
    (folder / "vocab.json").write_text("{}")
    (folder / "merges.txt").write_text("a b\nb c\n")
    before = checkpoint_digest(folder)
    (folder / "merges.txt").write_text("b c\na b\n")
    assert checkpoint_digest(folder) != before
    (folder / "tokenizer.json").write_text("{}")  # this is what is read then
    complete = checkpoint_digest(folder)
    (folder / "merges.txt").unlink()
    assert checkpoint_digest(folder) == complete


def test_a_large_file_is_read_once_and_a_damaged_memory_is_not_believed(folder: Path) -> None:
    shard = folder / "model.safetensors"
    time.sleep(0.2)
    (wanted,) = file_digests([shard])
    memory = folder / DIGESTS_FILE
    entries = json.loads(memory.read_text())
    entries[shard.name][-1] = "ab" * 32
    memory.write_text(json.dumps(entries))
    assert file_digests([shard]) == [bytes.fromhex("ab" * 32)]  # not read again
    for damage in ("", "[]", '{"model.safetensors": []}', '{"model.safetensors": [1, 2, 3, "x"]}'):
        memory.write_text(damage)
        assert file_digests([shard]) == [wanted]


def test_nothing_is_written_beside_small_files(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"small")
    checkpoint_digest(folder)
    names = ["config.json", "model.safetensors", "tokenizer.model"]
    assert sorted(path.name for path in folder.iterdir()) == names


def test_a_read_only_folder_is_read_every_time(folder: Path) -> None:
    time.sleep(0.2)
    folder.chmod(0o555)
    try:
        assert file_digests([folder / "model.safetensors"]) == file_digests(
            [folder / "model.safetensors"]
        )
    finally:
        folder.chmod(0o755)
