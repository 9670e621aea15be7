"""`vprm-search solve`: search for the answer to one question about images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vprm_search.budget import Budget, Prices
from vprm_search.cli import console, options
from vprm_search.errors import ConfigError
from vprm_search.images.store import MemoryImageStore
from vprm_search.report.view import printable
from vprm_search.types import SearchResult, Usage

if TYPE_CHECKING:
    from langchain_core.messages import HumanMessage

    from vprm_search.graph.run import SearchRun
    from vprm_search.search import Advice
    from vprm_search.types import ImageData, StepScorer

_PANEL = "Cost"

PriceFile = Annotated[
    Path | None,
    typer.Option("--prices", help="JSON file of prices (budget.Prices).", rich_help_panel=_PANEL),
]
PricePrompt = Annotated[
    float | None,
    typer.Option(help="Per million prompt tokens of the policy.", rich_help_panel=_PANEL),
]
PriceGenerated = Annotated[
    float | None,
    typer.Option(help="Per million generated tokens.", rich_help_panel=_PANEL),
]
PriceScored = Annotated[
    float | None,
    typer.Option(help="Per million scored tokens.", rich_help_panel=_PANEL),
]
PriceImage = Annotated[
    float | None,
    typer.Option(help="Per image the scorer encodes.", rich_help_panel=_PANEL),
]


def read_prices(
    file: Path | None,
    *,
    prompt: float | None = None,
    generated: float | None = None,
    scored: float | None = None,
    image: float | None = None,
) -> Prices | None:
    """Return the prices of a file, those given one by one instead of them; None if there are none.

    Raises `ConfigError` for a file that cannot be used or a price below 0.
    """
    given = {
        "per_million_prompt_tokens": prompt,
        "per_million_generated_tokens": generated,
        "per_million_scored_tokens": scored,
        "per_image": image,
    }
    known: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if file is None and not known:
        return None
    listed = Prices()
    if file is not None:
        try:
            listed = Prices.loads(file.read_text(encoding="utf-8"), str(file))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{file} cannot be read: {error}") from error
    return options.checked(Prices, {**listed.model_dump(), **known})


def cost_json(usage: Usage, prices: Prices) -> dict[str, Any]:
    """Return what `usage` costs, as plain JSON."""
    return {"amount": usage.cost(prices), "currency": prices.currency}


def cost_line(usage: Usage, prices: Prices) -> str:
    """Return what `usage` costs, in words."""
    return f"Cost: {usage.cost(prices):.6g} {prices.currency}"


_SEARCH, _OUTPUT, _LIMITS = "Search", "Output", "Limits"
_NO_SCORER = "none"


def solve(
    question: options.Question,
    image: options.Images = None,
    choice: Annotated[
        list[str] | None,
        typer.Option(help="Text of a choice of the question, A first; repeatable."),
    ] = None,
    system: Annotated[str, typer.Option(help="System prompt for the policy.")] = "",
    policy: options.PolicyName = "tiny",
    base_url: options.BaseUrl = None,
    continuation: options.HowToContinue = options.ContinuationName.auto,
    temperature: options.Temperature = 0.7,
    step_tokens: options.StepTokens = 512,
    split: options.Split = "exact",
    scorer: Annotated[
        str,
        typer.Option(
            metavar="tiny|PATH|vllm:URL|none",
            help="Reward model: the packaged one, a folder, a vLLM server (vllm:http://HOST:PORT), "
            "or none: the most frequent answer.",
        ),
    ] = "tiny",
    scorer_api_key: options.ScorerKey = None,
    scorer_tokenizer: options.ScorerTokenizer = None,
    device: options.Device = "auto",
    calibration: options.CalibrationFile = None,
    calibration_policy: options.CalibrationPolicy = None,
    strategy: Annotated[
        options.StrategyName | None,
        typer.Option(help="Default: auto; beam with an option of it.", rich_help_panel=_SEARCH),
    ] = None,
    n: Annotated[
        int | None,
        typer.Option("--n", help="auto, best-of-n: solutions.", rich_help_panel=_SEARCH),
    ] = None,
    width: Annotated[
        int | None, typer.Option(help="beam: paths kept.", rich_help_panel=_SEARCH)
    ] = None,
    expand: Annotated[
        int | None, typer.Option(help="beam: steps per path.", rich_help_panel=_SEARCH)
    ] = None,
    max_depth: Annotated[
        int | None, typer.Option(help="Most steps of a path.", rich_help_panel=_SEARCH)
    ] = None,
    prune_below: Annotated[
        float | None,
        typer.Option(help="Least path score.", rich_help_panel=_SEARCH),
    ] = None,
    prune_margin: Annotated[
        float | None,
        typer.Option(help="Furthest below the best.", rich_help_panel=_SEARCH),
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Any option of the strategy (subtrees=8, particles=32); repeatable.",
            rich_help_panel=_SEARCH,
        ),
    ] = None,
    lookahead: Annotated[
        int | None,
        typer.Option(help="Judge steps by rollouts of so many steps.", rich_help_panel=_SEARCH),
    ] = None,
    strong: Annotated[
        str | None,
        typer.Option(
            metavar="tiny|openai:MODEL|PROVIDER:MODEL",
            help="Policy that redoes the steps of --policy that score below --threshold.",
            rich_help_panel=_SEARCH,
        ),
    ] = None,
    threshold: Annotated[float, typer.Option(help="See --strong.", rich_help_panel=_SEARCH)] = 0.7,
    advice: Annotated[
        options.AdviceName | None,
        typer.Option(help="auto: what the scorer is good for.", rich_help_panel=_SEARCH),
    ] = None,
    preflight: Annotated[
        Path | None,
        typer.Option(
            help="auto: report of vprm-search preflight, to obey.", rich_help_panel=_SEARCH
        ),
    ] = None,
    selector: Annotated[
        options.SelectorName | None,
        typer.Option(help="Default: weighted-vote, or auto's own.", rich_help_panel=_SEARCH),
    ] = None,
    aggregate: Annotated[
        str | None,
        typer.Option(
            help="Path score: mean, last, min, product, …; default: the selector's and strategy's.",
            rich_help_panel=_SEARCH,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Makes all draws.", rich_help_panel=_SEARCH)] = 0,
    max_candidates: Annotated[int | None, typer.Option(rich_help_panel=_LIMITS)] = None,
    max_generated_tokens: Annotated[int | None, typer.Option(rich_help_panel=_LIMITS)] = None,
    max_scored_tokens: Annotated[int | None, typer.Option(rich_help_panel=_LIMITS)] = None,
    max_requests: Annotated[int | None, typer.Option(rich_help_panel=_LIMITS)] = None,
    max_rounds: Annotated[int | None, typer.Option(rich_help_panel=_LIMITS)] = None,
    max_seconds: Annotated[float | None, typer.Option(rich_help_panel=_LIMITS)] = None,
    prices: PriceFile = None,
    price_prompt: PricePrompt = None,
    price_generated: PriceGenerated = None,
    price_scored: PriceScored = None,
    price_image: PriceImage = None,
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
    """Search for the answer to a question, about images or not.

    Exits with 3 when no answer was found, be it that the policy's server cannot be reached.
    """
    console.check_place(html, png)
    beam: dict[str, Any] = {
        "width": width,
        "expand": expand,
        "max_depth": max_depth,
        "prune_below": prune_below,
        "prune_margin": prune_margin,
    }
    of_beam = (width, expand, prune_below, prune_margin, lookahead, strong)
    if strategy is None:
        told = any(option is not None for option in of_beam)
        strategy = options.StrategyName.beam if told else options.StrategyName.auto
    limits = {
        "candidates": max_candidates,
        "generated_tokens": max_generated_tokens,
        "scored_tokens": max_scored_tokens,
        "requests": max_requests,
        "rounds": max_rounds,
        "seconds": max_seconds,
    }
    price_list = read_prices(
        prices,
        prompt=price_prompt,
        generated=price_generated,
        scored=price_scored,
        image=price_image,
    )
    raw = judge = None
    if scorer != _NO_SCORER:
        raw = options.load_scorer(
            scorer, device, api_key=scorer_api_key, tokenizer=scorer_tokenizer
        )
        judge = options.calibrated(raw, calibration, calibration_policy)
    elif calibration is not None:
        raise ConfigError("--calibration maps scores, and --scorer none gives none")
    load = partial(
        options.load_policy,
        base_url=base_url,
        temperature=temperature,
        max_tokens_per_step=step_tokens,
        continuation=continuation.value,
        split=split,
    )
    from vprm_search.graph import create_search_graph
    from vprm_search.images.messages import image_message

    graph = create_search_graph(
        policy=load(policy) if strong is None else {"draft": load(policy), "strong": load(strong)},
        scorer=judge,
        strategy=options.strategy_of(
            strategy,
            {"n": n, **beam},
            setting or (),
            aggregate=aggregate,
            lookahead=lookahead,
            threshold=None if strong is None else threshold,
        ),
        selector=options.selector_of(selector, aggregate),
        advice=_advice(advice, preflight, raw),
        budget=options.checked(Budget, limits, {name: f"max-{name}" for name in limits}),
        run_seed=seed,
        split=split,
        image_store=MemoryImageStore(),
        candidates=True,
    )
    path_score = graph.search_nodes.loop.rules.selector.aggregate
    images = options.read_images(image)
    with console.ERR.status("searching") as status:

        def tell(event: dict[str, Any]) -> None:
            if event["event"] == "round":
                children = sum(item["count"] for item in event["expand"])
                status.update(f"round {event['round']}: {children} steps")

        asked = image_message(question, *images, choices=choice or ())
        searched = ask(graph.compile(), asked, system=system, on_event=tell)
    if searched.result.warning:
        warning = f"warning: {printable(searched.result.warning)}"
        console.ERR.print(warning, markup=False, soft_wrap=True)
    _show(searched, price_list, as_json=json, aggregate=path_score)
    _write(searched, images, html, png, path_score)
    if searched.result.answer is None:
        raise typer.Exit(console.NO_ANSWER)


def _advice(
    given: options.AdviceName | None, report: Path | None, scorer: StepScorer | None
) -> Advice | None:
    """Return the advice given, or that of a report. Raises `ConfigError` if they do not fit."""
    if report is None:
        return None if given is None else given.value
    from vprm_search.compare.preflight import PreflightReport

    if given is not None:
        raise ConfigError("--advice and --preflight both say how to search; leave one of them out")
    found = PreflightReport.load(report)
    identity = str(getattr(scorer, "identity", ""))
    if found.scorer != identity:
        raise ConfigError(
            f"{report} is about the scorer {found.scorer!r}, and this one is {identity!r}; check "
            "this one with vprm-search preflight"
        )
    return found.advice


def ask(
    graph: Any,
    question: HumanMessage,
    *,
    system: str = "",
    on_event: Callable[[dict[str, Any]], None] | None = None,
) -> SearchRun:
    """Ask a compiled search graph one question; `on_event` gets its custom stream's events."""
    from langchain_core.messages import SystemMessage

    from vprm_search.graph import tree_of_state
    from vprm_search.graph.run import SearchRun

    messages = [SystemMessage(system)] if system else []
    state: dict[str, Any] = {}
    asked = {"messages": [*messages, question]}
    for mode, chunk in graph.stream(asked, stream_mode=["custom", "values"]):
        if mode == "values":
            state = chunk
        elif on_event is not None:
            on_event(chunk)
    return SearchRun(SearchResult.from_json(state["search_result"]), tree_of_state(state))


def _show(searched: SearchRun, prices: Prices | None, *, as_json: bool, aggregate: str) -> None:
    usage = searched.result.usage
    if as_json:
        result, tree = searched.result.to_json(), searched.tree.to_json()
        cost = {} if prices is None else {"cost": cost_json(usage, prices)}
        console.print_json({"result": result, "tree": tree, **cost})
        return
    from vprm_search.report.view import answer_line, tree_view, view_of
    from vprm_search.search.outcome import ends_line

    view = view_of(searched.tree, searched.result, aggregate=aggregate, max_nodes=200)
    console.OUT.print(tree_view(view, width=max(40, console.OUT.width - 40)))
    console.OUT.print(answer_line(view))
    console.OUT.print(f"Paths: {ends_line(searched.tree)}", markup=False, style="dim")
    if prices is not None:
        console.OUT.print(cost_line(usage, prices), markup=False)


def _write(
    searched: SearchRun,
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
