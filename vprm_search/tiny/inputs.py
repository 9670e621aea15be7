"""What the tiny policy is given: token ids and normalised pixels.

Text from outside can never become control.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from vprm_search.scoring.prompt.text_encoder import TextEncoder

TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
IMAGE_START, IMAGE_END, IMAGE_CONTEXT = "<img>", "</img>", "<IMG_CONTEXT>"
IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)


class PolicyPrompts:
    """Writes the policy's prompts with one tokenizer.

    Each stretch of text between two control tokens is encoded in one call with special-token
    parsing off, so the ids equal the tokenization of the whole rendered prompt on benign text, and
    `<|im_end|>` inside a question stays plain characters.
    """

    def __init__(self, tokenizer: Any, image_tokens: int) -> None:
        words = (TURN_START, TURN_END, IMAGE_START, IMAGE_CONTEXT, IMAGE_END)
        self.tokenizer = tokenizer
        self._encoder = TextEncoder(tokenizer, words)
        self._start, self.end_id, image_start, self.image_id, image_end = map(
            self._encoder.control_id, words
        )
        self._image_block = [image_start, *[self.image_id] * image_tokens, image_end]

    def build(self, question: str, images: int, prefix: str = "") -> list[int]:
        """Return the ids of the user turn and of the assistant turn as far as it is written.

        `prefix` is the written part of the answer, verbatim (it ends with a blank line after a
        finished step).
        """
        ids, text, after = [self._start], "user\n", TURN_START
        for _ in range(images):
            ids += [*self._encode(text, after), *self._image_block]
            text, after = "\n", IMAGE_END
        ids += self._encode(text + question, after)
        ids += [self.end_id, *self._encode("\n", TURN_END), self._start]
        return [*ids, *self._encode("assistant\n" + prefix, TURN_START)]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of generated ids, exactly, without the end token."""
        kept = [token for token in ids if token != self.end_id]
        text: str = self.tokenizer.decode(
            kept, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return text

    def _encode(self, text: str, after: str) -> tuple[int, ...]:
        return self._encoder.encode(text, after).ids


def pixel_values(images: Sequence[Image.Image]) -> torch.Tensor:
    """Return `[n, 3, 64, 64]` float32: (x / 255 - mean) / std per channel (ImageNet's)."""
    stacked = np.stack([np.asarray(image, dtype=np.float32) for image in images])
    mean, std = np.asarray(IMAGE_MEAN, np.float32), np.asarray(IMAGE_STD, np.float32)
    normalised = (stacked / np.float32(255) - mean) / std
    return torch.from_numpy(np.ascontiguousarray(normalised.transpose(0, 3, 1, 2)))
