"""The prompt layout of VisualPRM and its kin, and the one builder that turns it into tokens.

A problem with its solution becomes a conversation: the first user turn holds the images, the
question and the first step, every later user turn holds one step, and every assistant turn is the
literal word '+'. The score of a step is read at the token before that '+'. The builder remembers
these positions while it writes the tokens; nothing is ever found again by searching for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from pydantic import BaseModel, ConfigDict, Field, field_validator

from vprm_search.errors import ConfigError, InputError
from vprm_search.scoring.text_encoder import TextEncoder, Tokenizer

VISUALPRM_SYSTEM_PROMPT = (
    "你是书生·万象，英文名是InternVL，"
    "是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
)
"""The system message in force when VisualPRM's published scoring methods run."""


class PrmLayout(BaseModel):
    """How a process reward model wants its conversation; the defaults are VisualPRM's.

    `system_prompt=None` leaves the system turn out. `first_turn` is the text of the first user
    turn with `{image}`, `{question}` and `{step}` in this order; each image becomes
    `image_start + image_token * n + image_end + after_image`. `begin_token` is written before
    everything, for tokenizers whose models were trained behind a begin-of-text token.
    `max_steps` is the bound up to which a solution given as one text is merged into steps
    (None: no merge). Source of the defaults: InternVL's `internvl2_5` conversation template and
    VisualPRM's scoring methods.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

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

    @field_validator("first_turn")
    @classmethod
    def _has_three_slots(cls, text: str) -> str:
        slots = ("{image}", "{question}", "{step}")
        places = [text.find(slot) for slot in slots]
        once = all(text.count(slot) == 1 for slot in slots)
        if not once or places != sorted(places) or not text.endswith("{step}"):
            raise ValueError(
                f"first_turn must hold {{image}}, {{question}} and {{step}} once each, in this "
                f"order, and end with {{step}}; it is {text!r}"
            )
        return text

    def first_turn_parts(self) -> tuple[str, str, str]:
        """Return the fixed text before the images, before the question and before the step."""
        before, rest = self.first_turn.split("{image}")
        between, rest = rest.split("{question}")
        return before, between, rest.removesuffix("{step}")

    def control_words(self) -> tuple[str, ...]:
        """Return the names of all control tokens this layout writes."""
        words = (self.im_start, self.im_end, self.image_start, self.image_token, self.image_end)
        return words if self.begin_token is None else (self.begin_token, *words)


@dataclass(frozen=True, slots=True)
class ScoringPrompt:
    """One problem and one solution as tokens.

    Attributes:
        ids: the tokens of the whole conversation, `[tokens]`.
        image_spans: `(start, stop)` of the image placeholders, one per image, in order.
        read_positions: index of the token before the '+' of each step, `[steps]`; the label word
            of a training row sits at `read_position + 1`.
        step_starts: index of the first token that belongs to each step (with the turn markers
            before it, except for the first step), `[steps]`.
        neutralised: how many stretches of text had to be changed visibly because they would have
            become a control token.
    """

    ids: tuple[int, ...]
    image_spans: tuple[tuple[int, int], ...]
    read_positions: tuple[int, ...]
    step_starts: tuple[int, ...]
    neutralised: int = 0

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


class PromptBuilder:
    """Writes conversations of one layout with one tokenizer.

    Raises `ConfigError` when the tokenizer lacks a token of the layout, or when the '+' and '-'
    words are not single tokens behind the assistant's role.
    """

    def __init__(self, tokenizer: Tokenizer, layout: PrmLayout) -> None:
        self.layout = layout
        self.encoder = TextEncoder(tokenizer, layout.control_words())
        ids = self.encoder.control_id
        self._im_start, self._im_end = ids(layout.im_start), ids(layout.im_end)
        self._image_start, self._image_end = ids(layout.image_start), ids(layout.image_end)
        self.image_token_id = ids(layout.image_token)
        role = self._text(layout.assistant_role, layout.im_start)
        plus = self._text(layout.assistant_role + layout.plus_word, layout.im_start)
        minus = self._text(layout.assistant_role + layout.minus_word, layout.im_start)
        if plus[:-1] != role or minus[:-1] != role or plus[-1] == minus[-1] or not role:
            raise ConfigError(
                f"{layout.plus_word!r} and {layout.minus_word!r} must each be one token of their "
                f"own behind {layout.assistant_role!r}; this tokenizer gives {plus} and {minus} "
                f"behind {role}: set plus_word and minus_word of the layout"
            )
        self.plus_id, self.minus_id = plus[-1], minus[-1]
        turn_end = [self._im_end, *self._text(layout.after_turn, layout.im_end)]
        self._verdict = [*turn_end, self._im_start, *plus]
        self._after_verdict = turn_end
        self._opening = self._system_turn(turn_end)

    def build(
        self, question: str, steps: Sequence[str], image_token_counts: Sequence[int] = ()
    ) -> ScoringPrompt:
        """Write one conversation; `image_token_counts` holds the placeholders of each image.

        The tokens of a step do not depend on later steps: the prompt of the first i steps is a
        prefix of the prompt of the first i + 1. Raises `InputError` when there is no step, an
        image has no token, or a text cannot be kept from becoming a control token.
        """
        if not steps:
            raise InputError("a solution without steps cannot be scored; give at least one step")
        ids = list(self._opening)
        spans, first, step_start, changed = self._first_turn(
            ids, question, steps[0], image_token_counts
        )
        ids.extend(first)
        starts: list[int] = [step_start]
        reads: list[int] = []
        self._close_step(ids, reads)
        for step in steps[1:]:
            starts.append(len(ids))
            encoded = self.encoder.encode(self.layout.user_role + step, self.layout.im_start)
            changed += encoded.neutralised
            ids.append(self._im_start)
            ids.extend(encoded.ids)
            self._close_step(ids, reads)
        return ScoringPrompt(tuple(ids), tuple(spans), tuple(reads), tuple(starts), changed)

    def _text(self, text: str, after: str) -> list[int]:
        return list(self.encoder.encode(text, after).ids)

    def _system_turn(self, turn_end: list[int]) -> list[int]:
        layout = self.layout
        begin = [] if layout.begin_token is None else [self.encoder.control_id(layout.begin_token)]
        if layout.system_prompt is None:
            return [*begin, self._im_start]
        system = self._text(layout.system_role + layout.system_prompt, layout.im_start)
        return [*begin, self._im_start, *system, *turn_end, self._im_start]

    def _first_turn(
        self, ids: list[int], question: str, step: str, counts: Sequence[int]
    ) -> tuple[list[tuple[int, int]], tuple[int, ...], int, int]:
        """Append the images to `ids`; return their spans, the last stretch, its step, changes."""
        layout = self.layout
        before, between, after = layout.first_turn_parts()
        text, last = layout.user_role + before, layout.im_start
        spans: list[tuple[int, int]] = []
        for count in counts:
            if count < 1:
                raise InputError(f"image {len(spans)} has {count} tokens; it needs at least 1")
            ids.extend(self._text(text, last))
            ids.append(self._image_start)
            spans.append((len(ids), len(ids) + count))
            ids.extend([self.image_token_id] * count)
            ids.append(self._image_end)
            text, last = layout.after_image, layout.image_end
        text += between + question + after
        encoded = self.encoder.encode(text + step, last)
        shared = _common_prefix(encoded.ids, self.encoder.encode(text, last).ids)
        return spans, encoded.ids, len(ids) + shared, encoded.neutralised

    def _close_step(self, ids: list[int], reads: list[int]) -> None:
        ids.extend(self._verdict)
        reads.append(len(ids) - 2)
        ids.extend(self._after_verdict)


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


def _common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    pairs = enumerate(zip(left, right, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(left), len(right)))
