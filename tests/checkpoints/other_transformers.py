"""Do other releases of transformers compute what this one does on a converted checkpoint?

Two steps, in two environments (figures in docs/checkpoints.md):

    python -m tests.checkpoints.other_transformers write FOLDER       # this project's environment
    OTHER/bin/python tests/checkpoints/other_transformers.py compare FOLDER

OTHER needs torch and the release to be checked, nothing else. The exit code is 1 if one differs.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

LIMIT = 1e-5
TURNS = (
    "<|im_start|>user\n<img><IMG_CONTEXT><IMG_CONTEXT><IMG_CONTEXT><IMG_CONTEXT></img>\n"
    "What is 12 + 3, 你是书生?<|im_end|>\n<|im_start|>assistant\n+<|im_end|>\n"
    + "<|im_start|>user\nSo the answer is 15.<|im_end|>\n<|im_start|>assistant\n+<|im_end|>\n"
    * 3
)


def logits(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Return ids and logits `[position, token]` of a conversation with one picture, in float32."""
    from transformers import AutoTokenizer, InternVLForConditionalGeneration

    model = InternVLForConditionalGeneration.from_pretrained(checkpoint).float().eval()
    ids = torch.tensor([AutoTokenizer.from_pretrained(checkpoint)(TURNS)["input_ids"]])
    side = model.config.vision_config.image_size[0]
    pixels = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        out = model(input_ids=ids, pixel_values=pixels)
    return {"ids": ids[0], "logits": out.logits[0].float().contiguous()}


def write(folder: Path) -> None:
    """Convert a random checkpoint of every variant, with what this release computes beside it."""
    from tests.checkpoints.original_layout import VERSIONS, write_original
    from vprm_search.checkpoints import convert_checkpoint

    for name, shape in VERSIONS.items():
        convert_checkpoint(write_original(folder / "sources" / name, shape), folder / name)
        save_file(logits(folder / name), folder / f"{name}.safetensors")


def compare(folder: Path) -> bool:
    """Print the largest difference for every checkpoint; True if all are below `LIMIT`."""
    import transformers

    alike = True
    for file in sorted(folder.glob("*.safetensors")):
        wanted, found = load_file(file), logits(folder / file.stem)
        same_ids = torch.equal(wanted["ids"], found["ids"])
        gap = float((wanted["logits"] - found["logits"]).abs().max()) if same_ids else float("inf")
        alike = alike and gap < LIMIT
        print(f"transformers {transformers.__version__}, {file.stem}: logits differ by {gap:.1e}")
    return alike


if __name__ == "__main__":
    mode, place = sys.argv[1], Path(sys.argv[2])
    if mode == "write":
        write(place)
    else:
        sys.exit(0 if compare(place) else 1)
