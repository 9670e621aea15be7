"""Where the five trained models live, and how they get there, each with a model card.

The package needs `policy` and `prm`; the other three are for measuring and stay with this recipe.
`$VPRM_SEARCH_TINY_WEIGHTS` names another folder for all five.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vprm_search.errors import CheckpointError
from vprm_search.tiny.weights import WEIGHT_NAMES, WEIGHTS_VARIABLE, weights_root

MODEL_NAMES = ("policy", "policy_strong", "prm", "prm_exact", "orm")
MAX_BYTES = 24_000_000
"""All five models together."""
_OWN_WEIGHTS = Path(__file__).parent / "weights"

_WHAT: Mapping[str, str] = {
    "policy": "The policy: proposes steps, and errs often enough for a search to matter.",
    "policy_strong": "The strong policy: the start of the reward models and a reference verifier.",
    "prm": "The process reward model: P('+') of every step. Final stage on Monte Carlo labels.",
    "prm_exact": "The same with exact labels in the final stage, for comparison.",
    "orm": "The outcome reward model: same start, trained on the final verdict only.",
}
_HOW: Mapping[str, str] = {
    "policy": "python -m examples.tiny_models policy --out DIR",
    "policy_strong": "python -m examples.tiny_models policy --out DIR",
    "prm": "python -m examples.tiny_models prm --out DIR",
    "prm_exact": "python -m examples.tiny_models prm_exact --out DIR",
    "orm": "python -m examples.tiny_models orm --out DIR",
}


def model_folder(name: str) -> Path:
    """Return where a model is kept: in the package, or beside this recipe."""
    packaged = name in WEIGHT_NAMES or WEIGHTS_VARIABLE in os.environ
    return (weights_root() if packaged else _OWN_WEIGHTS) / name


def model_path(name: str) -> Path:
    """Return the folder of one of `MODEL_NAMES`. Raises `CheckpointError` if it is not there."""
    path = model_folder(name)
    if name not in MODEL_NAMES or not (path / "model.safetensors").is_file():
        raise CheckpointError(
            f"{path} holds no trained model; there are: {', '.join(MODEL_NAMES)}. They come with "
            "the repository, or are made by `python -m examples.tiny_models`"
        )
    return path


def install_weights(source: Path, destination: Path | None = None) -> list[Path]:
    """Copy the five models of `source`; return their new folders.

    `source/notes.md`, if there is one, is added to every card.

    Args:
        source: folder with one folder per model.
        destination: folder for all of them; by default each goes where `model_path` looks.

    Raises:
        CheckpointError: a model is missing, they are larger than `MAX_BYTES` together, or `source`
            is where they go. Nothing is changed then.
    """
    targets = {n: destination / n if destination else model_folder(n) for n in MODEL_NAMES}
    if any((source / n).resolve() == target.resolve() for n, target in targets.items()):
        raise CheckpointError(f"{source} is where the models are kept; name another folder")
    missing = [n for n in MODEL_NAMES if not (source / n / "model.safetensors").is_file()]
    if missing:
        raise CheckpointError(f"{source}: no trained model {', '.join(missing)}; train it first")
    size = sum((source / name / "model.safetensors").stat().st_size for name in MODEL_NAMES)
    if size > MAX_BYTES:
        raise CheckpointError(f"{source}: the weights take {size} bytes, the limit is {MAX_BYTES}")
    for name, folder in targets.items():
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(source / name, folder)
        (folder / "README.md").write_text(model_card(source, name), encoding="utf-8")
    return list(targets.values())


def model_card(source: Path, name: str) -> str:
    """Return the card of a model: what it is, what it was made of and how, and what it measured."""
    weights = source / name / "model.safetensors"
    parts = [
        f"# {name}",
        _WHAT[name],
        "InternVL architecture (`InternVLForConditionalGeneration`), float16 safetensors, "
        f"{weights.stat().st_size / 1e6:.2f} MB. Licence: MIT, like the package.",
        "## Data and seeds",
        "Rendered problems of `vprm_search.tiny.world`, training split only; the splits share no "
        "problem. Policies: seed 1. Reward models: seed 1 (rule-made stages 1 and 3), labels seed "
        "0, final stage seed 2.",
        f"Made by: `{_HOW[name]}`",
        "## Measured on validation problems",
        "```json\n" + json.dumps(_measured(source, name), indent=2) + "\n```",
        "The figures on test problems are in the README and in docs/evaluation.md "
        "(`python -m examples.tiny_models evaluate`).",
        "## Limits",
        "It knows the tiny world only: 64x64 pictures of number tiles or bars, and questions in "
        "its grammar. It says nothing about other images.",
    ]
    notes = source / "notes.md"
    if notes.is_file():
        parts += ["## Notes on this run", notes.read_text(encoding="utf-8").strip()]
    return "\n\n".join(parts) + "\n"


def _measured(source: Path, name: str) -> dict[str, Any]:
    own = source / name / "validation.json"
    if own.is_file():
        measured: dict[str, Any] = json.loads(own.read_text(encoding="utf-8"))
        return measured
    figures: dict[str, Any] = {"last check": _last_check(source / "reward" / name)}
    labels = source / "reward" / "labels.statistics.json"
    if labels.is_file():
        figures["Monte Carlo labels"] = json.loads(labels.read_text(encoding="utf-8"))
    return figures


def _last_check(run: Path) -> dict[str, Any]:
    """Return the last line of a training run's metrics that holds a check, without its losses."""
    file = run / "metrics.jsonl"
    if not file.is_file():
        return {}
    for line in reversed(file.read_text(encoding="utf-8").splitlines()):
        record: dict[str, Any] = json.loads(line)
        if any("auc" in key for key in record):
            return {k: round(v, 4) for k, v in record.items() if "." in k or k == "step"}
    return {}
