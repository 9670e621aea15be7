"""Run an evaluation on the packaged models: cells in parallel processes, then the report."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path

from examples.tiny_models.evaluate import Evaluation, Models, Report, evaluate
from examples.tiny_models.evaluation_report import full_report, read_cells, readme_section
from examples.tiny_models.packaging import model_path
from vprm_search.compare.table import fill_section

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
    readme: Path | None = None,
    details: Path | None = None,
) -> str:
    """Measure all missing cells with `jobs` processes; return the report, also in `out/report.md`.

    The section between the `results` marks of `readme` is replaced by the short tables, that of
    `details` by the whole report.
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
    if readme is not None:
        fill_section(readme, readme_section(measured))
    if details is not None:
        fill_section(details, text)
    return text
