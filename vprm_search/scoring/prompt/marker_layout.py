"""Solutions as one text: every step is followed by a marker token, and read at that marker."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from vprm_search.errors import ConfigError
from vprm_search.scoring.prompt.layout import (
    ScoringPrompt,
    check_contents,
    joined,
    text_around_images,
)
from vprm_search.scoring.prompt.text_encoder import TextEncoder, Tokenizer

TOKENIZER_BOS = "{bos}"
"""As `begin_token`: whatever the tokenizer calls its begin-of-text token."""

_SLOTS = ("{system}", "{image}", "{question}")


class MarkerLayout(BaseModel):
    """How a process reward model wants one text with a marker after every step.

    `prefix` is the text before the first step, with the slots `{system}` (if there is a
    `system_prompt`), `{image}` (if `reads_images`) and `{question}`; the names of
    `control_tokens` in it become those tokens. Then come the steps, `separator` between them, each
    followed by `marker`: an added token of its own, or with `text_marker` a word of the ordinary
    vocabulary (a leading blank belongs to it). `reserved=False` says that texts may contain the
    marker's token: where it is a line break, it forges nothing, since read positions are counted
    and not searched. `plus_word` and `minus_word` are names in the vocabulary, for models read by
    two words. `steps_apart` encodes every step by itself instead of joined with the text before
    it; `strip_steps` removes the white space around a step. `begin_token` is written before
    everything (`TOKENIZER_BOS`: the tokenizer's own). `max_steps` as in `PrmLayout`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    marker: str = Field(min_length=1)
    prefix: str
    control_tokens: tuple[str, ...] = ()
    system_prompt: str | None = None
    separator: str = ""
    text_marker: bool = False
    reserved: bool = True
    plus_word: str | None = None
    minus_word: str | None = None
    steps_apart: bool = False
    strip_steps: bool = False
    reads_images: bool = False
    image_start: str = "<img>"
    image_token: str = "<IMG_CONTEXT>"  # noqa: S105 - the name of a placeholder, not a secret
    image_end: str = "</img>"
    after_image: str = "\n"
    begin_token: str | None = None
    max_steps: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _has_its_slots(self) -> MarkerLayout:
        used = {
            "{system}": self.system_prompt is not None,
            "{image}": self.reads_images,
            "{question}": True,
        }
        wrong = [slot for slot, needed in used.items() if self.prefix.count(slot) != int(needed)]
        if wrong:
            raise ValueError(
                f"prefix must hold {{question}} once, {{system}} once if there is a system_prompt "
                f"and {{image}} once if reads_images; {', '.join(wrong)} is not so in "
                f"{self.prefix!r}"
            )
        if self.text_marker and self.reserved and self.separator[:1] != "\n" and self.separator:
            raise ValueError("behind a text_marker the separator must begin with a line break")
        return self

    def control_words(self) -> tuple[str, ...]:
        """Return the names of all control tokens this layout writes, but for `TOKENIZER_BOS`."""
        words = list(self.control_tokens)
        if self.begin_token not in (None, TOKENIZER_BOS):
            words.insert(0, str(self.begin_token))
        if self.reads_images:
            words += [self.image_start, self.image_token, self.image_end]
        return tuple(words if self.text_marker else [*words, self.marker])


class MarkerBuilder:
    """Writes texts of one layout with one tokenizer.

    Raises `ConfigError` when the tokenizer lacks a token of the layout or a word of its pair, or
    when a `text_marker` is not one token behind a text.
    """

    def __init__(self, tokenizer: Tokenizer, layout: MarkerLayout) -> None:
        self.layout = layout
        words = layout.control_words()
        begin = layout.begin_token
        if begin == TOKENIZER_BOS:
            begin = _own_begin(tokenizer)
            words = (begin, *words)
        marker = _marker_id(tokenizer, layout.marker) if layout.text_marker else None
        kept = {layout.marker: marker} if marker is not None and layout.reserved else {}
        self.encoder = TextEncoder(tokenizer, words, kept)
        control = self.encoder.control_id
        self._begin = [] if begin is None else [control(begin)]
        self.marker_id = control(layout.marker) if marker is None else marker
        self._behind_marker = "" if layout.steps_apart or not layout.reserved else layout.marker
        self.image_token_id = control(layout.image_token) if layout.reads_images else None
        self.plus_id = _word_id(tokenizer, layout.plus_word)
        self.minus_id = _word_id(tokenizer, layout.minus_word)
        names = sorted((*layout.control_tokens, *_SLOTS), key=len, reverse=True)
        self._pieces = re.split(f"({'|'.join(map(re.escape, names))})", layout.prefix)

    def build(
        self, question: str, steps: Sequence[str], image_token_counts: Sequence[int] = ()
    ) -> ScoringPrompt:
        """Write one text; `image_token_counts` holds the placeholders of each image.

        It ends at the last marker: the prompt of the first i steps is a prefix of the prompt of
        the first i + 1, and what a template closes the text with cannot change a score. Raises
        `InputError` as `PromptBuilder.build` does.
        """
        layout = self.layout
        check_contents(steps, image_token_counts, layout.reads_images)
        if layout.strip_steps:
            steps = [step.strip() for step in steps]
        ids = list(self._begin)
        spans, text, after, changed = self._prefix(ids, question, image_token_counts)
        if layout.steps_apart:
            before = self.encoder.encode(text, after)
            encoded, shared = self.encoder.encode(steps[0], ""), 0
            ids.extend(before.ids)
            changed += before.neutralised
        else:
            encoded, shared = joined(self.encoder, text, steps[0], after)
        starts: list[int] = [len(ids) + shared]
        reads: list[int] = []
        for number in range(len(steps)):
            if number:
                starts.append(len(ids))
                text = layout.separator + steps[number]
                encoded = self.encoder.encode(text, self._behind_marker)
            ids.extend(encoded.ids)
            changed += encoded.neutralised
            reads.append(len(ids))
            ids.append(self.marker_id)
        return ScoringPrompt(tuple(ids), tuple(spans), tuple(reads), tuple(starts), changed)

    def _prefix(
        self, ids: list[int], question: str, counts: Sequence[int]
    ) -> tuple[list[tuple[int, int]], str, str, int]:
        """Append the prefix to `ids` but for its last stretch of text.

        Return the image spans, that stretch, the control token before it, and the changes.
        """
        control, placeholders = self.encoder.control_id, iter(counts)
        spans: list[tuple[int, int]] = []
        text, after, changed = "", "", 0
        for kind, piece in self._filled(question, len(counts)):
            if kind == "text":
                text += piece
                continue
            encoded = self.encoder.encode(text, after)
            changed += encoded.neutralised
            ids.extend((*encoded.ids, control(piece)))
            text, after = "", piece
            if kind == "image":
                count = next(placeholders)
                spans.append((len(ids), len(ids) + count))
                ids.extend([control(self.layout.image_token)] * count)
                ids.append(control(self.layout.image_end))
                after = self.layout.image_end
        return spans, text, after, changed

    def _filled(
        self, question: str, images: int
    ) -> Iterator[tuple[Literal["text", "control", "image"], str]]:
        """Yield the prefix with its slots filled, images where the question has them or before."""
        layout = self.layout
        around = text_around_images(question, images)
        for piece in self._pieces:
            if piece in layout.control_tokens:
                yield "control", piece
            elif piece == "{image}":
                for _ in range(images if around is None else 0):
                    yield "image", layout.image_start
                    yield "text", layout.after_image
            elif piece == "{question}":
                first, *others = around or [question]
                yield "text", first
                for part in others:
                    yield "image", layout.image_start
                    yield "text", part
            else:
                yield "text", (layout.system_prompt or "") if piece == "{system}" else piece


def _own_begin(tokenizer: Tokenizer) -> str:
    name = getattr(tokenizer, "bos_token", None)
    if not name:
        raise ConfigError(
            "the layout begins with the tokenizer's begin-of-text token, but this tokenizer names "
            "none; set begin_token in the layout (null if the model was trained without one)"
        )
    return str(name)


def _marker_id(tokenizer: Tokenizer, marker: str) -> int:
    def encode(text: str) -> list[int]:
        out = tokenizer(text, add_special_tokens=False, split_special_tokens=True)
        return list(out["input_ids"])

    alone, ids = encode("a"), encode("a" + marker)
    if ids[:-1] != alone:
        raise ConfigError(
            f"the marker {marker!r} must be one token behind a text; this tokenizer gives {ids} "
            f"for {'a' + marker!r} and {alone} for 'a': set the layout's marker to this model's"
        )
    return ids[-1]


def _word_id(tokenizer: Tokenizer, word: str | None) -> int | None:
    if word is None:
        return None
    token = tokenizer.convert_tokens_to_ids(word)
    if token is None or tokenizer.convert_ids_to_tokens(token) != word:
        raise ConfigError(
            f"the tokenizer's vocabulary has no token {word!r}; set plus_word and minus_word of "
            "the layout to the names of the two tokens the model was trained with"
        )
    return token
