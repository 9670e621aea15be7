"""What `vprm-search evaluate` shows while it runs, and writes in the end."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from vprm_search.budget import Prices
from vprm_search.cli import console
from vprm_search.compare.report import many
from vprm_search.errors import ConfigError, SearchError
from vprm_search.report.view import printable

if TYPE_CHECKING:
    from vprm_search.evaluate.candidates import Sampling
    from vprm_search.evaluate.pooling import RecordedRun
    from vprm_search.evaluate.scoring import Critic
    from vprm_search.evaluate.side_by_side import Done
    from vprm_search.evaluate.side_by_side import Progress as Told
    from vprm_search.evaluate.stages import Stages


def check_selectors(
    stages: Stages, sampling: Sampling, critics: Sequence[Critic], wanted: Iterable[str]
) -> None:
    """Raise `ConfigError` for a selector that these critics and the folder's do not make."""
    from vprm_search.evaluate.candidates import FACTS
    from vprm_search.evaluate.estimators import selectors_of
    from vprm_search.evaluate.pooling import CRITIC, critic_names

    folder = stages.folder
    known = {name: folder.facts(f"{CRITIC} {name}") or {} for name in folder.kinds(CRITIC)}
    known |= {critic.name: critic.facts() for critic in critics}
    sampled = folder.facts(FACTS) or sampling.facts()
    there = selectors_of(critic_names(known, likelihood=sampled["likelihood"]))
    for selector in wanted:
        if selector not in there:
            raise ConfigError(f"--result-file {selector!r}: one of {', '.join(there)}")


def write_predictions(
    run: RecordedRun, selector: str, n: int, form: Literal["tsv", "xlsx"], *, raw: bool
) -> None:
    """Write what a selector takes as VLMEvalKit has it, and say what its reader has to know."""
    from vprm_search.evaluate.result_file import predictions_of, write_result_file

    said = predictions_of(run.pools(n, unpublished=True), run.problems, selector, n, raw=raw)
    policy = str(run.sampling["policy"]).partition("@")[0]
    model = re.sub(r"[^\w.+-]+", "-", f"{policy}-{selector}-N{n}")
    file = write_result_file(run.folder.path, run.problems, said, model=model, form=form)
    for line in (f"wrote {file.path}", *file.notes):
        tell(printable(line))


def write_report(stages: Stages, run: RecordedRun, others: Sequence[Path]) -> None:
    """Write the report of what is recorded."""
    from vprm_search.datasets.graders import GRADERS, grader_of
    from vprm_search.evaluate.critics import summarise, tabulate
    from vprm_search.evaluate.pooling import RecordedRun, run_section
    from vprm_search.evaluate.report import markdown, png
    from vprm_search.evaluate.strategies import searched

    table = tabulate(run.pools(stages.n), stages.n, name=stages.problems.name)
    baselines = {}
    known = Counter(path.name for path in others)
    for path in others:
        other = RecordedRun(path, stages.problems, grader=run.grader, prices=stages.prices)
        n = other.largest()
        name = path.name if known[path.name] == 1 else str(path)
        baselines[name] = tabulate(other.pools(n), n, name=stages.problems.name)
    rule = grader_of(run.grader if run.grader in GRADERS else stages.problems.name)
    out, title = stages.folder.path, stages.problems.path.name
    found = searched(out, stages.problems, table, rule, stages.prices)
    summary = {**summarise(table, baselines=baselines), "searches": found, **run.told(stages.n)}
    currency = summary["currency"]
    text = f"{markdown(summary, title=title, currency=currency)}\n{run_section(summary)}"
    write_results(out, summary, text, png(summary, title=title, currency=currency))
    if left := summary["incomplete"]:
        raise SearchError(
            f"{many(left, 'problem has', 'problems have')} not N = {stages.n} candidates yet; "
            "the report is without them; run --stage generate"
        )


def write_results(out: Path, summary: Mapping[str, Any], text: str, picture: bytes) -> None:
    """Write a report into the folder of a run, and print it."""
    console.write_file(out / "results.json", json.dumps(summary, indent=1))
    console.write_file(out / "results.md", text)
    console.write_file(out / "results.png", picture)
    console.OUT.file.write(printable(text, lines=True) + "\n")


class _Spent(ProgressColumn):
    """Candidates a second, tokens, and money."""

    def __init__(self, currency: str) -> None:
        super().__init__()
        self._currency = currency

    def render(self, task: Task) -> Text:
        """Return the column of a bar."""
        told = [f"{task.speed or 0.0:.3g}/s"]
        for name in ("generated", "scored"):
            if tokens := task.fields.get(name, 0):
                told.append(f"{tokens:,} tokens")
        if cost := task.fields.get("cost", 0.0):
            told.append(f"{cost:.4g} {self._currency}")
        if failed := task.fields.get("failed", 0):
            told.append(f"{failed} failed")
        return Text(", ".join(told))


def tell(line: str) -> None:
    """Print a line beside the bars."""
    console.ERR.print(Text(line), soft_wrap=True)


def watch_with(prices: Prices) -> Callable[[str, int], AbstractContextManager[Told]]:
    """Return what opens a progress bar."""

    @contextmanager
    def watch(what: str, count: int) -> Iterator[Told]:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
                   _Spent(prices.currency), TimeRemainingColumn())  # fmt: skip
        with Progress(*columns, console=console.ERR, transient=True) as progress:
            task = progress.add_task(what, total=count)
            sums: dict[str, Any] = {"generated": 0, "scored": 0, "cost": 0.0, "failed": 0}

            def tell(done: Done) -> None:
                sums["generated"] += done.generated_tokens
                sums["scored"] += done.scored_tokens
                sums["cost"] += done.cost
                sums["failed"] += done.failed
                progress.update(task, advance=done.candidates, **sums)

            yield tell

    return watch


def complain(stages: Stages, max_failed: float) -> None:
    """Raise `SearchError` if too many calls failed; a few are said."""
    told = [
        f"{failed} of {count} failed in {stage}"
        + (f" (one says: {why})" if (why := stages.reasons.get(stage)) else "")
        for stage, (failed, count) in stages.failures.items()
    ]
    if not told:
        return
    text = f"{'; '.join(told)}; the same command makes those calls again"
    if any(failed > max_failed * count for failed, count in stages.failures.values()):
        raise SearchError(f"no result: {text}")
    console.ERR.print(printable(text), soft_wrap=True, markup=False)
