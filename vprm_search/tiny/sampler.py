"""Sampling from the tiny policy: many prompts at once, and every child drawn from its own seed.

A child's text depends on the prompt, its seed and the temperature alone (`decoder`): not on its
siblings, the batch, or what was sampled before. (Up to float rounding: matrix products of different
shapes differ in the last bits, which changes a token about once in a million draws.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vprm_search.errors import CheckpointError, ConfigError, ImageError, PromptTooLongError
from vprm_search.images.normalise import open_rgb
from vprm_search.recent import Recent
from vprm_search.scoring.prompt.text_encoder import TextEncoder
from vprm_search.tiny.decoder import LaneDecoder, Lanes, draw_tokens, uniforms
from vprm_search.tiny.world import IMAGE_SIZE

if TYPE_CHECKING:
    from PIL import Image
    from transformers import InternVLForConditionalGeneration

    from vprm_search.types import ImageData

# --- what the policy is given: token ids and normalised pixels ---


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


# --- sampling ---


SampleFinish = Literal["step", "stop", "length"]
_MAX_CHILDREN = 1024  # per forward pass; bounds the memory of keys and values (~0.3 GB at worst)
_FEATURES_KEPT = 2048  # pictures, 8 kB each


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """Ask for `len(seeds)` continuations of one prompt.

    `question` and `prefix` are plain text (control tokens in them are text, not control).
    `image_features` is [images, tokens, hidden] from `encode_images`, or None for no image.
    `prefix` is the part of the assistant's answer that is already written, verbatim: after a
    finished step it ends with the blank line. `temperature` 0 takes the most likely token.
    """

    question: str
    seeds: tuple[int, ...]
    image_features: Tensor | None = field(default=None, repr=False, compare=False)
    prefix: str = ""
    temperature: float = 0.7
    max_new_tokens: int = 128
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Sample:
    """One continuation.

    `finish` is "step" (a stop string was written; it is not part of `text`), "stop" (the model
    ended its answer) or "length". `tokens` counts everything generated, the end token included.
    """

    text: str
    finish: SampleFinish
    tokens: int
    prompt_tokens: int


class AbandonedError(Exception):
    """Nobody waits any more for what is being sampled."""


def load_checkpoint(path: Path) -> InternVLForConditionalGeneration:
    """Read a checkpoint as an fp32 model."""
    from transformers import InternVLForConditionalGeneration

    model = InternVLForConditionalGeneration.from_pretrained(
        path, dtype=torch.float32, attn_implementation="sdpa"
    )
    if not isinstance(model, InternVLForConditionalGeneration):
        raise TypeError(f"{path} holds a {type(model).__name__}, not an InternVL model")
    return model


class TinySampler:
    """A tiny InternVL policy, ready to sample from. Not thread-safe; share it behind a lock."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model = model.eval()
        self.prompts = PolicyPrompts(tokenizer, model.config.image_seq_length)
        self.decoder = LaneDecoder(model)
        self.tokens_sampled = 0
        self.is_abandoned: Callable[[], bool] = lambda: False  # asked before every token
        self._stops: dict[tuple[str, ...], StopStrings] = {}

    @classmethod
    def from_pretrained(cls, path: str | Path) -> TinySampler:
        """Load a policy folder (weights and tokenizer). Raises `CheckpointError`."""
        from transformers import AutoTokenizer

        if not (Path(path) / "config.json").is_file():
            raise CheckpointError(f"{path} is no model folder (it has no config.json)")
        model = load_checkpoint(Path(path))
        return cls(model, AutoTokenizer.from_pretrained(path, local_files_only=True))

    @torch.inference_mode()
    def encode_images(self, images: Sequence[Image.Image]) -> Tensor:
        """Return the language-space features [images, tokens per image, hidden] of pictures."""
        parts = [
            self.model.model.get_image_features(
                pixel_values=pixel_values(images[start : start + 256]), return_dict=True
            ).pooler_output
            for start in range(0, len(images), 256)
        ]
        return torch.cat(parts)

    @torch.inference_mode()
    def sample(self, requests: Sequence[SampleRequest]) -> list[list[Sample]]:
        """Answer all requests: one list per request, one sample per seed, in order.

        Raises:
            PromptTooLongError: prompt plus `max_new_tokens` exceed the model's positions.
        """
        prompts = [self.check(request) for request in requests]
        results: list[list[Sample]] = [[] for _ in requests]
        order = sorted(
            (i for i in range(len(requests)) if requests[i].seeds), key=lambda i: len(prompts[i])
        )
        start = 0
        while start < len(order):
            end, children = start, 0
            while end < len(order):
                children += len(requests[order[end]].seeds)
                if children > _MAX_CHILDREN and end > start:
                    break
                end += 1
            chosen = order[start:end]
            run = _Run(self, [requests[i] for i in chosen], [prompts[i] for i in chosen])
            for index, samples in zip(chosen, run.samples(), strict=True):
                results[index] = samples
            start = end
        return results

    def stop_strings(self, stop: tuple[str, ...]) -> StopStrings:
        """Return the (cached) detector of these stop strings."""
        if stop not in self._stops:
            self._stops[stop] = StopStrings(self.prompts.tokenizer, stop)
        return self._stops[stop]

    def embed(self, ids: Tensor, features: Sequence[Tensor | None]) -> Tensor:
        """Return input embeddings [rows, length, hidden] with the image features in place."""
        embeds = self.model.get_input_embeddings()(ids)
        for row, row_features in enumerate(features):
            if row_features is not None:
                places = ids[row] == self.prompts.image_id
                embeds[row, places] = row_features.flatten(0, 1).to(embeds.dtype)
        return embeds  # type: ignore[no-any-return]

    def check(self, request: SampleRequest) -> list[int]:
        """Return the prompt's ids. Raises `ConfigError` or `PromptTooLongError` if it is unfit."""
        if request.temperature < 0 or request.max_new_tokens < 1:
            raise ConfigError(
                f"temperature {request.temperature} must be >= 0 and max_new_tokens "
                f"{request.max_new_tokens} >= 1"
            )
        images = 0 if request.image_features is None else len(request.image_features)
        ids = self.prompts.build(request.question, images, request.prefix)
        limit = self.model.config.text_config.max_position_embeddings
        if len(ids) + request.max_new_tokens > limit:
            raise PromptTooLongError(
                f"the prompt has {len(ids)} tokens and {request.max_new_tokens} may follow, but "
                f"the tiny policy has {limit} positions; shorten the question or the solution"
            )
        return ids


class PictureFeatures:
    """The encoded pictures of a sampler, the last ones kept. Not thread-safe, like the sampler."""

    def __init__(self, sampler: TinySampler) -> None:
        self._sampler = sampler
        self._kept: Recent[str, Tensor] = Recent(_FEATURES_KEPT)

    def __call__(
        self, images: Iterable[ImageData]
    ) -> tuple[dict[str, Tensor], dict[str, ImageError]]:
        """Encode the images not seen before, in one batch.

        Returns:
            Features [tokens, hidden] by digest, and the errors of images that cannot be read.
        """
        wanted: dict[str, Tensor] = {}
        errors: dict[str, ImageError] = {}
        new: dict[str, Image.Image] = {}
        for image in images:
            digest = image.digest
            if (known := self._kept.get(digest)) is not None:
                wanted[digest] = known
            elif digest not in new:
                try:
                    new[digest] = _as_the_model_sees(image)
                except ImageError as error:
                    errors[digest] = error
        if new:
            encoded = self._sampler.encode_images(list(new.values()))
            fresh = dict(zip(new, encoded.unbind(), strict=True))
            wanted |= fresh
            for digest, features in fresh.items():
                self._kept.put(digest, features)
        return wanted, errors


def _as_the_model_sees(image: ImageData) -> Image.Image:
    from PIL.Image import Resampling

    picture, size = open_rgb(image.png), (IMAGE_SIZE, IMAGE_SIZE)
    return picture if picture.size == size else picture.resize(size, Resampling.BICUBIC)


class _Run:
    """One batch being decoded: children (texts to be) sit on lanes (rows of the forward pass)."""

    def __init__(
        self, sampler: TinySampler, requests: list[SampleRequest], prompts: list[list[int]]
    ) -> None:
        self.sampler, self.requests, self.prompts = sampler, requests, prompts
        counts = [len(request.seeds) for request in requests]
        self.owner = np.repeat(np.arange(len(requests)), counts)
        self.seeds = np.array([s for r in requests for s in r.seeds], dtype=np.uint64)
        self.limit = np.array([r.max_new_tokens for r in requests])[self.owner]
        self.temperature = torch.tensor([float(r.temperature) for r in requests])
        self.written: list[list[int]] = [[] for _ in self.owner]
        self.finish: list[SampleFinish] = ["length"] * len(self.owner)
        self.text: list[str | None] = [None] * len(self.owner)

    def samples(self) -> list[list[Sample]]:
        """Decode until every child has finished; return the samples grouped by request."""
        hidden, lanes = self._prefill()
        lane_owner = torch.arange(len(self.requests))
        alive = np.arange(len(self.owner))
        child_lane = torch.from_numpy(self.owner)
        for position in range(int(self.limit.max())):
            if self.sampler.is_abandoned():
                raise AbandonedError
            logits = self.sampler.decoder.logits(hidden)
            draws = torch.from_numpy(uniforms(self.seeds[alive], position))
            tokens = draw_tokens(logits, self.temperature[lane_owner], draws, child_lane)
            going = self._record(alive, child_lane, tokens, position)
            alive, child_lane, tokens = alive[going], child_lane[going], tokens[going]
            if not len(alive):
                break
            size = logits.shape[1]
            texts, of_child = torch.unique(child_lane * size + tokens, return_inverse=True)
            parents, tokens = texts // size, texts % size
            child_lane, lane_owner, hidden = self._advance(
                lanes, parents, tokens, of_child, lane_owner
            )
        return self._collect()

    def _prefill(self) -> tuple[Tensor, Lanes]:
        length = max(map(len, self.prompts))
        ids = torch.zeros(len(self.prompts), length, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(self.prompts):
            ids[row, length - len(prompt) :] = torch.tensor(prompt)
            mask[row, length - len(prompt) :] = 1
        embeds = self.sampler.embed(ids, [r.image_features for r in self.requests])
        return self.sampler.decoder.prefill(embeds, mask, int(self.limit.max()))

    def _record(
        self, alive: np.ndarray[Any, Any], child_lane: Tensor, tokens: Tensor, position: int
    ) -> np.ndarray[Any, Any]:
        """Append the tokens, close finished children; return which ones go on (bool, [alive])."""
        end = self.sampler.prompts.end_id
        going = np.ones(len(alive), dtype=bool)
        self.sampler.tokens_sampled += len(alive)
        for place, (child, token) in enumerate(zip(alive.tolist(), tokens.tolist(), strict=True)):
            written = self.written[child]
            written.append(token)
            if token == end:
                self.finish[child] = "stop"
                going[place] = False
                continue
            stop = self.requests[self.owner[child]].stop
            cut = self.sampler.stop_strings(stop).cut(written) if stop else None
            if cut is not None:
                self.finish[child], self.text[child] = "step", cut
                going[place] = False
            elif position + 1 >= self.limit[child]:
                going[place] = False
        return going

    def _advance(
        self, lanes: Lanes, parents: Tensor, tokens: Tensor, of_child: Tensor, lane_owner: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Give each distinct text a lane and feed it its token.

        Returns the lane of each child, the request of each lane, and the new hidden states.
        """
        owner = lane_owner[parents]
        placed = lanes.place(parents)
        if len(placed) < 0.8 * lanes.count:
            lanes.compact(placed)
            placed = torch.arange(len(placed))
        full_owner = torch.zeros(lanes.count, dtype=torch.long)
        full_tokens = torch.zeros(lanes.count, dtype=torch.long)
        full_owner[placed], full_tokens[placed] = owner, tokens
        hidden = self.sampler.decoder.step(full_tokens, lanes)
        return placed[of_child], full_owner, hidden

    def _collect(self) -> list[list[Sample]]:
        grouped: list[list[Sample]] = [[] for _ in self.requests]
        for child, owner in enumerate(self.owner.tolist()):
            written, text = self.written[child], self.text[child]
            if text is None:
                text = self.sampler.prompts.decode(written)
            prompt_tokens = len(self.prompts[owner])
            grouped[owner].append(Sample(text, self.finish[child], len(written), prompt_tokens))
        return grouped


# --- stop strings ---


class StopStrings:
    """Detects the first stop string in the decoded text of a growing list of tokens."""

    def __init__(self, tokenizer: Any, stop: tuple[str, ...]) -> None:
        self._tokenizer = tokenizer
        self._stop = tuple(s for s in stop if s)
        endings = {s.encode("utf-8")[-1] for s in self._stop}
        symbols = {_byte_symbols()[byte] for byte in endings}
        # A stop string can only be completed by a token that contains its last byte.
        self._suspects = frozenset(
            token for piece, token in tokenizer.get_vocab().items() if symbols & set(piece)
        )

    def cut(self, tokens: list[int]) -> str | None:
        """Return the text before the earliest stop string, or None if there is none yet.

        Call it after every token: only the newest token is examined.
        """
        if tokens[-1] not in self._suspects:
            return None
        text: str = self._tokenizer.decode(
            tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        places = [place for s in self._stop if (place := text.find(s)) >= 0]
        return text[: min(places)] if places else None


def _byte_symbols() -> dict[int, str]:
    """Return the printable character by which byte-level BPE writes each byte (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {byte: chr(byte) for byte in printable}
    others = [byte for byte in range(256) if byte not in table]
    return table | {byte: chr(256 + place) for place, byte in enumerate(others)}
