"""Run an evaluation in parallel processes, and write what it measured as Markdown tables."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any

from examples.tiny_models.evaluate import BEAMS, Evaluation, Models, Report, evaluate
from examples.tiny_models.packaging import model_path
from vprm_search.compare.intervals import Estimate, bootstrap
from vprm_search.compare.report import fill_section
from vprm_search.errors import RecordError

# --- tables ---


Cells = Sequence[Mapping[str, Any]]

ROWS: tuple[tuple[str, str], ...] = (
    ("policy alone (pass@1)", "pass@1 of {n}"),
    ("self-consistency", "self-consistency@{n}"),
    ("**PRM best-of-N (mean)**", "prm best-of-{n} (mean)"),
    ("PRM best-of-N (min)", "prm best-of-{n} (min)"),
    ("PRM best-of-N (last)", "prm best-of-{n} (last)"),
    ("PRM best-of-N (product)", "prm best-of-{n} (product)"),
    ("PRM weighted vote (mean)", "prm weighted vote@{n} (mean)"),
    ("PRM weighted vote (last)", "prm weighted vote@{n} (last)"),
    ("**PRM weighted vote (product)**", "prm weighted vote@{n} (product)"),
    ("PRM trained on exact labels, best-of-N (mean)", "prm_exact best-of-{n} (mean)"),
    ("ORM best-of-N", "orm best-of-{n} (last)"),
    ("ORM weighted vote", "orm weighted vote@{n} (last)"),
    ("strong policy's likelihood, best-of-N (mean)", "likelihood best-of-{n} (mean)"),
    ("PRM on a blank image, best-of-N (mean)", "prm, blank image best-of-{n} (mean)"),
    ("PRM on another problem's image (mean)", "prm, other image best-of-{n} (mean)"),
    ("oracle (any of N right)", "pass@{n} (any right)"),
)


def read_cells(folder: Path) -> list[dict[str, Any]]:
    """Read all cells in a folder. Raises `RecordError` if there is none or one is damaged."""
    cells = []
    for path in sorted(folder.glob("*-T*.json")):
        try:
            cells.append(json.loads(path.read_text()))
        except ValueError as error:
            raise RecordError(f"{path}: not a measured cell ({error}); measure it again") from error
    if not cells:
        raise RecordError(
            f"{folder}: no measured cells; run 'python -m examples.tiny_models evaluate' first"
        )
    return cells


def outcome(cells: Cells, name: str) -> list[float]:
    """Return the per-problem outcomes of a method, all given cells one after the other."""
    return [value for cell in cells for value in cell["outcomes"][name]]


def difference(cells: Cells, name: str, baseline: str) -> Estimate:
    """Return the paired difference of two methods over the problems of the given cells."""
    pairs = zip(outcome(cells, name), outcome(cells, baseline), strict=True)
    return bootstrap([a - b for a, b in pairs])


def accuracy_table(cells: Cells, sizes: Sequence[int] = (8, 16)) -> str:
    """Return one table of all methods over the problems of the given cells."""
    head = "| method | " + " | ".join(f"N={n} | vs self-consistency" for n in sizes) + " |"
    lines = [head, "|---|" + "---|---|" * len(sizes)]
    known = set.intersection(*(set(cell["outcomes"]) for cell in cells))
    rows = [row for row in ROWS if any(row[1].format(n=n) in known for n in sizes)]
    for label, pattern in rows:
        entries = []
        for n in sizes:
            name = pattern.format(n=n)
            entries += _entries(cells, name, n) if name in known else ["–", "–"]
        lines.append(f"| {label} | " + " | ".join(entries) + " |")
    for name, (_, n) in BEAMS.items():
        for suffix in ("", ", weighted vote"):
            entries = ["–", "–"] * len(sizes)
            place = 2 * list(sizes).index(n)
            entries[place : place + 2] = _entries(cells, f"prm {name}{suffix}", n)
            lines.append(f"| PRM {name}{suffix} | " + " | ".join(entries) + " |")
    return "\n".join(lines)


def _entries(cells: Cells, name: str, n: int) -> list[str]:
    score = bootstrap(outcome(cells, name))
    against = difference(cells, name, f"self-consistency@{n}")
    gain = "" if name.startswith("self-consistency") else points(against)
    return [f"{100 * score.mean:.1f} [{100 * score.low:.1f}, {100 * score.high:.1f}]", gain]


def points(estimate: Estimate) -> str:
    """Return a difference in percentage points with its 95 % interval."""
    low, high = 100 * estimate.low, 100 * estimate.high
    return f"{100 * estimate.mean:+.1f} [{low:+.1f}, {high:+.1f}]"


def beam_table(cells: Cells) -> str:
    """Return beam search against best-of-N at no more generated tokens, pooled and per cell."""
    lines = [
        "| problems | beam | tokens, beam / best-of-N | beam − best-of-N (mean) | "
        "both with a weighted vote |",
        "|---|---|---|---|---|",
    ]
    temperatures = sorted({cell["temperature"] for cell in cells})
    groups = {f"all, T={t:g}": [c for c in cells if c["temperature"] == t] for t in temperatures}
    groups |= {_title(cell): [cell] for cell in cells}
    for title, chosen in groups.items():
        for name, (_, n) in BEAMS.items():
            spent = bootstrap(outcome(chosen, f"tokens {name}"), resamples=1).mean
            allowed = bootstrap(outcome(chosen, f"tokens best-of-{n}"), resamples=1).mean
            plain = difference(chosen, f"prm {name}", f"prm best-of-{n} (mean)")
            voted = difference(
                chosen, f"prm {name}, weighted vote", f"prm weighted vote@{n} (product)"
            )
            lines.append(
                f"| {title} | {name} vs N={n} | {spent:.0f} / {allowed:.0f} "
                f"| {points(plain)} | {points(voted)} |"
            )
    return "\n".join(lines)


def step_table(cells: Cells) -> str:
    """Return how well each scorer's step scores match the exact truth, per cell."""
    lines = [
        "| problems | scorer | step AUC | macro-F1 at .5 | position only | steps | right |",
        "|---|---|---|---|---|---|---|",
    ]
    for cell in cells:
        for name, row in cell["steps"].items():
            area = row["auc"]
            lines.append(
                f"| {_title(cell)} | {name} "
                f"| {area['mean']:.3f} [{area['low']:.3f}, {area['high']:.3f}] "
                f"| {row['macro_f1']:.3f} | {row['position_only_auc']:.3f} "
                f"| {row['steps']} | {row['right']:.2f} |"
            )
    return "\n".join(lines)


def _title(cell: Mapping[str, Any]) -> str:
    return f"{cell['family']}, T={cell['temperature']:g}"


def full_report(cells: Cells) -> str:
    """Return the whole report: all families per temperature, then every cell on its own."""
    first = cells[0]
    count = len(next(iter(first["outcomes"].values())))
    parts = [
        f"{count} {first['split']} problems per family and temperature, first index "
        f"{first['first_index']}; accuracy in % with 95 % bootstrap intervals over problems; "
        "differences are paired."
    ]
    for temperature in sorted({cell["temperature"] for cell in cells}):
        chosen = [cell for cell in cells if cell["temperature"] == temperature]
        parts += [f"### All families, T = {temperature:g}", accuracy_table(chosen)]
    parts += ["### Beam search at no more generated tokens", beam_table(cells)]
    parts += ["### Step scores against exact truth", step_table(cells)]
    for cell in cells:
        parts += [f"### {_title(cell)}", accuracy_table([cell])]
    return "\n\n".join(parts) + "\n"


# --- the run ---


_KEPT_BYTES = 1 << 30  # for each scorer; of the searches that advance together


def packaged_models() -> Models:
    """Load the policy, the reward models and the likelihood reference from the packaged weights.

    Raises `CheckpointError` if a model is missing.
    """
    from examples.tiny_models.references import LikelihoodScorer
    from vprm_search.scoring import TransformersScorer
    from vprm_search.tiny.policy import TinyPolicy
    from vprm_search.tiny.sampler import TinySampler

    policy = TinyPolicy.from_pretrained(model_path("policy"))

    def scorer(name: str) -> TransformersScorer:
        return TransformersScorer.from_pretrained(
            model_path(name), device="cpu", prefix_cache_bytes=_KEPT_BYTES
        )

    strong = TinySampler.from_pretrained(model_path("policy_strong"))
    return Models(
        policy_at=policy.at_temperature,
        scorers={
            "prm": (scorer("prm"), ("mean", "min", "last", "product")),
            "prm_exact": (scorer("prm_exact"), ("mean", "last")),
            "orm": (scorer("orm"), ("last",)),
            "likelihood": (LikelihoodScorer(strong), ("mean",)),
        },
    )


def _measure_cell(config: Evaluation, out: Path) -> list[Path]:
    import torch

    torch.set_num_threads(1)
    return evaluate(config, packaged_models(), out, _say)


def _say(line: str) -> None:
    print(line, flush=True)


def run_evaluation(
    config: Evaluation,
    out: Path,
    *,
    jobs: int = 2,
    report: Report = _say,
    details: Path | None = None,
) -> str:
    """Measure all missing cells with `jobs` processes; return the report, also in `out/report.md`.

    The section between the `results` marks of `details` is replaced by the report.
    """
    out.mkdir(parents=True, exist_ok=True)
    cells = [
        replace(config, families=(family,), temperatures=(temperature,))
        for family in sorted(config.families, key=len, reverse=True)  # the longest cells first
        for temperature in config.temperatures
    ]
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        waiting = {pool.submit(_measure_cell, cell, out): cell for cell in cells}
        for count, future in enumerate(as_completed(waiting), start=1):
            future.result()
            report(f"{count} of {len(cells)} cells measured")
    measured = read_cells(out)
    text = full_report(measured)
    (out / "report.md").write_text(text)
    if details is not None:
        fill_section(details, text)
    return text
