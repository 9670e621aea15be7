"""Weight files read and copied, against the library, and against damaged files."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from vprm_search.checkpoints.original import Expected, Part
from vprm_search.checkpoints.weights import copy_shard, read_shard, target_size
from vprm_search.errors import CheckpointError

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
shape_lists = st.lists(st.lists(st.integers(0, 4), max_size=4).map(tuple), max_size=5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


@settings(max_examples=60)
@given(shapes=shape_lists, dtype=st.sampled_from(list(DTYPES)))
def test_reads_what_the_library_writes(
    folder: Path, shapes: list[tuple[int, ...]], dtype: str
) -> None:
    tensors = {f"t{n}": torch.randn(shape).to(DTYPES[dtype]) for n, shape in enumerate(shapes)}
    path = folder / "written.safetensors"
    save_file(tensors, path, {"format": "pt", "note": "kept out"})
    shard = read_shard(path)
    assert shard.size == path.stat().st_size
    data = path.read_bytes()[len(shard.head) :]
    assert {t.name for t in shard.tensors} == set(tensors)
    for tensor in shard.tensors:
        value = tensors[tensor.name]
        assert (tensor.dtype, tensor.shape) == (dtype, tuple(value.shape))
        raw = value.contiguous().flatten().view(torch.uint8).numpy().tobytes()
        assert data[tensor.start : tensor.stop] == raw


@settings(max_examples=40)
@given(
    shapes=st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=4).map(tuple), max_size=5),
    dtype=st.sampled_from(list(DTYPES)),
)
def test_the_library_reads_what_is_copied(
    folder: Path, shapes: list[tuple[int, ...]], dtype: str
) -> None:
    """Renamed whole, and cut into two parts by rows."""
    tensors = {f"t{n}": torch.randn(shape).to(DTYPES[dtype]) for n, shape in enumerate(shapes)}
    save_file(tensors, folder / "source.safetensors")
    shard = read_shard(folder / "source.safetensors")
    table: dict[str, Expected] = {}
    wanted: dict[str, torch.Tensor] = {}
    for name, value in tensors.items():
        rows, half = value.shape[0], value.shape[0] // 2
        made = {f"whole.{name}": (value, ((0, rows),))}
        if half:
            swapped = torch.cat([value[half:], value[:half]])
            made = {
                f"swapped.{name}": (swapped, ((half, rows), (0, half))),
                f"first.{name}": (value[:half], ((0, half),)),
            }
        parts = tuple(Part(new, tuple(part.shape), at) for new, (part, at) in made.items())
        table[name] = Expected(tuple(value.shape), parts)
        wanted |= {new: part for new, (part, _) in made.items()}
    out = folder / "copied.safetensors"
    copied = copy_shard(shard, table, out, lambda count: None)
    assert copied.target.bytes == out.stat().st_size == target_size(shard, table)
    loaded = load_file(out)
    assert set(loaded) == set(wanted)
    assert all(torch.equal(loaded[name], value) for name, value in wanted.items())


@settings(max_examples=100)
@given(data=st.data())
def test_a_file_cut_anywhere_is_refused(folder: Path, data: st.DataObject) -> None:
    path = folder / "whole.safetensors"
    save_file({"a": torch.zeros(3, 2), "b": torch.zeros(4)}, path)
    whole = path.read_bytes()
    cut = folder / "cut.safetensors"
    cut.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(CheckpointError, match="download it again"):
        read_shard(cut)
    cut.write_bytes(whole + b"\0" * data.draw(st.integers(1, 9)))
    with pytest.raises(CheckpointError, match="download it again"):
        read_shard(cut)


@settings(max_examples=120)
@given(data=st.data())
def test_a_changed_header_never_reads_beyond_the_data(folder: Path, data: st.DataObject) -> None:
    path = folder / "changed.safetensors"
    save_file({"a": torch.zeros(3, 2), "b": torch.zeros(4)}, path)
    raw = bytearray(path.read_bytes())
    size = 8 + struct.unpack("<Q", raw[:8])[0]
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, size - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw)
    try:
        shard = read_shard(path)
    except CheckpointError:
        return
    assert shard.size == len(raw)
    ranges = [(tensor.start, tensor.stop) for tensor in shard.tensors]
    assert all(start <= stop <= len(raw) - len(shard.head) for start, stop in ranges)


def _entry(**changes: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({"a": _entry(dtype="I32"), "b": _entry(shape=[1], data_offsets=[8, 12])}, "I32"),
        ({"a": _entry(dtype="F8_E4M3", shape=[12], data_offsets=[0, 12])}, "quantised"),
        ({"a": _entry(shape=[-2])}, "-2"),
        ({"a": _entry(shape=[True, 2])}, "true"),
        ({"a": _entry(shape=[3])}, "shape"),
        ({"a": _entry(data_offsets=[4, 12])}, "offset"),
        ({"a": _entry(), "b": _entry(data_offsets=[4, 12])}, "offset"),
        ({"a": {}}, "dtype"),
        ({"a": 3}, "JSON"),
        ([1, 2], "JSON"),
    ],
)
def test_headers_that_lie_are_refused(header: Any, reason: str, tmp_path: Path) -> None:
    text = json.dumps(header).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * 12)
    with pytest.raises(CheckpointError, match=reason):
        read_shard(path)


def test_a_huge_header_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", 1 << 62) + b"{}")
    with pytest.raises(CheckpointError, match="no whole safetensors file"):
        read_shard(path)
