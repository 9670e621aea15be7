"""The slow reference of every family: rendered strings, plain forwards, nothing of our scoring.

Each family's text is written as its authors write it; multi-turn families take one forward per
step, up to the '+' of that step, families with a marker one forward over the whole text with its
closing tokens, read where the marker's id stands. Pictures stand where the question has `<image>`,
or where the family puts them; InternVL's template closes no turn that is empty.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    InternVLForConditionalGeneration,
    Qwen2_5_VLForConditionalGeneration,
)

from tests.scoring.oracle import CHINESE, tiles

CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
PROMPT = "Judge every step with + or -."


class FamilyOracle:
    """Scores problems with the checkpoint of one family."""

    def __init__(self, path: Path, name: str, *, max_tiles: int = 4) -> None:
        self.name = name
        self.max_tiles = max_tiles
        self.tokenizer: Any = AutoTokenizer.from_pretrained(path)
        kind: Any = AutoModelForCausalLM
        if name in ("visualprm", "dreamprm-1.5", "mm-prm"):
            kind = InternVLForConditionalGeneration
        elif name == "qwen-vl-prm":
            kind = Qwen2_5_VLForConditionalGeneration
        self.model: Any = kind.from_pretrained(path, attn_implementation="eager").eval()
        stored: dict[str, Tensor] = {}
        for file in path.glob("*.safetensors"):
            stored |= load_file(file)
        self.head = {k: v for k, v in stored.items() if k.startswith(("score.", "v_head."))}

    @torch.inference_mode()
    def score(self, question: str, steps: Sequence[str], pngs: Sequence[bytes]) -> list[float]:
        """Return P('+') of every step."""
        images = [Image.open(io.BytesIO(png)).convert("RGB") for png in pngs]
        return getattr(self, "_" + self.name.replace("-", "_").replace(".", "_"))(
            question, steps, images
        )

    # --- read before the placeholder ---------------------------------------------------------

    def _visualprm(self, question: str, steps: Sequence[str], images: list[Any]) -> list[float]:
        pixels, tags = self._tiled(images)
        tags, question = placed(question, tags, "\n")
        head = f"<|im_start|>system\n{CHINESE}<|im_end|>\n<|im_start|>user\n### Question:\n{tags}"
        first = f"{head}{question}\n\n### Solution Process:\n{steps[0]}<|im_end|>\n"
        return self._turns(first, steps[1:], pixels, self._pair("+", "-"))

    def _dreamprm_1_5(self, question: str, steps: Sequence[str], images: list[Any]) -> list[float]:
        pixels, tags = self._tiled(images)
        tags, question = placed(question, tags, "")
        first = (
            f"<|im_start|>system\n{PROMPT}<|im_end|>\n<|im_start|>user\n{tags}### Question:\n"
            f"{question}<|im_end|>\n<|im_start|>user\n"
        )
        first += f"{steps[0]}<|im_end|>\n" if steps[0] else ""

        def whole(logits: Tensor) -> float:
            return float(logits.softmax(-1)[self._id("+")])

        return self._turns(first, steps[1:], pixels, whole)

    def _qwen_vl_prm(self, question: str, steps: Sequence[str], images: list[Any]) -> list[float]:
        kwargs, tags = self._patched(images)
        tags, question = placed(question, tags, "")
        first = (
            f"<|im_start|>system\n{PROMPT}<|im_end|>\n<|im_start|>user\n{tags}### Question:\n"
            f"{question}\n\n### Solution Process:\n{steps[0]}<|im_end|>\n"
        )
        return self._turns(first, steps[1:], kwargs, self._pair("+", "-"), closes_empty=True)

    def _rlhflow(self, question: str, steps: Sequence[str], images: list[Any]) -> list[float]:
        """As the public code: apply the chat template, read three tokens before the end."""

        def turn(role: str, text: str) -> str:
            return f"<|start_header_id|>{role}<|end_header_id|>\n\n{text.strip()}<|eot_id|>"

        text = "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
        text += "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n<|eot_id|>"
        read, found = self._pair("+", "-"), []
        for number, step in enumerate(steps):
            text += turn("user", f"{question} {step}" if number == 0 else step)
            text += turn("assistant", "+")
            found.append(read(self._logits(self._ids(text), {})[-3]))
        return found

    def _turns(
        self,
        first: str,
        later: Sequence[str],
        inputs: Any,
        read: Any,
        *,
        closes_empty: bool = False,
    ) -> list[float]:
        text, found = first, []
        for number in range(len(later) + 1):
            if number:
                step = later[number - 1]
                text += f"<|im_start|>user\n{step}"
                text += "<|im_end|>\n" if step or closes_empty else ""
            text += "<|im_start|>assistant\n"
            found.append(read(self._logits(self._ids(text), inputs)[-1]))
            text += "+<|im_end|>\n"
        return found

    # --- read at the marker -------------------------------------------------------------------

    def _mm_prm(self, question: str, steps: Sequence[str], images: list[Any]) -> list[float]:
        pixels, tags = self._tiled(images)
        tags, question = placed(question, tags, "\n")
        text = (
            f"<s><|im_start|>system\n{CHINESE}<|im_end|>\n<|im_start|>user\n<|im_start|>assistant\n"
        )
        text += f"{tags}Question: {question}\nProcess: " + "".join(f"{s}<prm>" for s in steps)
        ids = self._ids(text + "<|im_end|>\n")
        logits = self._logits(ids, pixels)
        read = self._pair("Yes", "No")
        return [read(row) for row in logits[ids == self._id("<prm>")]]

    def _qwen2_5_math_prm(
        self, question: str, steps: Sequence[str], images: list[Any]
    ) -> list[float]:
        system = "Please reason step by step, and put your final answer within \\boxed{}."
        text = f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n"
        text += "<|im_start|>assistant\n" + "<extra_0>".join(steps) + "<extra_0><|im_end|>\n"
        ids = self._ids(text)
        hidden = self._hidden(ids)[ids == self._id("<extra_0>")]
        head = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 2))
        head.load_state_dict({k.removeprefix("score."): v for k, v in self.head.items()})
        return head(hidden).softmax(-1)[:, 1].tolist()

    def _math_shepherd(self, question: str, steps: Sequence[str], images: list[Any]) -> list[float]:
        text = f"{question} " + "\n".join(f"{step} ки" for step in steps)
        ids = torch.cat([torch.tensor([self._id("<s>")]), self._ids(text)])
        plus, minus = self._ids("+ -").tolist()
        rows = self._logits(ids, {})[ids == self._ids("ки")[-1]]
        return [float(row[[plus, minus]].softmax(-1)[0]) for row in rows]

    def _skywork_o1_prm(
        self, question: str, steps: Sequence[str], images: list[Any]
    ) -> list[float]:
        ids = self._ids(self.tokenizer.bos_token + question + "\n").tolist()
        flags = [0] * len(ids)
        for step in steps:
            own = [*self._ids(step).tolist(), self._ids("\n").tolist()[-1]]
            ids += own
            flags += [0] * (len(own) - 1) + [1]
        values = torch.nn.functional.linear(
            self._hidden(torch.tensor(ids))[torch.tensor(flags) == 1],
            self.head["v_head.summary.weight"],
            self.head["v_head.summary.bias"],
        )
        return values.sigmoid()[:, 0].tolist()

    def _ursa_rm(self, question: str, steps: Sequence[str], images: list[Any]) -> list[float]:
        marked = "\n".join(f"{step.strip()} и" for step in steps)
        user = (
            "You are given a problem and a step-by-step solution. You need to check the "
            f"correctness of each step.\nQuestion:{question}\n{marked}\n†Answer: 3"
        )
        text = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        ids = self._ids(f"{text}<|im_start|>user\n{user}<|im_end|>\n")
        rows = self._hidden(ids)[ids == self._ids("a и")[-1]]
        values = rows @ self.head["score.weight"].T + self.head["score.bias"]
        return (1 / (1 + (-values[:, 0]).exp())).tolist()

    # --- the model ----------------------------------------------------------------------------

    def _id(self, token: str) -> int:
        return self.tokenizer.convert_tokens_to_ids(token)

    def _ids(self, text: str) -> Tensor:
        return torch.tensor(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _pair(self, plus: str, minus: str) -> Any:
        words = [self._id(plus), self._id(minus)]
        return lambda logits: float(logits[words].softmax(-1)[0])

    def _logits(self, ids: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        extra = dict(inputs)
        if "image_grid_thw" in extra:
            extra["mm_token_type_ids"] = (ids == self._id("<|image_pad|>")).long()[None]
        return self.model(input_ids=ids[None], **extra).logits[0].float()

    def _hidden(self, ids: Tensor) -> Tensor:
        return self.model(input_ids=ids[None], output_hidden_states=True).hidden_states[-1][0]

    def _tiled(self, images: list[Any]) -> tuple[dict[str, Tensor], list[str]]:
        pixels = [tiles(image, 56, self.max_tiles, *IMAGENET) for image in images]
        per_tile = self.model.config.image_seq_length
        tags = ["<img>" + "<IMG_CONTEXT>" * len(p) * per_tile + "</img>" for p in pixels]
        return ({"pixel_values": torch.cat(pixels)} if pixels else {}), tags

    def _patched(self, images: list[Any]) -> tuple[dict[str, Tensor], list[str]]:
        """Cut images into 14-pixel patches, four of them, and two frames, behind one another."""
        if not images:
            return {}, []
        patches, grids, tags = [], [], []
        for image in images:
            width, height = qwen_size(image.width, image.height)
            frame = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC)) / 255.0
            frame = (frame - CLIP[0]) / CLIP[1]
            for row in range(0, height, 28):
                for column in range(0, width, 28):
                    for y, x in ((0, 0), (0, 14), (14, 0), (14, 14)):
                        top, left = row + y, column + x
                        patch = frame[top : top + 14, left : left + 14]
                        patches.append([[patch[:, :, c]] * 2 for c in range(3)])
            grids.append([1, height // 14, width // 14])
            tokens = width * height // 28**2
            tags.append("<|vision_start|>" + "<|image_pad|>" * tokens + "<|vision_end|>")
        values = torch.tensor(np.array(patches), dtype=torch.float32).flatten(1)
        return {"pixel_values": values, "image_grid_thw": torch.tensor(grids)}, tags


def placed(question: str, tags: list[str], after: str) -> tuple[str, str]:
    """Return what stands where the family has its pictures, and the question with those it has."""
    if not tags or "<image>" not in question:
        return "".join(tag + after for tag in tags), question
    texts = question.split("<image>")
    assert len(texts) == len(tags) + 1
    inside = "".join(text + tag for text, tag in zip(texts, tags, strict=False))
    return "", inside + texts[-1]


def qwen_size(width: int, height: int, low: int = 4 * 784, high: int = 16 * 784) -> tuple[int, int]:
    """Return the size an image is resized to: multiples of 28, area within bounds."""
    across, down = round(width / 28), round(height / 28)
    if across * down * 784 > high:
        ratio = (width * height / high) ** 0.5
        across, down = (max(1, int(side / ratio // 28)) for side in (width, height))
    elif across * down * 784 < low:
        ratio = (low / (width * height)) ** 0.5
        across, down = (-int(-side * ratio // 28) for side in (width, height))
    return across * 28, down * 28
