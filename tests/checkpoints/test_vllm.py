"""vLLM loads a converted checkpoint with its own InternVL class: no plugin, no remote code."""

from __future__ import annotations

import json
import os
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from tests.checkpoints.original_forward import OriginalModel, internlm2_encoder, qwen2_encoder
from tests.checkpoints.original_layout import VERSIONS, sentencepiece_pieces, write_original
from tests.checkpoints.pictures import png
from tests.scoring.oracle import render
from tests.serving.install_vllm import environment_path
from vprm_search.checkpoints import convert_checkpoint

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not environment_path().is_dir(), reason="run tests/serving/install_vllm.py first"
    ),
]
TOLERANCE = 1e-5
QUESTION = "What is the area?"
STEPS = ["Step 1: the base is 12.", "So 12 * 3 = 36.\n  two  blanks and 你", "the answer is 18"]


@pytest.mark.parametrize("version", ["v1.0", "v1.1"])
def test_vllm_scores_as_the_original(version: str, tmp_path: Path) -> None:
    # its CPU kernels want heads of 32
    shape = replace(VERSIONS[version], hidden=128, heads=4, kv_heads=2, vision_hidden=64)
    source = write_original(tmp_path / "src", shape)
    convert_checkpoint(source, tmp_path / "out")
    if version == "v1.0":
        encode = internlm2_encoder(source, sentencepiece_pieces())
    else:
        encode = qwen2_encoder(source)
    # one tile each, nothing to resize: torchvision, which vLLM uses, resizes otherwise than Pillow
    pictures = [png(56, 56, 1), png(56, 56, 2)]
    wanted = OriginalModel(source, encode).score(QUESTION, STEPS, pictures, max_tiles=1)
    text = render(QUESTION, STEPS, [4, 4])
    reads = [m.end() for m in re.finditer(re.escape("<|im_start|>assistant\n"), text)]
    rows = _rows(tmp_path, encode(_unexpanded(text)), pictures)
    full = encode(text)
    assert len(rows) == len(full)
    got = [rows[len(encode(text[:at])) - 1] for at in reads]
    assert max(abs(a - b) for a, b in zip(got, wanted, strict=True)) < TOLERANCE


def _unexpanded(text: str) -> str:
    """vLLM wants one `<IMG_CONTEXT>` for an image with its markers."""
    return re.sub(r"<img>(<IMG_CONTEXT>)+</img>", "<IMG_CONTEXT>", text)


def _rows(folder: Path, ids: list[int], pictures: list[bytes]) -> list[float]:
    paths = [folder / f"{number}.png" for number in range(len(pictures))]
    for path, data in zip(paths, pictures, strict=True):
        path.write_bytes(data)
    job = folder / "job.json"
    job.write_text(json.dumps({"ids": ids, "images": [str(path) for path in paths]}))
    config = folder / "out" / "processor_config.json"
    changed = json.loads(config.read_text())
    changed["image_processor"]["max_patches"] = 1
    config.write_text(json.dumps(changed))
    python = environment_path() / "bin" / "python"
    script = Path(__file__).with_name("vllm_rows.py")
    command = [str(python), str(script), str(folder / "out"), str(job)]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=550
    )
    found = [line for line in done.stdout.splitlines() if line.startswith("ROWS ")]
    assert found, done.stderr[-3000:]
    rows: list[float] = json.loads(found[0].removeprefix("ROWS "))
    return rows
