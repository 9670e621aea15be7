"""`vprm-search tiny …`: make and measure the packaged models."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from vprm_search.cli import console
from vprm_search.errors import ConfigError
from vprm_search.report.printable import printable

tiny = typer.Typer(
    help="Make and measure the packaged models: train-policy, label, train-prm, install, evaluate.",
    no_args_is_help=True,
)

Out = Annotated[Path, typer.Option(help="Where the results go; a stopped run is taken up again.")]
Seed = Annotated[int, typer.Option(help="Makes all draws.")]
Threads = Annotated[int, typer.Option(min=1, help="Threads of torch.")]
Split = Annotated[str, typer.Option(help="train, validation or test.")]
FirstIndex = Annotated[int, typer.Option(min=0, help="First problem of each family.")]


@tiny.command("train-policy")
def train_policy(out: Out, seed: Seed = 1, threads: Threads = 1) -> None:
    """Train the policy and the strong policy from nothing."""
    _use_threads(threads)
    from vprm_search.tiny.train_policy import PolicyPlan
    from vprm_search.tiny.train_policy import train_policy as train

    train(out, PolicyPlan(), seed)


@tiny.command()
def label(
    policy: Annotated[Path, typer.Option(help="Folder of the policy that writes the solutions.")],
    out: Annotated[Path, typer.Option(help="JSONL file; a stopped run is taken up again.")],
    completer: Annotated[
        Path | None, typer.Option(help="Folder of the policy that continues them; default: it too.")
    ] = None,
    problems: Annotated[int, typer.Option(min=1, help="How many problems.")] = 3000,
    first: FirstIndex = 0,
    split: Split = "train",
    seed: Seed = 0,
    threads: Threads = 1,
) -> None:
    """Sample solutions and label their steps by Monte Carlo continuations."""
    _use_threads(threads)
    from vprm_search.tiny.label import label as make_labels

    statistics = make_labels(
        out,
        policy,
        completer_dir=completer,
        problems=problems,
        seed=seed,
        split=split,
        first=first,
        report=_report,
    )
    console.print_json(statistics)


@tiny.command("train-prm")
def train_prm(
    out: Out,
    stage: Annotated[
        list[str] | None, typer.Option(help="Only this stage; repeatable. Default: all in turn.")
    ] = None,
    threads: Threads = 1,
) -> None:
    """Train the reward models in the folder that holds the two policies.

    In turn: labels, the rule-made stages, then prm, prm_exact and orm on the labels.
    """
    _use_threads(threads)
    from vprm_search.tiny.train_prm import STAGES, RewardRun

    unknown = sorted(set(stage or ()) - set(STAGES))
    if unknown:
        raise ConfigError(f"no stage {', '.join(unknown)}; there are: {', '.join(STAGES)}")
    run = RewardRun(out, _report)
    for name in stage or STAGES:
        run.run(name)


@tiny.command()
def install(
    source: Annotated[Path, typer.Option("--from", help="Folder with all five models.")],
) -> None:
    """Put trained models into the package, each with a model card.

    `VPRM_SEARCH_TINY_WEIGHTS` names another place to put them.
    """
    from vprm_search.tiny.packaging import install_weights
    from vprm_search.tiny.weights import weights_root

    if source.resolve() == weights_root().resolve():  # the old models are removed first
        raise ConfigError(f"--from {source} is the very folder the models are installed into")
    for folder in install_weights(source):
        _report(f"installed {folder}")


@tiny.command()
def evaluate(
    out: Annotated[
        Path, typer.Option(help="Folder of the measured cells; measured ones are kept.")
    ] = Path("evaluation"),
    problems: Annotated[int, typer.Option(min=2, help="Problems per family.")] = 500,
    first: FirstIndex = 0,
    split: Split = "test",
    temperature: Annotated[list[float] | None, typer.Option(help="Repeatable.")] = None,
    family: Annotated[list[str] | None, typer.Option(help="Repeatable; default all.")] = None,
    seed: Seed = 0,
    jobs: Annotated[int, typer.Option(min=1, help="Processes, one thread each.")] = 2,
    readme: Annotated[
        Path | None, typer.Option(help="File whose results section gets the short tables.")
    ] = None,
    details: Annotated[
        Path | None, typer.Option(help="File whose results section gets the whole report.")
    ] = None,
) -> None:
    """Measure the packaged models: all methods, ablations, intervals; prints the report."""
    _use_threads(1)
    from vprm_search.tiny.evaluate import Evaluation
    from vprm_search.tiny.evaluation_run import run_evaluation
    from vprm_search.tiny.world import FAMILIES

    config = Evaluation(
        split=split,
        families=tuple(family) if family else FAMILIES,
        temperatures=tuple(temperature) if temperature else (0.7, 1.2),
        problems=problems,
        first_index=first,
        run_seed=seed,
    )
    text = run_evaluation(config, out, jobs=jobs, report=_report, readme=readme, details=details)
    console.OUT.file.write(printable(text, lines=True) + "\n")


def _use_threads(count: int) -> None:
    os.environ["OMP_NUM_THREADS"] = str(count)  # before torch is imported


def _report(line: str) -> None:
    console.ERR.print(Text(line), soft_wrap=True)
