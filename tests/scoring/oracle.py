"""The slow reference: one forward pass per step per candidate, on the rendered prompt string.

Written from the description of VisualPRM's scoring alone. Nothing of `vprm_search.scoring` is used.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoTokenizer, InternVLForConditionalGeneration

CHINESE = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的"
    "多模态大语言模型。"
)


def render(
    question: str,
    steps: Sequence[str],
    image_tokens: Sequence[int],
    *,
    system: str | None = CHINESE,
    open_end: bool = False,
) -> str:
    """Return the conversation as one string; with `open_end` it stops before the last '+'.

    As the reference does it: tags are put before a question without any and replaced in order, and
    a turn without text is its role and nothing more.
    """
    if "<image>" not in question:
        question = "<image>\n" * len(image_tokens) + question
    if image_tokens:
        assert question.count("<image>") == len(image_tokens)
        for n in image_tokens:
            question = question.replace("<image>", "<img>" + "<IMG_CONTEXT>" * n + "</img>", 1)
    text = "" if system is None else f"<|im_start|>system\n{system}<|im_end|>\n"
    for number, step in enumerate(steps):
        content = step
        if number == 0:
            content = f"### Question:\n{question}\n\n### Solution Process:\n{step}"
        text += "<|im_start|>user\n" + (f"{content}<|im_end|>\n" if content else "")
        text += "<|im_start|>assistant\n"
        if not (open_end and number == len(steps) - 1):
            text += "+<|im_end|>\n"
    return text


def grids(low: int, high: int) -> list[tuple[int, int]]:
    """Return all (columns, rows) with low..high tiles, fewest tiles first, then fewest columns."""
    found = [
        (area, columns, area // columns)
        for area in range(low, high + 1)
        for columns in range(1, area + 1)
        if area % columns == 0
    ]
    return [(columns, rows) for _, columns, rows in found]


def best_grid(width: int, height: int, side: int, low: int, high: int) -> tuple[int, int]:
    """Return the grid closest in aspect; among equally close ones the last that is not too big."""
    options = grids(low, high)
    gaps = [abs(width / height - c / r) for c, r in options]
    closest = [g for g, gap in zip(options, gaps, strict=True) if gap == min(gaps)]
    big_enough = [g for g in closest[1:] if 2 * width * height > side * side * g[0] * g[1]]
    return big_enough[-1] if big_enough else closest[0]


def tiles(
    image: Image.Image,
    side: int,
    high: int,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    low: int = 1,
    thumbnail: bool = True,
) -> torch.Tensor:
    """Return the pixel values of one image, pixel by pixel where that is readable."""
    columns, rows = best_grid(image.width, image.height, side, low, high)
    big = np.asarray(image.resize((columns * side, rows * side), Image.Resampling.BICUBIC))
    cut = [
        big[r * side : (r + 1) * side, c * side : (c + 1) * side]
        for r in range(rows)
        for c in range(columns)
    ]
    if thumbnail and len(cut) != 1:
        cut.append(np.asarray(image.resize((side, side), Image.Resampling.BICUBIC)))
    planes = [
        [(tile[:, :, ch].astype(np.float64) / 255.0 - mean[ch]) / std[ch] for ch in range(3)]
        for tile in cut
    ]
    return torch.tensor(np.array(planes), dtype=torch.float32)


class Oracle:
    """A second copy of the model, with transformers' own eager attention and full logits."""

    def __init__(
        self,
        path: Path,
        *,
        side: int,
        max_tiles: int,
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
        thumbnail: bool = True,
        system: str | None = CHINESE,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.model: Any = InternVLForConditionalGeneration.from_pretrained(
            path, dtype=dtype, attn_implementation="eager"
        ).eval()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(path)
        self.rule = (side, max_tiles, mean, std)
        self.thumbnail = thumbnail
        self.system = system
        self.words = [self.tokenizer.convert_tokens_to_ids(word) for word in ("+", "-")]
        self.forwards = 0

    @torch.inference_mode()
    def score(self, question: str, steps: Sequence[str], pngs: Sequence[bytes]) -> list[float]:
        """Return P('+') of every step, each from a forward pass of its own."""
        side, high, mean, std = self.rule
        images = [Image.open(io.BytesIO(png)).convert("RGB") for png in pngs]
        pixels = [tiles(i, side, high, mean, std, thumbnail=self.thumbnail) for i in images]
        per_tile = self.model.config.image_seq_length
        counts = [len(p) * per_tile for p in pixels]
        values = torch.cat(pixels).to(self.model.dtype) if pixels else None
        out = []
        for number in range(1, len(steps) + 1):
            text = render(question, steps[:number], counts, system=self.system, open_end=True)
            ids = self.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
            logits = self.model(input_ids=ids, pixel_values=values).logits[0, -1].float()
            self.forwards += 1
            out.append(float(torch.softmax(logits[self.words], dim=0)[0]))
        return out
