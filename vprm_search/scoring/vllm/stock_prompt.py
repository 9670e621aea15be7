"""Prompts for a server without our plugin: built here, from the served checkpoint's own files."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from vprm_search.errors import CheckpointError, ConfigError, InputError
from vprm_search.ids import digest
from vprm_search.records import read_json
from vprm_search.scoring.families import read_scorer_file
from vprm_search.scoring.pixels import PreprocessConfig, tile_grid
from vprm_search.scoring.prompt.layout import (
    IMAGE_TAG,
    PrmLayout,
    PromptBuilder,
    ScoringPrompt,
    text_around_images,
)
from vprm_search.scoring.prompt.text_encoder import control_tokens, without_surrogates
from vprm_search.types import ImageData

_BREAK = "\N{MIDDLE DOT}"  # the same visible sign that TextEncoder uses
_PLACEHOLDERS = ("<image>", "<video>", "<img>", "</img>", "<IMG_CONTEXT>", "<quad>", "<ref>")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
_PNG_HEADER = b"\x89PNG\r\n\x1a\n"

Shown = Sequence[tuple[str, str | None]]
"""The images of a request: digest, and a data URL, or None for one that the server holds."""


class StockPrompts:
    """Builds prompts, counts image tokens and makes control tokens in texts harmless.

    `directory` holds the tokenizer, `config.json` and `vprm.json` of the served checkpoint; weights
    are not needed. Raises `CheckpointError` when something is missing there.
    """

    def __init__(self, directory: Path) -> None:
        if not (directory / "config.json").is_file():
            raise CheckpointError(
                f"tokenizer={directory} is no checkpoint directory (no config.json); give the one "
                "that is served, without its weights if you like"
            )
        file = read_scorer_file(directory)
        if not (
            isinstance(file.layout, PrmLayout) and isinstance(file.preprocess, PreprocessConfig)
        ):
            raise ConfigError(
                f"{directory} holds a model of family {file.family!r}; the route to a stock server "
                "knows VisualPRM's kin only: start the server with `vprm-search serve`"
            )
        self._preprocess = file.preprocess
        self.tokens_per_tile = _tokens_per_tile(directory)
        tokenizer = _load_tokenizer(directory)
        try:
            self.builder = PromptBuilder(tokenizer, file.layout)
        except ConfigError as error:
            raise CheckpointError(f"{directory}: {error}") from error
        self.layout = file.layout
        self._words = _control_names(tokenizer, file.layout.control_words())
        self.identity = digest("vllm-stock", _files_digest(directory), file.model_dump_json()).hex()

    def build(
        self, question: str, steps: Sequence[str], images: Sequence[ImageData]
    ) -> ScoringPrompt:
        """Build the whole conversation, images expanded.

        Raises `InputError`, also for what no chat template writes: a picture in mid-line, or a step
        without text that the model knows as a turn without an end.
        """
        self._check_writable(question, steps, len(images))
        counts = [self.image_tokens(image) for image in images]
        return self.builder.build(question, steps, counts)

    def image_tokens(self, image: ImageData) -> int:
        """Return how many placeholders the server will make of an image. Raises `InputError`."""
        if not image.png.startswith(_PNG_HEADER) or len(image.png) < 24:
            raise InputError(f"image {image.digest} is no PNG; make it with normalise_image")
        width, height = struct.unpack(">II", image.png[16:24])  # of the first chunk, IHDR
        if not (width and height):
            raise InputError(f"image {image.digest} is {width}x{height} pixels")
        columns, rows = tile_grid(width, height, self._preprocess)
        tiles = columns * rows
        return (tiles + (self._preprocess.thumbnail and tiles > 1)) * self.tokens_per_tile

    def harmless(self, text: str) -> str:
        """Return `text` with every name of a control token broken by a visible dot.

        For routes on which the server tokenizes text with its control tokens switched on.
        """
        clean = without_surrogates(text)
        for word in self._words:
            clean = clean.replace(word, word[0] + _BREAK + word[1:])
        return clean

    def harmless_question(self, question: str, images: int) -> str:
        """Return `question` made harmless; the tags of its pictures stay. Raises `InputError`."""
        around = text_around_images(question, images)
        return IMAGE_TAG.join(map(self.harmless, [question] if around is None else around))

    def _check_writable(self, question: str, steps: Sequence[str], images: int) -> None:
        after = self.layout.after_image
        around = text_around_images(question, images) or [""]
        if not all(text.startswith(after) for text in around[1:]):
            raise InputError(
                f"a picture of the question is not followed by {after!r}, which a stock server's "
                "chat template writes after each; start the server with `vprm-search serve`"
            )
        if "" in steps[1:] and not self.layout.closes_empty_turns:
            raise InputError(
                "a step is empty; a stock server's chat template ends its turn, which this model "
                "does not: start the server with `vprm-search serve`"
            )


def conversation(
    layout: PrmLayout, question: str, steps: Sequence[str], images: Shown
) -> list[dict[str, Any]]:
    """Return the chat messages of a path.

    The uuid of an image, which the server trusts, is the digest of its pixels.
    What a chat template writes after an image is taken to be the layout's `after_image`; the count
    of tokens tells when it is not.
    """
    before, between, after = layout.first_turn_parts()
    around = text_around_images(question, len(images))
    if around is None:
        texts = [before, *[""] * len(images)]
        texts[-1] += between + question
    else:
        texts = [text.removeprefix(layout.after_image) for text in around]
        texts[0] = before + between + around[0]
    texts[-1] += after + steps[0]
    first: list[dict[str, Any]] = [{"type": "text", "text": texts[0]}]
    for (name, url), text in zip(images, texts[1:], strict=True):
        shown = url and {"url": url}
        first.append({"type": "image_url", "image_url": shown, "uuid": name})
        first += [{"type": "text", "text": text}] if text else []
    plus = {"role": "assistant", "content": layout.plus_word}
    messages: list[dict[str, Any]] = []
    if layout.system_prompt is not None:
        messages.append({"role": "system", "content": layout.system_prompt})
    messages += [{"role": "user", "content": first}, plus]
    for step in steps[1:]:
        messages += [{"role": "user", "content": [{"type": "text", "text": step}]}, plus]
    return messages


def _tokens_per_tile(directory: Path) -> int:
    count = read_json(directory / "config.json").get("image_seq_length")
    if type(count) is not int or count < 1:
        raise CheckpointError(
            f"{directory}/config.json has no image_seq_length; the route to a stock server needs a "
            "native InternVL checkpoint"
        )
    return count


def _load_tokenizer(directory: Path) -> Any:
    if not any((directory / name).is_file() for name in _TOKENIZER_FILES):
        raise CheckpointError(f"{directory} holds no tokenizer ({', '.join(_TOKENIZER_FILES)})")
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            str(directory), trust_remote_code=False, local_files_only=True
        )
    except Exception as error:  # the tokenizers library raises bare exceptions
        raise CheckpointError(f"{directory}: the tokenizer cannot be loaded: {error}") from error


def _control_names(tokenizer: Any, layout_words: Iterable[str]) -> tuple[str, ...]:
    """Return all names that a chat endpoint could take for a token, longest first."""
    words = {*control_tokens(tokenizer), *layout_words, *_PLACEHOLDERS}
    return tuple(sorted((w for w in words if len(w.strip()) > 1), key=lambda w: (-len(w), w)))


def _files_digest(directory: Path) -> bytes:
    names = ("config.json", "tokenizer_config.json", *_TOKENIZER_FILES)
    files = [directory / name for name in names if (directory / name).is_file()]
    return digest(*(part for file in files for part in (file.name, file.read_bytes())))
