"""The training stages of the tiny reward models: bootstrap, practice and fine-tuning.

The *bootstrap* starts from the strong policy with three new layers on top and learns from
rule-made errors, with the local losses of `reward_losses`; *practice* is more of it. The
*fine-tuning* goes on from there with the weaker policy's own solutions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors.torch import load_file, save_file
from torch.nn import Parameter
from transformers import AutoTokenizer

from examples.tiny_models.model import deepen, save_checkpoint
from examples.tiny_models.muon import Muon
from examples.tiny_models.reward_data import LabelKind, RewardBatches, labelled_texts
from examples.tiny_models.reward_losses import JudgedRow, LocalLosses, check_rewards
from examples.tiny_models.reward_rows import TINY_LAYOUT, RowWriter, collate
from examples.tiny_models.reward_trainer import (
    Evaluation,
    Optimisers,
    RewardTrainer,
    Schedule,
    TrainConfig,
)
from examples.tiny_models.tokenizer import token_id
from vprm_search.labelling.records import read_records
from vprm_search.scoring.families import ScorerFile
from vprm_search.scoring.pixels import PreprocessConfig
from vprm_search.tiny.sampler import load_checkpoint
from vprm_search.tiny.world import IMAGE_SIZE

# --- plans and optimisers ---


class RewardPlan(BaseModel):
    """One stage: how long, how fast, and from what mixture of rows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(ge=1)
    verdicts: int = Field(default=264, ge=1)
    short_until: int = Field(default=0, ge=0)
    new_rate: float = 0.02
    old_rate: float = 0.004
    other_rate: float = 1e-3
    head_rate: float = 3e-3
    warmup_steps: int = 30
    decay_share: float = Field(default=0.5, gt=0, le=1)
    rule_share: float = Field(default=1.0, ge=0, le=1)
    label_smoothing: float = 0.0
    seed: int = 1

    def train_config(self) -> TrainConfig:
        """Return the trainer's configuration."""
        return TrainConfig(
            schedule=Schedule(
                steps=self.steps,
                warmup_share=min(1.0, self.warmup_steps / self.steps),
                decay="linear",
                decay_share=self.decay_share,
                final_factor=0.01,
            ),
            label_smoothing=self.label_smoothing,
            log_every=10,
            evaluate_every=100,
            save_every=50,
        )


BOOTSTRAP = RewardPlan(steps=600, short_until=200)
PRACTICE = RewardPlan(
    steps=330, new_rate=0.015, old_rate=0.003, other_rate=8e-4, decay_share=0.8, seed=3
)
FINE_TUNE = RewardPlan(
    steps=320,
    new_rate=0.012,
    old_rate=0.003,
    other_rate=7e-4,
    decay_share=0.8,
    rule_share=0.5,
    seed=2,
)


def reward_optimisers(plan: RewardPlan, old_layers: int) -> Optimisers:
    """Return Muon for matrices (new layers faster than old) and AdamW for everything else."""

    def build(named: Sequence[tuple[str, Parameter]]) -> list[torch.optim.Optimizer]:
        groups: dict[str, list[Parameter]] = {"new": [], "old": [], "other": [], "head": []}
        for name, parameter in named:
            if name.startswith("auxiliary."):
                groups["head"].append(parameter)
            elif parameter.ndim != 2 or "embed" in name:
                groups["other"].append(parameter)
            else:
                layer = int(name.partition("layers.")[2].partition(".")[0])
                groups["new" if layer >= old_layers else "old"].append(parameter)
        rates = {"new": plan.new_rate, "old": plan.old_rate}
        muon = [{"params": groups[k], "lr": rate} for k, rate in rates.items() if groups[k]]
        adam = [
            {"params": groups["other"], "lr": plan.other_rate},
            {"params": groups["head"], "lr": plan.head_rate},
        ]
        return [
            Muon(muon, lr=plan.new_rate, weight_decay=0.0),
            torch.optim.AdamW(adam, lr=plan.other_rate, betas=(0.9, 0.97), weight_decay=0.0),
        ]

    return build


# --- stages ---


NEW_LAYERS = 3
HEADS_FILE = "heads.safetensors"
SCORER_SETTINGS = ScorerFile(
    layout=TINY_LAYOUT,
    preprocess=PreprocessConfig(tile_size=IMAGE_SIZE, max_tiles=1, thumbnail=False),
)
"""What a scorer must know about a tiny reward model (`vprm.json`)."""
_LOUDNESS = 25.0  # initial logit of both verdict words at the mean hidden state
Report = Callable[[str], None]


def bootstrap(
    strong_dir: Path,
    out: Path,
    plan: RewardPlan = BOOTSTRAP,
    *,
    dev: Sequence[JudgedRow] = (),
    report: Report | None = None,
) -> None:
    """Train the rule-made stage into `out` (float32 checkpoint and the local losses' heads)."""
    tokenizer = AutoTokenizer.from_pretrained(strong_dir, local_files_only=True)
    policy = load_checkpoint(strong_dir)
    old_layers = policy.config.text_config.num_hidden_layers
    norm = policy.model.language_model.norm.weight
    model = deepen(policy, NEW_LAYERS, seed=plan.seed)
    writer = RowWriter(tokenizer)
    batches = RewardBatches(writer, plan.seed, plan.verdicts, short_until=plan.short_until)
    auxiliary = LocalLosses.on_top_of(norm, old_layers)
    words = verdict_words(tokenizer)
    trainer = _trainer(model, words, plan, old_layers, auxiliary)
    if not (out / "state").exists():
        start_verdict_words(trainer, words, batches, plan.seed)
    _run(trainer, batches, out, dev, words, report)
    _save_stage(model, tokenizer, auxiliary, out)


def practise(
    start: Path,
    out: Path,
    plan: RewardPlan = PRACTICE,
    *,
    dev: Sequence[JudgedRow] = (),
    report: Report | None = None,
) -> None:
    """Train a second rule-made stage from the result of `bootstrap`; same kind of output."""
    tokenizer, model, auxiliary = _resumed(start)
    batches = RewardBatches(RowWriter(tokenizer), plan.seed, plan.verdicts)
    words = verdict_words(tokenizer)
    trainer = _trainer(model, words, plan, _old_layers(model), auxiliary)
    _run(trainer, batches, out, dev, words, report)
    _save_stage(model, tokenizer, auxiliary, out)


def fine_tune(
    start: Path,
    records: Path,
    out: Path,
    kind: LabelKind,
    plan: RewardPlan = FINE_TUNE,
    *,
    dev: Sequence[JudgedRow] = (),
    report: Report | None = None,
) -> None:
    """Train the last stage on labelled solutions; `out/model` gets the checkpoint (float16)."""
    tokenizer, model, auxiliary = _resumed(start)
    writer = RowWriter(tokenizer, "final_step" if kind == "outcome" else "every_step")
    texts = labelled_texts(read_records(records), kind)
    batches = RewardBatches(
        writer, plan.seed, plan.verdicts, texts, plan.rule_share, local_targets=kind == "exact"
    )
    words = verdict_words(tokenizer)
    trainer = _trainer(model, words, plan, _old_layers(model), auxiliary)
    _run(trainer, batches, out, dev, words, report)
    save_checkpoint(model, tokenizer, out / "model", torch.float16)
    SCORER_SETTINGS.write(out / "model")


def _resumed(start: Path) -> tuple[Any, Any, LocalLosses]:
    """Return the tokenizer, the model and the local losses' heads a stage left behind."""
    tokenizer = AutoTokenizer.from_pretrained(start / "model", local_files_only=True)
    model = load_checkpoint(start / "model")
    heads = {k: Parameter(v) for k, v in load_file(start / HEADS_FILE).items()}
    auxiliary = LocalLosses(_old_layers(model), heads["norm"], heads["weight"], heads["bias"])
    return tokenizer, model, auxiliary


def _old_layers(model: Any) -> int:
    return int(model.config.text_config.num_hidden_layers) - NEW_LAYERS


def _save_stage(model: Any, tokenizer: Any, auxiliary: LocalLosses, out: Path) -> None:
    heads = {name: value.detach() for name, value in auxiliary.parameters().items()}
    save_file(heads, out / HEADS_FILE)
    save_checkpoint(model, tokenizer, out / "model", torch.float32)


def verdict_words(tokenizer: Any) -> tuple[int, int]:
    """Return the ids of '+' and '-'."""
    return token_id(tokenizer, TINY_LAYOUT.plus_word), token_id(tokenizer, TINY_LAYOUT.minus_word)


@torch.no_grad()
def start_verdict_words(
    trainer: RewardTrainer, words: tuple[int, int], batches: RewardBatches, seed: int
) -> None:
    """Point the embeddings of '+' and '-', which the policy never learned, at the read positions.

    Both become the mean hidden state there, scaled so that their logit is `_LOUDNESS`, and are told
    apart by a little noise: the loss starts near ln 2 instead of about 20.
    """
    batch = collate(batches(0), trainer.pad_id)
    hidden = trainer.hidden_states(batch)[-1][batch.reads[:, 0], batch.reads[:, 1]].float().mean(0)
    direction = _LOUDNESS * hidden / hidden.pow(2).sum()
    noise = 0.02 * torch.randn(len(hidden), generator=torch.Generator().manual_seed(seed))
    embedding = trainer.model.get_input_embeddings().weight
    embedding[words[0]], embedding[words[1]] = direction + noise, direction - noise


def _trainer(
    model: Any, words: tuple[int, int], plan: RewardPlan, old_layers: int, auxiliary: LocalLosses
) -> RewardTrainer:
    model.set_attn_implementation("sdpa")
    optimisers = reward_optimisers(plan, old_layers)
    return RewardTrainer(model, *words, plan.train_config(), optimisers, auxiliary)


def _run(
    trainer: RewardTrainer,
    batches: RewardBatches,
    out: Path,
    dev: Sequence[JudgedRow],
    words: tuple[int, int],
    report: Report | None,
) -> None:
    evaluate: Evaluation | None = None
    if dev:
        evaluate = functools.partial(check_rewards, judged=dev, words=words)
    trainer.run(batches, out, evaluate, report)
