"""Training batches of the tiny policy, and the forward passes over them.

Rows are arithmetic facts, captions and whole solutions. Image tokens come from pixels or, before
the model can see, from symbols. A *symbolic picture* puts into each image token what vision should
one day deliver there: the sum of the embeddings of the token that asks for the colour (`` red =``)
and of the digit (`` 3``), or the plain image placeholder for an empty cell. A language model learns
to bind colour and value on such pictures in minutes; the vision tower is then taught to produce the
same vectors.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional
from transformers import InternVLForConditionalGeneration, PreTrainedTokenizerFast

from examples.tiny_models.tokenizer import IMAGE_TOKENS, policy_prompt, token_id
from vprm_search.tiny.sampler import IMAGE_CONTEXT, TURN_END, pixel_values
from vprm_search.tiny.world import (
    COLOURS,
    OPERATORS,
    STEP_SEPARATOR,
    TinyProblem,
    apply_operator,
    arithmetic_step,
    in_range,
    reading_step,
    render,
    value_cells,
)

# --- rows and targets ---


IGNORED = -100
EMPTY = -1
FACTS_PER_ROW = 12
CAPTION_QUESTION = "Read the picture"


@dataclass(frozen=True, slots=True)
class Batch:
    """Right-padded rows: `ids` and `targets` `[rows, length]`; a target is the id or IGNORED."""

    ids: torch.Tensor
    targets: torch.Tensor
    problems: tuple[TinyProblem, ...] = ()


@dataclass(frozen=True, slots=True)
class Boards:
    """What stands in each of the 16 cells, `[problems, 16]`: colour and digit indices, or EMPTY."""

    colours: torch.Tensor
    digits: torch.Tensor


def boards(problems: Sequence[TinyProblem]) -> Boards:
    """Lay true values out in the cells of their pictures (digit index = value - 1)."""
    colours = torch.full((len(problems), IMAGE_TOKENS), EMPTY)
    digits = torch.full((len(problems), IMAGE_TOKENS), EMPTY)
    for row, problem in enumerate(problems):
        shown = zip(value_cells(problem), problem.names, problem.values, strict=True)
        for cell, name, value in shown:
            colours[row, cell] = COLOURS.index(name)
            digits[row, cell] = value - 1
    return Boards(colours, digits)


class BatchMaker:
    """Tokenises problems into training batches."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        self._pad = int(tokenizer.pad_token_id)
        self._reading_ids = {token_id(tokenizer, f" {name} =") for name in COLOURS}

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenise trusted texts of the world (control tokens are meant as such)."""
        ids: list[list[int]] = self._tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return ids

    def solutions(self, problems: Sequence[TinyProblem]) -> Batch:
        """Make rows of prompt and gold solution, with a loss on every solution token."""
        prompts = self.encode([policy_prompt(problem.question) for problem in problems])
        answers = self.encode([problem.solution + TURN_END for problem in problems])
        rows = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
        targets = [
            [IGNORED] * len(prompt) + answer
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        return self._pad_rows(rows, targets, problems)

    def captions(self, problems: Sequence[TinyProblem], rng: random.Random) -> Batch:
        """Make rows that read every value in random order, with a loss on the values only."""
        rows = self.encode(
            [policy_prompt(CAPTION_QUESTION) + _caption(problem, rng) for problem in problems]
        )
        targets = [
            [
                token if position and row[position - 1] in self._reading_ids else IGNORED
                for position, token in enumerate(row)
            ]
            for row in rows
        ]
        return self._pad_rows(rows, targets, problems)

    def arithmetic(self, rows: int, rng: random.Random) -> Batch:
        """Make rows of twelve independent calculations each, with a loss on the results only."""
        facts = [_fact(rng) for _ in range(rows * FACTS_PER_ROW)]
        heads = self.encode([head for head, _ in facts])
        tails = self.encode([tail for _, tail in facts])
        ids: list[list[int]] = [[] for _ in range(rows)]
        targets: list[list[int]] = [[] for _ in range(rows)]
        for number, (head, tail) in enumerate(zip(heads, tails, strict=True)):
            ids[number % rows] += head + tail
            targets[number % rows] += [IGNORED] * len(head) + tail
        return self._pad_rows(ids, targets, ())

    def _pad_rows(
        self,
        rows: Sequence[list[int]],
        targets: Sequence[list[int]],
        problems: Sequence[TinyProblem],
    ) -> Batch:
        length = max(map(len, rows))
        return Batch(
            ids=torch.tensor([row + [self._pad] * (length - len(row)) for row in rows]),
            targets=torch.tensor([row + [IGNORED] * (length - len(row)) for row in targets]),
            problems=tuple(problems),
        )


def _caption(problem: TinyProblem, rng: random.Random) -> str:
    shown = list(zip(problem.names, problem.values, strict=True))
    rng.shuffle(shown)
    lines = [reading_step(number, *pair) for number, pair in enumerate(shown, start=1)]
    return STEP_SEPARATOR.join(lines)


def _fact(rng: random.Random) -> tuple[str, str]:
    """Draw one calculation step, split just before its result."""
    while True:
        left = rng.randint(1, 9) if rng.random() < 0.5 else rng.randint(0, 99)
        operator, right = rng.choice(OPERATORS), rng.randint(1, 9)
        result = apply_operator(left, operator, right)
        if in_range(result):
            break
    step = arithmetic_step(rng.randrange(3, 12, 2), left, operator, right, result)
    head = step[: -len(f" {result}.")]
    return head, f" {result}.{STEP_SEPARATOR}"


# --- forward passes ---


class SymbolIds:
    """Token ids whose embeddings make up symbolic pictures."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.colours = torch.tensor([token_id(tokenizer, f" {name} =") for name in COLOURS])
        self.digits = torch.tensor([token_id(tokenizer, f" {value}") for value in range(1, 10)])
        self.placeholder = token_id(tokenizer, IMAGE_CONTEXT)


def symbolic_features(embedding: torch.Tensor, symbols: SymbolIds, layout: Boards) -> torch.Tensor:
    """Return ideal image tokens `[problems, 16, width]`, from the `[vocab, width]` embedding."""
    occupied = (layout.colours != EMPTY)[..., None]
    colour = embedding[symbols.colours[layout.colours.clamp(min=0)]]
    digit = embedding[symbols.digits[layout.digits.clamp(min=0)]]
    return torch.where(occupied, colour + digit, embedding[symbols.placeholder])


def image_features(model: InternVLForConditionalGeneration, pixels: torch.Tensor) -> torch.Tensor:
    """Return the image tokens `[images, 16, width]` seen in `[images, 3, 64, 64]` pixels."""
    features: torch.Tensor = model.model.get_image_features(
        pixel_values=pixels, vision_feature_layer=-1, vision_feature_select_strategy="default"
    ).pooler_output
    return features


def render_batch(batch: Batch) -> torch.Tensor:
    """Draw the batch's problems as normalised pixels."""
    return pixel_values([render(problem) for problem in batch.problems])


def noisy_symbols(
    model: InternVLForConditionalGeneration,
    symbols: SymbolIds,
    batch: Batch,
    noise: float,
    generator: torch.Generator,
) -> torch.Tensor:
    """Return symbolic image tokens with Gaussian noise of `noise` times their root mean square."""
    embedding = model.get_input_embeddings().weight
    clean = symbolic_features(embedding, symbols, boards(batch.problems))
    scale = clean.detach().float().pow(2).mean().sqrt()
    jitter = torch.randn(clean.shape, generator=generator) * scale * noise
    return clean + jitter.to(clean.dtype)


def logits_and_targets(
    model: InternVLForConditionalGeneration, batch: Batch, features: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return float32 logits `[targets, vocab]` where a target is predicted, and the targets."""
    embedding = model.get_input_embeddings()
    inputs = embedding(batch.ids)
    if features is not None:
        is_image = (batch.ids == model.config.image_token_id)[..., None]
        inputs = inputs.masked_scatter(is_image, features.to(inputs.dtype))
    hidden = model.model.language_model(inputs_embeds=inputs, use_cache=False).last_hidden_state
    wanted = batch.targets[:, 1:] != IGNORED
    logits = hidden[:, :-1][wanted] @ embedding.weight.T
    return logits.float(), batch.targets[:, 1:][wanted]


def language_loss(
    model: InternVLForConditionalGeneration, batch: Batch, features: torch.Tensor | None
) -> torch.Tensor:
    """Return the mean cross-entropy over the batch's targets."""
    logits, targets = logits_and_targets(model, batch, features)
    return functional.cross_entropy(logits, targets)
