"""`vprm-search check`: does a reward model score here as it does elsewhere?"""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from vprm_search.cli import console, options
from vprm_search.errors import ConfigError
from vprm_search.report.view import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vprm_search.scoring.parity import Difference, ParityReference
    from vprm_search.types import ScoreRequest, StepScorer

_WRITE = "--write-cases"


def check(
    *,
    prm: Annotated[
        str | None,
        typer.Argument(metavar=options.SCORERS, help="The reward model to check."),
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(help="File of integrations/reference: what the published code scored."),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            metavar=options.SCORERS,
            help="Another scorer instead of a file; default for a server: the folder it serves.",
        ),
    ] = None,
    write_cases: Annotated[
        Path | None, typer.Option(_WRITE, help="Write the fixed cases, and check nothing.")
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(min=0.0, help="Largest difference of a step; default: by the number type."),
    ] = None,
    place: options.ScorerPlace,
    json: options.AsJson = False,
) -> None:
    """Score fixed problems and compare them: with a reference file, or with another scorer.

    A server is by default compared with its checkpoint scored in this process: the folder of
    --scorer-tokenizer, or the path that the server tells, if it is a folder here.

    The problems: text alone, one to thirteen tiles, two pictures, long and empty steps, white
    space, Chinese, control tokens in a step. Exits with 1 when a case differs.
    """
    from vprm_search.scoring.parity import ParityReference, parity_cases, read_reference

    if write_cases is not None:
        console.write_file(write_cases, ParityReference(cases=parity_cases()).dumps())
        return
    nothing = reference is None and against is None and not (prm or "").startswith(options.VLLM)
    if prm is None or nothing or (reference is not None and against is not None):
        raise ConfigError(
            f"name the reward model and what to compare it with: check PRM --reference FILE, "
            f"check PRM --against PRM, or check vllm:URL; or only {_WRITE} FILE"
        )
    ours = place.load(prm)
    if reference is not None:
        held = read_reference(reference)
    else:
        name = against or str(place.scorer_tokenizer or _served_folder(ours))
        asked = ParityReference(model=name, cases=parity_cases())
        held = asyncio.run(_scored(options.load_scorer(name, place.device), asked))
    allowed = _tolerance(ours, held) if tolerance is None else tolerance
    found = asyncio.run(_differences(ours, held, allowed))
    if json:
        console.print_json({"tolerance": allowed, "cases": [asdict(one) for one in found]})
    else:
        _show(found, held, allowed)
    if any(one.trouble for one in found) or not any(one.apart is not None for one in found):
        raise typer.Exit(console.FAILED)


def _served_folder(scorer: StepScorer) -> Path:
    """Return the served checkpoint's folder. Raises `ConfigError` if it is not on this machine."""
    told = str(getattr(scorer, "served_from", ""))
    if not told or not Path(told).is_dir():
        raise ConfigError(
            f"the server says that it serves {told or 'no path'!r}, which is no folder here; pass "
            "the served checkpoint with --against FOLDER"
        )
    return Path(told)


async def _scored(scorer: StepScorer, asked: ParityReference) -> ParityReference:
    """Return the cases with the scores of `scorer` as the reference."""
    cases = []
    for case in asked.cases:
        (result,) = await scorer.score([case.request()])
        values = [score.value for score in result.scores]
        known = tuple(value for value in values if value is not None)
        error = next((score.reason for score in result.scores if score.value is None), "")
        ids = tuple(_token_ids(scorer, case.request()))
        scored = {"scores": None if error else known, "error": error, "token_ids": ids}
        cases.append(case.model_copy(update={**scored, "hostile": False}))
    return asked.model_copy(update={"cases": tuple(cases), "dtype": _dtype(scorer)})


async def _differences(
    scorer: StepScorer, reference: ParityReference, tolerance: float
) -> list[Difference]:
    """Score all cases together, as a search would, and compare each."""
    from vprm_search.scoring.parity import compare_case

    requests = [case.request() for case in reference.cases]
    results = await scorer.score(requests)
    return [
        compare_case(case, result, _token_ids(scorer, request), tolerance)
        for case, request, result in zip(reference.cases, requests, results, strict=True)
    ]


def _token_ids(scorer: StepScorer, request: ScoreRequest) -> Sequence[int]:
    """Return the prompt of a scorer in this process; a server does not tell its own."""
    from vprm_search.errors import MissingDependencyError

    try:
        from vprm_search.scoring.transformers_scorer import TransformersScorer
    except (MissingDependencyError, ModuleNotFoundError):
        return ()
    return scorer.prompt_ids(request) if isinstance(scorer, TransformersScorer) else ()


def _dtype(scorer: StepScorer) -> str:
    checkpoint = getattr(scorer, "checkpoint", None)
    return "" if checkpoint is None else str(checkpoint.model.dtype).removeprefix("torch.")


def _tolerance(scorer: StepScorer, reference: ParityReference) -> float:
    """Return what rounding may do in the coarser of the two number types."""
    from vprm_search.scoring.parity import TOLERANCES

    coarsest = max(TOLERANCES.values())
    types = (_dtype(scorer) or reference.dtype, reference.dtype)
    return max(TOLERANCES.get(name, coarsest) for name in types)


def _show(found: Sequence[Difference], reference: ParityReference, tolerance: float) -> None:
    table = Table("case", "largest difference", "", box=None, pad_edge=False)
    for one in found:
        apart = "–" if one.apart is None else f"{one.apart:.2g}"
        said = (
            Text(printable(one.trouble), "red") if one.trouble else Text(one.note or "same", "dim")
        )
        table.add_row(Text(printable(one.name)), apart, said)
    console.OUT.print(table)
    wrong = sum(bool(one.trouble) for one in found)
    ran_on = ", ".join(f"{name} {version}" for name, version in reference.versions.items())
    held = (
        f"{reference.model or 'the reference'} ({reference.dtype}{', ' if ran_on else ''}{ran_on})"
    )
    same = sum(one.apart is not None and not one.trouble for one in found)
    verdict = f"{wrong} of {len(found)} cases differ" if wrong else f"{same} cases agree"
    if not wrong and same < len(found):
        verdict += f", {len(found) - same} could not be compared"
    console.OUT.print(
        f"{verdict} with {printable(held)}, tolerance {tolerance:g}", markup=False, soft_wrap=True
    )
