"""`vprm-search solve`: search for the answer to one question about images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vprm_search.budget import Budget, Prices
from vprm_search.cli import console, options
from vprm_search.errors import ConfigError
from vprm_search.images.store import MemoryImageStore
from vprm_search.report.view import printable
from vprm_search.search import Advice
from vprm_search.types import SearchResult, Usage

if TYPE_CHECKING:
    from langchain_core.messages import HumanMessage

    from vprm_search.graph.run import SearchRun
    from vprm_search.search import Strategy
    from vprm_search.types import ImageData, StepScorer

_search = partial(typer.Option, rich_help_panel="Search")
_limit = partial(typer.Option, rich_help_panel="Limits")
_price = partial(typer.Option, rich_help_panel="Cost")
_output = partial(typer.Option, rich_help_panel="Output")
_NO_SCORER = "none"

PriceFile = Annotated[Path | None, _price("--prices", help="JSON file of prices (budget.Prices).")]


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceOptions:
    """What models cost."""

    prices: PriceFile = None
    price_prompt: Annotated[
        float | None, _price(help="Per million prompt tokens of the policy.")
    ] = None
    price_generated: Annotated[float | None, _price(help="Per million generated tokens.")] = None
    price_scored: Annotated[float | None, _price(help="Per million scored tokens.")] = None
    price_image: Annotated[float | None, _price(help="Per image the scorer encodes.")] = None

    def read(self) -> Prices | None:
        """Return the prices of a file, those given one by one instead of them; None without any.

        Raises `ConfigError` for a file that cannot be used or a price below 0.
        """
        flags = {
            "per_million_prompt_tokens": "price-prompt",
            "per_million_generated_tokens": "price-generated",
            "per_million_scored_tokens": "price-scored",
            "per_image": "price-image",
        }
        given = {name: getattr(self, flag.replace("-", "_")) for name, flag in flags.items()}
        known = {name: value for name, value in given.items() if value is not None}
        if self.prices is None and not known:
            return None
        listed = Prices()
        if self.prices is not None:
            try:
                listed = Prices.loads(self.prices.read_text(encoding="utf-8"), str(self.prices))
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(f"{self.prices} cannot be read: {error}") from error
        return options.checked(Prices, {**listed.model_dump(), **known}, flags)


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetOptions:
    """When a search ends."""

    max_candidates: Annotated[int | None, _limit()] = None
    max_generated_tokens: Annotated[int | None, _limit()] = None
    max_scored_tokens: Annotated[int | None, _limit()] = None
    max_requests: Annotated[int | None, _limit()] = None
    max_rounds: Annotated[int | None, _limit()] = None
    max_seconds: Annotated[float | None, _limit()] = None

    def budget(self) -> Budget:
        """Return the limits. Raises `ConfigError` for one out of range."""
        limits = {name.removeprefix("max_"): most for name, most in asdict(self).items()}
        return options.checked(Budget, limits, {name: f"max-{name}" for name in limits})


@dataclass(frozen=True, slots=True, kw_only=True)
class StrategyOptions:
    """How to search."""

    strategy: Annotated[
        options.StrategyName | None, _search(help="Default: auto; beam with an option of it.")
    ] = None
    n: Annotated[int | None, _search("--n", help="auto, best-of-n: solutions.")] = None
    width: Annotated[int | None, _search(help="beam: paths kept.")] = None
    expand: Annotated[int | None, _search(help="beam: steps per path.")] = None
    max_depth: Annotated[int | None, _search(help="Most steps of a path.")] = None
    prune_below: Annotated[float | None, _search(help="Least path score.")] = None
    prune_margin: Annotated[float | None, _search(help="Furthest below the best.")] = None
    setting: Annotated[
        list[str] | None,
        _search(
            "--set",
            metavar="NAME=VALUE",
            help="Any option of the strategy (subtrees=8, particles=32); repeatable.",
        ),
    ] = None
    lookahead: Annotated[int | None, _search(help="Judge steps by rollouts of so many steps.")] = (
        None
    )
    strong: Annotated[
        str | None,
        _search(
            metavar=options.POLICIES,
            help="Policy that redoes the steps of --policy that score below --threshold.",
        ),
    ] = None
    threshold: Annotated[
        float | None, _search(help="Least score of a step that --strong does not redo; 0.7.")
    ] = None

    def make(self, aggregate: str | None) -> Strategy:
        """Return the strategy; raises as `options.strategy_of`, and for a threshold of nothing."""
        if self.threshold is not None and self.strong is None:
            raise ConfigError(
                "--threshold is for --strong, which redoes the steps below it; name that policy, "
                "or use --prune-below to put weak paths aside"
            )
        threshold = 0.7 if self.threshold is None else self.threshold
        given = {name: getattr(self, name) for name in ("n", "max_depth")}
        names = ("width", "expand", "prune_below", "prune_margin")
        of_beam = {name: getattr(self, name) for name in names}
        told = (*of_beam.values(), self.lookahead, self.strong)
        default: options.StrategyName = "auto" if told == (None,) * len(told) else "beam"
        return options.strategy_of(
            self.strategy or default,
            given | of_beam,
            self.setting or (),
            aggregate=aggregate,
            lookahead=self.lookahead,
            threshold=None if self.strong is None else threshold,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SolveScorer(options.ScorerOptions):
    """Which reward model, if any."""

    scorer: Annotated[
        str,
        typer.Option(
            metavar=f"{options.SCORERS}|none",
            help="Reward model: the packaged one, a folder, a vLLM server (vllm:http://HOST:PORT), "
            "or none: the most frequent answer.",
        ),
    ] = "tiny"


def cost_json(usage: Usage, prices: Prices) -> dict[str, Any]:
    """Return what `usage` costs, as plain JSON."""
    return {"amount": usage.cost(prices), "currency": prices.currency}


def cost_line(usage: Usage, prices: Prices) -> str:
    """Return what `usage` costs, in words."""
    return f"Cost: {usage.cost(prices):.6g} {prices.currency}"


def solve(
    *,
    question: options.Question,
    image: options.Images = None,
    choice: Annotated[
        list[str] | None,
        typer.Option(help="Text of a choice of the question, A first; repeatable."),
    ] = None,
    system: Annotated[str, typer.Option(help="System prompt for the policy.")] = "",
    policy: options.PolicyOptions,
    split: options.Split = "exact",
    scorer: SolveScorer,
    calibration: options.CalibrationOptions,
    strategy: StrategyOptions,
    advice: Annotated[Advice | None, _search(help="auto: what the scorer is good for.")] = None,
    preflight: Annotated[
        Path | None, _search(help="auto: report of vprm-search preflight, to obey.")
    ] = None,
    selector: Annotated[
        options.SelectorName | None, _search(help="Default: weighted-vote, or auto's own.")
    ] = None,
    aggregate: Annotated[
        str | None,
        _search(
            help="Path score: mean, last, min, product, …; default: the selector's and strategy's."
        ),
    ] = None,
    seed: Annotated[int, _search(help="Makes all draws.")] = 0,
    limits: BudgetOptions,
    prices: PriceOptions,
    json: Annotated[bool, _output("--json", help="Print result and tree.")] = False,
    html: Annotated[Path | None, _output(help="Write a page.")] = None,
    png: Annotated[Path | None, _output(help="Write a picture.")] = None,
) -> None:
    """Search for the answer to a question, about images or not.

    Exits with 3 when no answer was found, be it that the policy's server cannot be reached.
    """
    console.check_place(html, png)
    price_list = prices.read()
    raw = judge = None
    if scorer.scorer != _NO_SCORER:
        raw = scorer.load(scorer.scorer)
        judge = calibration.around(raw)
    elif calibration.calibration is not None:
        raise ConfigError("--calibration maps scores, and --scorer none gives none")
    proposes: Any = options.load_policy(**policy.arguments, split=split)
    if strategy.strong is not None:
        strong = {**policy.arguments, "name": strategy.strong}
        proposes = {"draft": proposes, "strong": options.load_policy(**strong, split=split)}
    from vprm_search.graph import create_search_graph
    from vprm_search.images.messages import image_message

    graph = create_search_graph(
        policy=proposes,
        scorer=judge,
        strategy=strategy.make(aggregate),
        selector=options.selector_of(selector, aggregate),
        advice=_advice(advice, preflight, raw),
        budget=limits.budget(),
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


def _advice(given: Advice | None, report: Path | None, scorer: StepScorer | None) -> Advice | None:
    """Return the advice given, or that of a report. Raises `ConfigError` if they do not fit."""
    if report is None:
        return given
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
