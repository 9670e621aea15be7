"""Forward passes for training: image tokens from pixels or, before the model can see, from symbols.

A *symbolic picture* puts into each image token what vision should one day deliver there: the sum
of the embeddings of the token that asks for the colour (`` red =``) and of the digit (`` 3``), or
the plain image placeholder for an empty cell. A language model learns to bind colour and value on
such pictures in minutes; the vision tower is then taught to produce the same vectors.
"""

from __future__ import annotations

import torch
from torch.nn import functional
from transformers import InternVLForConditionalGeneration, PreTrainedTokenizerFast

from examples.tiny_models.policy_data import EMPTY, IGNORED, Batch, Boards, boards
from examples.tiny_models.tokenizer import token_id
from vprm_search.tiny.inputs import IMAGE_CONTEXT, pixel_values
from vprm_search.tiny.problem import COLOURS
from vprm_search.tiny.rendering import render


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
