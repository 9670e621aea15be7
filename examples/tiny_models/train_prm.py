"""Train the tiny reward models: `python -m examples.tiny_models bootstrap --out DIR` and so on.

`DIR` holds the two policies. Three models come out of the same two rule-made stages
(`reward_stages`), fine-tuned on the same solutions of the policy: `prm` with Monte Carlo labels
(the one that ships), `prm_exact` with exact labels, and the outcome reward model `orm` with the
final answer only.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from examples.tiny_models.label import label
from examples.tiny_models.reward_data import LabelKind
from examples.tiny_models.reward_losses import JudgedRow
from examples.tiny_models.reward_rows import RowWriter
from examples.tiny_models.reward_stages import Report, bootstrap, fine_tune, practise
from examples.tiny_models.tokenizer import build_tokenizer
from vprm_search.labelling.monte_carlo import LabelConfig
from vprm_search.labelling.records import read_records
from vprm_search.tiny.scored import problem_of
from vprm_search.tiny.world import exact_labels

KINDS: dict[str, LabelKind] = {"prm": "monte_carlo", "prm_exact": "exact", "orm": "outcome"}
STAGES = ("dev", "labels", "bootstrap", "practice", *KINDS)
LABELLED_PROBLEMS = 2100
DEV_PROBLEMS = 120
DEV_LABELS = LabelConfig(solutions=8, continuations=1, seed=1)
"""Only the texts of the dev set are used, with exact labels: one continuation is enough."""


def judged_rows(records: Path, tokenizer: Any) -> list[JudgedRow]:
    """Return the solutions of a labelling file with exact labels, for measuring."""
    writer = RowWriter(tokenizer)
    rows = []
    for record in read_records(records):
        problem = problem_of(record.id)
        for solution in record.solutions:
            steps = [label.step for label in solution.steps]
            labels = exact_labels(problem, steps)
            row = writer.write(problem, steps, list(map(float, labels)))
            rows.append(JudgedRow(problem.family, row, tuple(labels), solution.copies))
    return rows


class RewardRun:
    """All of it, in one folder: dev set, labels, bootstrap, and the three reward models.

    `folder` must hold `policy` and `policy_strong`; it gets `reward/` (runs, labels, metrics) and
    one folder per model. Every part is skipped when it is there, and continues where it was cut.
    """

    def __init__(self, folder: Path, report: Report | None = None) -> None:
        self.folder, self.work = folder, folder / "reward"
        self.report = report

    def run(self, stage: str) -> None:
        """Run one of `STAGES`."""
        if stage == "dev":
            self._label("dev", DEV_PROBLEMS, "validation", DEV_LABELS)
        elif stage == "labels":
            self._label("labels", LABELLED_PROBLEMS, "train", LabelConfig())
        elif stage == "bootstrap":
            strong = self.folder / "policy_strong"
            bootstrap(strong, self.work / stage, dev=self._dev(), report=self.report)
        elif stage == "practice":
            start = self.work / "bootstrap"
            practise(start, self.work / stage, dev=self._dev(), report=self.report)
        else:
            self._fine_tune(stage, KINDS[stage])

    def _label(self, name: str, problems: int, split: str, config: LabelConfig) -> None:
        statistics = label(
            self.work / f"{name}.jsonl",
            self.folder / "policy",
            problems=problems,
            split=split,
            config=config,
            report=self.report,
        )
        text = json.dumps(statistics, indent=1) + "\n"
        (self.work / f"{name}.statistics.json").write_text(text, encoding="utf-8")

    def _fine_tune(self, name: str, kind: LabelKind) -> None:
        run = self.work / name
        labels, start = self.work / "labels.jsonl", self.work / "practice"
        fine_tune(start, labels, run, kind, dev=self._dev(), report=self.report)
        shutil.rmtree(self.folder / name, ignore_errors=True)
        shutil.copytree(run / "model", self.folder / name)

    def _dev(self) -> list[JudgedRow]:
        file = self.work / "dev.jsonl"
        if not file.exists():
            return []
        return judged_rows(file, build_tokenizer())
