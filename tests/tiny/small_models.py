"""A random tiny policy, small enough for hundreds of forward passes in a test."""

from __future__ import annotations

from functools import cache
from typing import Any

from examples.tiny_models.model import TinyShape, build_model
from examples.tiny_models.tokenizer import build_tokenizer
from vprm_search.tiny.sampler import TinySampler

SHAPE = TinyShape(
    width=64, layers=2, heads=4, key_value_heads=2, vision_width=32, vision_layers=1, expansion=2
)


@cache
def small_tokenizer() -> Any:
    return build_tokenizer()


@cache
def small_sampler(seed: int = 0) -> TinySampler:
    return TinySampler(build_model(small_tokenizer(), SHAPE, seed=seed), small_tokenizer())
