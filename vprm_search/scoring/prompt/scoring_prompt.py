"""One problem and one solution as tokens, with the places where the scores are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

from vprm_search.errors import InputError
from vprm_search.scoring.prompt.text_encoder import EncodedText, TextEncoder

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


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
