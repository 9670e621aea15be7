"""Train the tiny policy from nothing: ``python -m vprm_search.tiny.train_policy --out DIR``.

Stages, each resumed from its saved result: language (on symbolic pictures), vision, solutions (both
together, on rendered pictures). The last stage saves checkpoints along the way: an early one, as
good as its pass@1 says, becomes the ``policy``; the last one the ``policy_strong``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import InternVLForConditionalGeneration, PreTrainedTokenizerFast

from vprm_search.tiny.architecture import build_model, load_checkpoint, save_checkpoint
from vprm_search.tiny.language_stage import LanguagePlan, train_language
from vprm_search.tiny.solution_stage import SolutionPlan, train_solutions
from vprm_search.tiny.tokenizer import build_tokenizer, save_tokenizer
from vprm_search.tiny.vision_stage import VisionPlan, train_vision

Trainer = Callable[[InternVLForConditionalGeneration], None]


def run_stage(
    folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    start: Callable[[], InternVLForConditionalGeneration],
    train: Trainer,
) -> InternVLForConditionalGeneration:
    """Load a stage's saved float32 result, or train it from `start` and save it."""
    if not folder.exists():
        model = start()
        train(model)
        save_checkpoint(model, tokenizer, folder, torch.float32)
    return load_checkpoint(folder)


def train_policy(out: Path, seed: int = 1) -> None:
    tokenizer = build_tokenizer()
    save_tokenizer(out / "tokenizer")
    stages = out / "policy_stages"
    language = run_stage(
        stages / "language",
        tokenizer,
        lambda: build_model(tokenizer, seed=seed),
        lambda model: train_language(model, tokenizer, LanguagePlan(), seed, stages),
    )
    vision = run_stage(
        stages / "vision",
        tokenizer,
        lambda: language,
        lambda model: train_vision(model, tokenizer, VisionPlan(), seed, stages),
    )
    run_stage(
        stages / "final",
        tokenizer,
        lambda: vision,
        lambda model: train_solutions(model, tokenizer, SolutionPlan(), seed, stages / "solutions"),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    train_policy(arguments.out, arguments.seed)


if __name__ == "__main__":
    main()
