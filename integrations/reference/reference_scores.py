"""Score the parity cases with VisualPRM's own published code, and write what it said.

    vprm-search check --write-cases cases.json
    python reference_scores.py --model PATH-OR-NAME --cases cases.json --out reference.json
    vprm-search check CONVERTED --reference reference.json

Run it where the published checkpoint runs: it loads the model with `trust_remote_code=True`, that
is, it runs the code that comes with the weights. It needs torch, transformers and Pillow, and none
of this project, so it can live in an environment of its own (the published code of version 1.0 was
written for transformers 4.37). Every case is scored by `generate_steps_with_soft_score`.
"""

from __future__ import annotations

import argparse
import base64
import importlib.metadata
import io
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LIBRARIES = ("torch", "transformers", "tokenizers", "sentencepiece", "pillow", "timm")


def grid(width: int, height: int, side: int, most: int) -> tuple[int, int]:
    """Return (columns, rows) of the tiles: the closest aspect, and the larger of equal ones if
    the picture fills more than half of it."""
    shapes = sorted(
        ((c, r) for c in range(1, most + 1) for r in range(1, most // c + 1)),
        key=lambda shape: shape[0] * shape[1],
    )
    best, least = (1, 1), float("inf")
    for columns, rows in shapes:
        gap = abs(width / height - columns / rows)
        large = width * height > 0.5 * side * side * columns * rows
        if gap < least or (gap == least and large):
            best, least = (columns, rows), gap
    return best


def pixels(png: bytes, side: int, most: int) -> torch.Tensor:
    """Return the tiles of a picture and its thumbnail, normalised: `[tiles, 3, side, side]`."""
    image = Image.open(io.BytesIO(png)).convert("RGB")
    columns, rows = grid(image.width, image.height, side, most)
    sheet = image.resize((columns * side, rows * side))
    parts = [
        sheet.crop((c * side, r * side, (c + 1) * side, (r + 1) * side))
        for r in range(rows)
        for c in range(columns)
    ]
    if len(parts) > 1:
        parts.append(image.resize((side, side)))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    planes = [
        torch.frombuffer(bytearray(part.tobytes()), dtype=torch.uint8).view(side, side, 3)
        for part in parts
    ]
    return torch.stack([(plane.permute(2, 0, 1).float() / 255 - mean) / std for plane in planes])


def score_case(model: Any, tokenizer: Any, case: dict[str, Any], most: int) -> dict[str, Any]:
    """Return the case with `scores` and `token_ids`, or with `error`."""
    side = getattr(model.config, "force_image_size", None) or model.config.vision_config.image_size
    pictures = [pixels(base64.b64decode(text), side, most) for text in case["images"]]
    weight = next(model.parameters())
    seen: list[list[int]] = []
    forward = model.forward

    def listening(*args: Any, **kwargs: Any) -> Any:
        ids = kwargs.get("input_ids")
        if ids is not None:
            seen.append(ids[0].tolist())
        return forward(*args, **kwargs)

    model.forward = listening
    try:
        with torch.inference_mode():
            found = model.generate_steps_with_soft_score(
                tokenizer=tokenizer,
                question=case["question"],
                response="\n\n".join(case["steps"]),
                pixel_values=torch.cat(pictures).to(weight) if pictures else None,
                num_patches_list=[len(tiles) for tiles in pictures] if pictures else None,
            )
        scores = [float(item["score"]) for item in found]
    except Exception as error:  # whatever the published code does with this case is its answer
        return {**case, "scores": None, "error": f"{type(error).__name__}: {error}"}
    finally:
        model.forward = forward
    return {**case, "scores": scores, "token_ids": max(seen, key=len, default=[]), "error": ""}


def reference(prm: Any, tokenizer: Any, cases: list[dict[str, Any]], **said: Any) -> dict[str, Any]:
    """Return the reference file of a loaded model: all cases, scored."""
    scored = []
    for number, case in enumerate(cases, 1):
        started = time.perf_counter()
        scored.append(score_case(prm, tokenizer, case, most=12))
        outcome = scored[-1]["error"] or f"{len(scored[-1]['scores'])} scores"
        seconds = time.perf_counter() - started
        print(f"{number}/{len(cases)} {case['name']}: {outcome} ({seconds:.1f} s)", file=sys.stderr)
    dtype = str(next(prm.parameters()).dtype).removeprefix("torch.")
    return {
        "format": "vprm-search reference",
        "version": 1,
        "dtype": dtype,
        "cases": scored,
        **said,
    }


def versions() -> dict[str, str]:
    """Return the versions of Python and the libraries that matter, where they are there."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def main() -> None:
    """Load the published model, score the cases, write the file."""
    from transformers import AutoModel, AutoTokenizer

    parser = argparse.ArgumentParser(description="Score the parity cases with the published code.")
    parser.add_argument("--model", required=True, help="folder or hub name of the original weights")
    parser.add_argument(
        "--cases", type=Path, required=True, help="of vprm-search check --write-cases"
    )
    parser.add_argument("--out", type=Path, default=Path("reference.json"))
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "float16", "bfloat16"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    cases = json.loads(given.cases.read_text(encoding="utf-8"))["cases"]
    tokenizer = AutoTokenizer.from_pretrained(given.model, trust_remote_code=True, use_fast=False)
    model = AutoModel.from_pretrained(
        given.model, trust_remote_code=True, torch_dtype=getattr(torch, given.dtype)
    )
    model = model.eval().to(given.device)
    told = reference(model, tokenizer, cases, model=given.model, versions=versions())
    text = json.dumps(told, ensure_ascii=False, indent=1) + "\n"
    partial = given.out.with_suffix(".part")
    partial.write_text(text, encoding="utf-8")
    partial.replace(given.out)
    print(f"wrote {given.out}", file=sys.stderr)


if __name__ == "__main__":
    main()
