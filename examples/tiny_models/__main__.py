"""`python -m examples.tiny_models STAGE …`: one command per stage of the recipe."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import typer

from vprm_search.errors import VprmError

app = typer.Typer(
    help="Make and measure the tiny models. In turn: policy, dev, labels, bootstrap, practice, "
    "then prm, prm_exact and orm; then install and evaluate.",
    no_args_is_help=True,
    add_completion=False,
)

Out = Annotated[Path, typer.Option(help="Folder of the run; a stopped stage is taken up again.")]
Seed = Annotated[int, typer.Option(help="Makes all draws.")]
Split = Annotated[str, typer.Option(help="train, validation or test.")]
FirstIndex = Annotated[int, typer.Option(min=0, help="First problem of each family.")]

_REWARD_STAGES = {
    "dev": "Sample the solutions that the reward models are checked on while they train.",
    "labels": "Sample the policy's solutions and label their steps by Monte Carlo continuations.",
    "bootstrap": "Train the reward models' common start on rule-made errors.",
    "practice": "Train it on more of them, at all lengths.",
    "prm": "Fine-tune the process reward model on the Monte Carlo labels.",
    "prm_exact": "Fine-tune the same on exact labels.",
    "orm": "Fine-tune the outcome reward model: the final verdict only.",
}


@app.command()
def policy(out: Out, seed: Seed = 1) -> None:
    """Train the policy and the strong policy from nothing."""
    from examples.tiny_models.train_policy import PolicyPlan, train_policy

    train_policy(out, PolicyPlan(), seed)


def _add_reward_stage(name: str, purpose: str) -> None:
    def run(out: Out) -> None:
        from examples.tiny_models.train_prm import RewardRun

        RewardRun(out, _report).run(name)

    app.command(name, help=purpose)(run)


for _name, _purpose in _REWARD_STAGES.items():
    _add_reward_stage(_name, _purpose)


@app.command()
def install(
    source: Annotated[Path, typer.Option("--from", help="Folder with all five models.")],
) -> None:
    """Put the five models where the package and this example look for them, with model cards."""
    from examples.tiny_models.packaging import install_weights

    for folder in install_weights(source):
        _report(f"installed {folder}")


@app.command()
def label(
    policy: Annotated[Path, typer.Option(help="Folder of the policy that writes the solutions.")],
    out: Annotated[Path, typer.Option(help="JSONL file; a stopped run is taken up again.")],
    problems: Annotated[int, typer.Option(min=1, help="How many problems.")] = 3000,
    first: FirstIndex = 0,
    split: Split = "train",
    seed: Seed = 0,
) -> None:
    """Label solutions to other problems than the recipe's (for `vprm-search calibrate score`)."""
    from examples.tiny_models.label import label as make_labels

    statistics = make_labels(
        out, policy, problems=problems, seed=seed, split=split, first=first, report=_report
    )
    print(json.dumps(statistics, indent=2))


@app.command()
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
    details: Annotated[
        Path | None, typer.Option(help="File whose results section gets the report.")
    ] = None,
) -> None:
    """Measure the models: all methods, ablations, intervals; prints the report."""
    from examples.tiny_models.evaluate import Evaluation
    from examples.tiny_models.evaluation_report import run_evaluation
    from vprm_search.tiny.world import FAMILIES

    config = Evaluation(
        split=split,
        families=tuple(family) if family else FAMILIES,
        temperatures=tuple(temperature) if temperature else (0.7, 1.2),
        problems=problems,
        first_index=first,
        run_seed=seed,
    )
    print(run_evaluation(config, out, jobs=jobs, report=_report, details=details))


@app.command()
def problems(
    out: Annotated[Path, typer.Option(help="The file: .tsv, .jsonl or .parquet.")],
    count: Annotated[
        int, typer.Option("--problems", min=1, help="How many, of all families.")
    ] = 300,
    first: FirstIndex = 0,
    split: Split = "test",
    choices: Annotated[bool, typer.Option(help="As multiple choice.")] = False,
) -> None:
    """Write problems of the world as published problem sets come: for vprm-search datasets."""
    from examples.tiny_models.problem_files import draw, write_problems

    write_problems(out, draw(count, split=split, first=first), choices=choices)
    _report(f"wrote {out}")


@app.command()
def step_benchmark(
    out: Annotated[Path, typer.Option(help="Folder of test.jsonl and its pictures.")],
    problems: Annotated[int, typer.Option(min=1, help="Problems of each of five sources.")] = 100,
    first: FirstIndex = 0,
    split: Split = "test",
) -> None:
    """Write solutions with labelled steps as VisualProcessBench has them: for vprm-search bench."""
    from examples.tiny_models.step_benchmark import write_step_benchmark

    count = write_step_benchmark(out, problems=problems, split=split, first=first)
    _report(f"wrote {count} solutions: {out / 'test.jsonl'}")


@app.command()
def paper(
    study: Annotated[
        Literal["merging", "near", "policies", "scaling", "judge", "temperature"],
        typer.Argument(help="Which check."),
    ],
    problems: Annotated[
        int | None, typer.Option(min=2, help="Of each length or family. Default: 200.")
    ] = None,
    page: Annotated[
        Path | None, typer.Option(help="Page whose section of this name is filled.")
    ] = None,
) -> None:
    """Check a choice of the paper on the world: of steps, candidates, policies, N, a judge."""
    from examples.tiny_models.paper_best_of_n import scaling, temperature
    from examples.tiny_models.paper_candidates import near, policies
    from examples.tiny_models.paper_judge import judge
    from examples.tiny_models.paper_merging import merging
    from vprm_search.compare.report import fill_section

    studies: dict[str, Callable[..., str]] = {
        "merging": merging,
        "near": near,
        "policies": policies,
        "scaling": scaling,
        "judge": judge,
        "temperature": temperature,
    }
    run = studies[study]
    text = run() if problems is None else run(problems)
    print(text)
    if page is not None:
        fill_section(page, text, marks=(study,))


def _report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> None:
    """Run one stage with one thread of torch: the bytes of a model depend on it."""
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        app(arguments)
    except VprmError as error:
        _report(f"error: {error}")
        sys.exit(1)


if __name__ == "__main__":
    main()
