"""`vprm-search solve`: search for the answer to one question about images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vprm_search.budget import Budget
from vprm_search.cli import console, models, options
from vprm_search.cli.searching import Searched, Searcher
from vprm_search.report.printable import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vprm_search.types import ImageData

_SEARCH, _OUTPUT, _LIMITS = "Search", "Output", "Limits"


def solve(
    image: options.Images,
    question: options.Question,
    system: Annotated[str, typer.Option(help="System prompt for the policy.")] = "",
    policy: Annotated[
        str,
        typer.Option(metavar="tiny|openai:MODEL|PROVIDER:MODEL", help="What proposes steps."),
    ] = "tiny",
    base_url: Annotated[
        str | None, typer.Option(help="Address of an OpenAI-compatible server.")
    ] = None,
    continuation: Annotated[
        options.ContinuationName, typer.Option(help="How a partial answer goes on.")
    ] = options.ContinuationName.auto,
    temperature: Annotated[float, typer.Option(min=0.0, help="Of the policy.")] = 0.7,
    step_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of one step.")] = 512,
    scorer: options.Scorer = "tiny",
    device: options.Device = "auto",
    strategy: Annotated[
        options.StrategyName, typer.Option(rich_help_panel=_SEARCH)
    ] = options.StrategyName.beam,
    n: Annotated[
        int | None, typer.Option("--n", help="best-of-n: solutions.", rich_help_panel=_SEARCH)
    ] = None,
    width: Annotated[
        int | None, typer.Option(help="beam: paths kept.", rich_help_panel=_SEARCH)
    ] = None,
    expand: Annotated[
        int | None, typer.Option(help="beam: steps per path.", rich_help_panel=_SEARCH)
    ] = None,
    max_depth: Annotated[
        int | None, typer.Option(help="beam: most steps of a path.", rich_help_panel=_SEARCH)
    ] = None,
    prune_below: Annotated[
        float | None, typer.Option(help="beam: least path score.", rich_help_panel=_SEARCH)
    ] = None,
    prune_margin: Annotated[
        float | None,
        typer.Option(help="beam: furthest below the best.", rich_help_panel=_SEARCH),
    ] = None,
    selector: Annotated[
        options.SelectorName, typer.Option(rich_help_panel=_SEARCH)
    ] = options.SelectorName.weighted_vote,
    aggregate: Annotated[
        str,
        typer.Option(help="Path score: mean, last, min, product, …", rich_help_panel=_SEARCH),
    ] = "mean",
    seed: Annotated[int, typer.Option(help="Makes all draws.", rich_help_panel=_SEARCH)] = 0,
    max_candidates: Annotated[int | None, typer.Option(rich_help_panel=_LIMITS)] = None,
    max_generated_tokens: Annotated[int | None, typer.Option(rich_help_panel=_LIMITS)] = None,
    max_scored_tokens: Annotated[int | None, typer.Option(rich_help_panel=_LIMITS)] = None,
    max_seconds: Annotated[float | None, typer.Option(rich_help_panel=_LIMITS)] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print result and tree.", rich_help_panel=_OUTPUT)
    ] = False,
    html: Annotated[
        Path | None, typer.Option(help="Write a page.", rich_help_panel=_OUTPUT)
    ] = None,
    png: Annotated[
        Path | None, typer.Option(help="Write a picture.", rich_help_panel=_OUTPUT)
    ] = None,
) -> None:
    """Search for the answer to a question about images.

    Exits with 3 when no answer was found.
    """
    beam: dict[str, Any] = {
        "width": width,
        "expand": expand,
        "max_depth": max_depth,
        "prune_below": prune_below,
        "prune_margin": prune_margin,
    }
    if strategy is options.StrategyName.beam:
        beam["aggregate"] = aggregate
    limits = {
        "candidates": max_candidates,
        "generated_tokens": max_generated_tokens,
        "scored_tokens": max_scored_tokens,
        "seconds": max_seconds,
    }
    searcher = Searcher(
        models.load_policy(
            policy,
            base_url=base_url,
            temperature=temperature,
            max_tokens_per_step=step_tokens,
            continuation=continuation.value,
        ),
        models.load_scorer(scorer, device),
        options.strategy_of(strategy, {"n": n, **beam}),
        options.selector_of(selector, aggregate),
        budget=options.checked(Budget, limits),
        run_seed=seed,
    )
    images = options.read_images(image)
    searched = _search(searcher, question, images, system)
    _show(searched, as_json=json, aggregate=aggregate)
    _write(searched, images, html, png, aggregate)
    if searched.result.answer is None:
        raise typer.Exit(console.NO_ANSWER)


def _search(
    searcher: Searcher, question: str, images: Sequence[ImageData], system: str
) -> Searched:
    with console.ERR.status("searching") as status:

        def tell(event: dict[str, Any]) -> None:
            if event["event"] == "round":
                children = sum(item["count"] for item in event["expand"])
                status.update(f"round {event['round']}: {children} steps")

        return searcher(question, images, system=system, on_event=tell)


def _show(searched: Searched, *, as_json: bool, aggregate: str) -> None:
    if as_json:
        result, tree = searched.result.to_json(), searched.tree.to_json()
        console.print_json({"result": result, "tree": tree})
        return
    from vprm_search.report.terminal import answer_line, tree_view
    from vprm_search.report.view import view_of

    view = view_of(searched.tree, searched.result, aggregate=aggregate, max_nodes=200)
    console.OUT.print(tree_view(view, width=max(40, console.OUT.width - 40)))
    console.OUT.print(answer_line(view))
    if searched.result.answer is None and searched.result.node is None:
        failures = sorted({r.reason for r in searched.tree if r.status == "failed" and r.reason})
        for reason in failures[:3]:
            console.ERR.print(f"failed: {printable(reason)}", markup=False, soft_wrap=True)


def _write(
    searched: Searched,
    images: Sequence[ImageData],
    html: Path | None,
    png: Path | None,
    aggregate: str,
) -> None:
    if html is None and png is None:
        return
    from vprm_search.report.html import html_page
    from vprm_search.report.picture import png_picture
    from vprm_search.report.view import view_of

    if html is not None:
        view = view_of(searched.tree, searched.result, aggregate=aggregate)
        console.write_file(html, html_page(view, images))
    if png is not None:
        view = view_of(searched.tree, searched.result, aggregate=aggregate, max_nodes=300)
        console.write_file(png, png_picture(view, images))
