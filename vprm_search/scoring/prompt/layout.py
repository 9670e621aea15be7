"""The prompt layout of VisualPRM and its kin, and the one builder that turns it into tokens.

A problem with its solution becomes a conversation: the first user turn holds the images, the
question and the first step, every later user turn holds one step, and every assistant turn is the
literal word '+'. The score of a step is read at the token before that '+'. The builder remembers
these positions while it writes the tokens; nothing is ever found again by searching for it. Texts
are written as they are, white space and all: what a step is, is settled before it comes here.
The relatives of VisualPRM that are read in this way are rows of `families.FAMILIES`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
)

from vprm_search.errors import ConfigError, InputError
from vprm_search.scoring.prompt.text_encoder import EncodedText, TextEncoder, Tokenizer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

VISUALPRM_SYSTEM_PROMPT = (
    "你是书生·万象，英文名是InternVL，"
    "是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
)
"""The system message in force when VisualPRM's published scoring methods run."""

IMAGE_TAG = "<image>"
"""Where a question has its pictures, if it says so."""


class PrmLayout(BaseModel):
    """How a process reward model wants its conversation; the defaults are VisualPRM's.

    `system_prompt=None` leaves the system turn out. `first_turn` is the text of the first user
    turn with `{image}`, `{question}` and `{step}` in this order; with `own_step_turns` it ends
    with the question, and the first step gets a user turn of its own. Each image becomes
    `image_start + image_token * n + image_end + after_image`; `reads_images=False` is for models
    that know no images. A turn opens with `im_start`, the role and, for models that close the role
    with a token of its own, `header_end` and `after_header`. `begin_token` is written before
    everything, for tokenizers whose models were trained behind a begin-of-text token.
    `strip_turns` removes white space around the text of a turn, as some chat templates do.
    `closes_empty_turns=False` leaves `im_end` and `after_turn` out behind a step without text, as
    InternVL's template does: the role is all that is written of such a turn.
    `max_steps` is the bound up to which a solution given as one text is merged into steps
    (None: no merge). Source of the defaults: InternVL's `internvl2_5` conversation template and
    VisualPRM's scoring methods.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    # before first_turn, which is checked against it; left out of the JSON at its default
    own_step_turns: bool = False
    system_prompt: str | None = VISUALPRM_SYSTEM_PROMPT
    first_turn: str = "### Question:\n{image}{question}\n\n### Solution Process:\n{step}"
    plus_word: str = Field(default="+", min_length=1)
    minus_word: str = Field(default="-", min_length=1)
    im_start: str = "<|im_start|>"
    im_end: str = "<|im_end|>"
    image_start: str = "<img>"
    image_token: str = "<IMG_CONTEXT>"  # noqa: S105 - the name of a placeholder, not a secret
    image_end: str = "</img>"
    after_image: str = "\n"
    system_role: str = "system\n"
    user_role: str = "user\n"
    assistant_role: str = "assistant\n"
    after_turn: str = "\n"
    begin_token: str | None = None
    max_steps: int | None = Field(default=None, ge=1)
    header_end: str | None = None
    after_header: str = ""
    reads_images: bool = True
    strip_turns: bool = False
    closes_empty_turns: bool = False

    @field_validator("first_turn")
    @classmethod
    def _has_its_slots(cls, text: str, info: ValidationInfo) -> str:
        slots = ("{image}", "{question}", "{step}")[: 2 if info.data["own_step_turns"] else 3]
        places = [text.find(slot) for slot in slots]
        once = all(text.count(slot) == 1 for slot in slots)
        if not once or places != sorted(places) or not text.endswith(slots[-1]):
            raise ValueError(
                f"first_turn must hold {', '.join(slots)} once each, in this order, and end with "
                f"{slots[-1]}; it is {text!r}"
            )
        if len(slots) == 2 and "{step}" in text:
            raise ValueError("with own_step_turns, first_turn cannot hold {step}")
        return text

    @model_serializer(mode="wrap")
    def _as_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out later fields at their defaults: files and identities stay what they were."""
        data: dict[str, Any] = handler(self)
        fields = type(self).model_fields
        return {
            name: value
            for name, value in data.items()
            if name not in _LATER_FIELDS or getattr(self, name) != fields[name].default
        }

    def first_turn_parts(self) -> tuple[str, str, str]:
        """Return the fixed text before the images, before the question and before the step."""
        before, rest = self.first_turn.split("{image}")
        between, rest = rest.split("{question}")
        return before, between, rest.removesuffix("{step}")

    def control_words(self) -> tuple[str, ...]:
        """Return the names of all control tokens this layout writes."""
        words = [self.im_start, self.im_end]
        if self.reads_images:
            words += [self.image_start, self.image_token, self.image_end]
        optional = [word for word in (self.begin_token, self.header_end) if word is not None]
        return (*optional, *words)


_LATER_FIELDS = frozenset(
    {
        "own_step_turns",
        "header_end",
        "after_header",
        "reads_images",
        "strip_turns",
        "closes_empty_turns",
    }
)


@dataclass(frozen=True, slots=True)
class ScoringPrompt:
    """One problem and one solution as tokens.

    Attributes:
        ids: the tokens of the whole conversation, `[tokens]`.
        image_spans: `(start, stop)` of the image placeholders, one per image, in order.
        read_positions: index of the token at which the score of each step is read, `[steps]`. In
            a conversation that is the token before the '+' of the step, and the label word of a
            training row sits at `read_position + 1`; in a text with markers it is the marker.
        step_starts: index of the first token that belongs to each step (with the turn markers
            before it, except for the first step), `[steps]`.
        neutralised: how many stretches of text had to be changed visibly because they would have
            become a control token.
        positions: position ids `[axes, tokens]` of models that count positions on several axes
            (Qwen-VL); None means 0, 1, 2, …
    """

    ids: tuple[int, ...]
    image_spans: tuple[tuple[int, int], ...]
    read_positions: tuple[int, ...]
    step_starts: tuple[int, ...]
    neutralised: int = 0
    positions: NDArray[np.int64] | None = field(default=None, compare=False)

    @property
    def prefix_tokens(self) -> int:
        """Tokens before the first step."""
        return self.step_starts[0]

    @property
    def step_tokens(self) -> tuple[int, ...]:
        """Tokens of each step with its turn markers; with `prefix_tokens` they sum to all."""
        return tuple(stop - start for start, stop in pairwise((*self.step_starts, len(self.ids))))

    @property
    def scored_ids(self) -> tuple[int, ...]:
        """The tokens up to the last read position: all that a forward pass needs."""
        return self.ids[: self.read_positions[-1] + 1]


def joined(encoder: TextEncoder, text: str, step: str, after: str) -> tuple[EncodedText, int]:
    """Encode `text` and `step` as one stretch; return it and how many tokens it shares with `text`.

    The shared tokens belong to the problem, the others to the step.
    """
    whole, alone = encoder.encode(text + step, after), encoder.encode(text, after).ids
    pairs = enumerate(zip(whole.ids, alone, strict=False))
    shorter = min(len(whole.ids), len(alone))
    return whole, next((i for i, (a, b) in pairs if a != b), shorter)


def text_around_images(question: str, images: int) -> list[str] | None:
    """Return the question's text before, between and behind its images; None if they come first.

    A question that holds `<image>` has its pictures there, in order, as VisualPRM's own code and
    VLMEvalKit's interleaved prompts have them. Without pictures the tag is text like any other.

    Args:
        question: the question's text.
        images: how many pictures the problem has.

    Raises:
        InputError: there are pictures, and a number of tags that is neither theirs nor 0.
    """
    tags = question.count(IMAGE_TAG)
    if not (images and tags):
        return None
    if tags != images:
        raise InputError(
            f"the question says {IMAGE_TAG} {tags} times, but the problem has {images} images; "
            f"give as many, or leave {IMAGE_TAG} out to put the images before the question"
        )
    return question.split(IMAGE_TAG)


def check_contents(steps: Sequence[str], counts: Sequence[int], reads_images: bool) -> None:
    """Raise `InputError` for no step, an image without tokens, or images a model cannot read."""
    if not steps:
        raise InputError("a solution without steps cannot be scored; give at least one step")
    if counts and not reads_images:
        raise InputError(
            f"the problem has {len(counts)} images, but this reward model reads text only; use "
            "a multimodal one, or leave the images out if the question stands without them"
        )
    for number, count in enumerate(counts):
        if count < 1:
            raise InputError(f"image {number} has {count} tokens; it needs at least 1")


@dataclass(frozen=True, slots=True)
class _Header:
    """How a turn opens: tokens, and the trusted text before what the turn says."""

    ids: tuple[int, ...]
    text: str
    after: str


class PromptBuilder:
    """Writes conversations of one layout with one tokenizer.

    Raises `ConfigError` when the tokenizer lacks a token of the layout, or when the '+' and '-'
    words are not single tokens behind the assistant's role.
    """

    def __init__(self, tokenizer: Tokenizer, layout: PrmLayout) -> None:
        self.layout = layout
        self.encoder = TextEncoder(tokenizer, layout.control_words())
        control = self.encoder.control_id
        self.image_token_id = control(layout.image_token) if layout.reads_images else None
        self._user = self._header(layout.user_role)
        opener = self._header(layout.assistant_role)
        role = self._text(opener.text, opener.after)
        plus = self._text(opener.text + layout.plus_word, opener.after)
        minus = self._text(opener.text + layout.minus_word, opener.after)
        if plus[:-1] != role or minus[:-1] != role or plus[-1] == minus[-1] or not role:
            raise ConfigError(
                f"{layout.plus_word!r} and {layout.minus_word!r} must each be one token of their "
                f"own behind {layout.assistant_role!r}; this tokenizer gives {plus} and {minus} "
                f"behind {role}: set plus_word and minus_word of the layout"
            )
        self.plus_id, self.minus_id = plus[-1], minus[-1]
        self._turn_end = [control(layout.im_end), *self._text(layout.after_turn, layout.im_end)]
        self._verdict = [*opener.ids, *plus]
        self._opening = self._system_turn()

    def build(
        self, question: str, steps: Sequence[str], image_token_counts: Sequence[int] = ()
    ) -> ScoringPrompt:
        """Write one conversation.

        The tokens of a step do not depend on later steps: the prompt of the first i steps is a
        prefix of the prompt of the first i + 1.

        Args:
            question: its text, with the pictures where it says `<image>`, else before it.
            steps: at least one; an empty one is scored like any other.
            image_token_counts: how many placeholders each image has, in order.

        Raises:
            InputError: there is no step, an image has no token, the model reads no images, the
                `<image>` tags are not as many as the images, or a text cannot be kept from
                becoming a control token.
        """
        check_contents(steps, image_token_counts, self.layout.reads_images)
        ids = list(self._opening)
        starts: list[int] = []
        reads: list[int] = []
        waiting = list(steps)
        first = None if self.layout.own_step_turns else waiting.pop(0)
        spans, step_start, changed = self._first_turn(ids, question, first, image_token_counts)
        if first is None:
            ids.extend(self._turn_end)
        else:
            starts.append(step_start)
            self._close_step(ids, reads, closed=True)
        for step in waiting:
            starts.append(len(ids))
            text = step.strip() if self.layout.strip_turns else step
            encoded = self.encoder.encode(self._user.text + text, self._user.after)
            changed += encoded.neutralised
            ids.extend(self._user.ids)
            ids.extend(encoded.ids)
            closed = bool(text) or self.layout.closes_empty_turns
            self._close_step(ids, reads, closed=closed)
        return ScoringPrompt(tuple(ids), tuple(spans), tuple(reads), tuple(starts), changed)

    def _text(self, text: str, after: str) -> list[int]:
        return list(self.encoder.encode(text, after).ids)

    def _header(self, role: str) -> _Header:
        layout, control = self.layout, self.encoder.control_id
        start = control(layout.im_start)
        if layout.header_end is None:
            return _Header((start,), role, layout.im_start)
        name = self._text(role, layout.im_start)
        return _Header(
            (start, *name, control(layout.header_end)), layout.after_header, layout.header_end
        )

    def _system_turn(self) -> list[int]:
        layout = self.layout
        begin = [] if layout.begin_token is None else [self.encoder.control_id(layout.begin_token)]
        if layout.system_prompt is None:
            return begin
        header = self._header(layout.system_role)
        system = self._text(header.text + layout.system_prompt, header.after)
        return [*begin, *header.ids, *system, *self._turn_end]

    def _first_turn(
        self, ids: list[int], question: str, step: str | None, counts: Sequence[int]
    ) -> tuple[list[tuple[int, int]], int, int]:
        """Append the first turn to `ids`; return the image spans, the start of its step, changes.

        The question and the step are one stretch of text, so that the tokenizer sees them joined.
        """
        layout = self.layout
        before, between, after = layout.first_turn_parts()
        if layout.strip_turns:
            question, step = question.strip(), None if step is None else step.strip()
            after = after if question and step else after.strip()
        texts = text_around_images(question, len(counts))
        if texts is None:
            texts = [before, *[layout.after_image] * len(counts)]
            texts[-1] += between + question
        else:
            texts[0] = before + between + texts[0]
        ids.extend(self._user.ids)
        texts[0] = self._user.text + texts[0]
        last, changed = self._user.after, 0
        spans: list[tuple[int, int]] = []
        for text, count in zip(texts, counts, strict=False):
            encoded = self.encoder.encode(text, last)
            changed += encoded.neutralised
            ids.extend(encoded.ids)
            spans.append(self._image(ids, count))
            last = layout.image_end
        if step is None:
            encoded, shared = self.encoder.encode(texts[-1], last), 0
        else:
            encoded, shared = joined(self.encoder, texts[-1] + after, step, last)
        start = len(ids) + shared
        ids.extend(encoded.ids)
        return spans, start, changed + encoded.neutralised

    def _image(self, ids: list[int], count: int) -> tuple[int, int]:
        control = self.encoder.control_id
        ids.append(control(self.layout.image_start))
        start = len(ids)
        ids.extend([control(self.layout.image_token)] * count)
        ids.append(control(self.layout.image_end))
        return start, start + count

    def _close_step(self, ids: list[int], reads: list[int], *, closed: bool) -> None:
        ids.extend(self._turn_end if closed else ())
        ids.extend(self._verdict)
        reads.append(len(ids) - 2)
        ids.extend(self._turn_end)


def build_prompt(
    tokenizer: Tokenizer,
    layout: PrmLayout,
    question: str,
    steps: Sequence[str],
    image_token_counts: Sequence[int] = (),
) -> ScoringPrompt:
    """Write one conversation; the builder of a (tokenizer, layout) pair is kept for the next call.

    Raises what `PromptBuilder` and `PromptBuilder.build` raise.
    """
    return _builder(tokenizer, layout).build(question, steps, image_token_counts)


@lru_cache(maxsize=8)
def _builder(tokenizer: Tokenizer, layout: PrmLayout) -> PromptBuilder:
    return PromptBuilder(tokenizer, layout)
