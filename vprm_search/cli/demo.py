"""`vprm-search demo`: rendered problems, the packaged models, every way to use their scores."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import track
from rich.table import Table
from rich.text import Text

from vprm_search.cli import console, options
from vprm_search.cli.solve import ask
from vprm_search.images.store import MemoryImageStore
from vprm_search.search import AutoSearch, BestOfN, BestScore, MajorityVote, Selector, WeightedVote

if TYPE_CHECKING:
    from vprm_search.graph.run import SearchRun
    from vprm_search.tiny.world import TinyProblem
    from vprm_search.types import ImageData

FIRST_PROBLEM = 1_000_000
"""Demo problems are counted from here: test problems that no measurement uses."""
SAMPLES = 8
SEARCH = AutoSearch(n=SAMPLES)


@dataclass(frozen=True, slots=True)
class Solved:
    """One problem, sampled and searched."""

    problem: TinyProblem
    images: tuple[ImageData, ...]
    sampled: SearchRun
    searched: SearchRun

    def chosen_by(self, selector: Selector) -> bool:
        """Tell whether a selector takes a right answer among the samples."""
        tree = self.sampled.tree
        node = selector.select(tree, tree.finished()).node
        return node is not None and tree[node].answer == self.problem.answer

    @property
    def search_right(self) -> bool:
        """Whether the search found the right answer, on a path that finished."""
        result = self.searched.result
        return not result.fallback and result.answer == self.problem.answer

    @property
    def pruned_wrong_turns(self) -> int:
        """How many badly scored steps the search put aside (merged copies not counted)."""
        return sum(
            1
            for record in self.searched.tree
            if record.status == "pruned"
            and record.score is not None
            and record.score < 0.5
            and record.cause != "duplicate"
        )


@dataclass(slots=True)
class Tally:
    """Right answers and generated tokens of one method over all problems."""

    right: list[float] = field(default_factory=list)
    tokens: list[float] = field(default_factory=list)


def demo(
    problems: Annotated[int, typer.Option(min=3, max=600, help="How many problems.")] = 36,
    temperature: Annotated[float, typer.Option(min=0.0, help="Of the policy.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Makes all draws.")] = 0,
    out: Annotated[
        Path, typer.Option(help="Folder for the page and the picture of one search.")
    ] = Path("demo-output"),
) -> None:
    """Solve rendered visual-maths problems with the packaged models.

    Prints a table of methods, then one search as a tree, and writes its page and picture.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: the models are tiny
    out.mkdir(parents=True, exist_ok=True)  # fails now, not after the work
    solve_one = _solver(temperature, seed)
    console.OUT.print(
        Text(
            f"{problems} rendered problems, policy at T = {temperature:g}: {SAMPLES} samples each, "
            f"and a search of about their cost, both through the LangGraph search graph."
        )
    )
    watched = track(_draw(problems), "solving", console=console.ERR, transient=True)
    solved = [solve_one(problem) for problem in watched]
    console.OUT.print(results_table(solved))
    console.OUT.print(
        Text(
            "A few dozen problems show the direction only; docs/evaluation.md has the measurement."
        ),
        style="dim",
    )
    _show_search(shown_problem(solved), out)


def _draw(count: int) -> list[TinyProblem]:
    from vprm_search.tiny.world import FAMILIES, generate

    return [
        generate(FAMILIES[i % len(FAMILIES)], "test", FIRST_PROBLEM + i // len(FAMILIES))
        for i in range(count)
    ]


def _solver(temperature: float, seed: int) -> Callable[[TinyProblem], Solved]:
    """Return what solves one problem twice: by sampling and by search."""
    from vprm_search.graph import create_search_graph

    with console.ERR.status("loading the models"):
        policy = options.load_policy(options.TINY, temperature=temperature)
        scorer = options.load_scorer(options.TINY, "cpu")
    sample, search = (
        create_search_graph(
            policy=policy,
            scorer=scorer,
            strategy=strategy,
            selector=selector,
            run_seed=seed,
            image_store=MemoryImageStore(),
            candidates=True,
        ).compile()
        for strategy, selector in ((BestOfN(SAMPLES), BestScore()), (SEARCH, None))
    )

    def solve_one(problem: TinyProblem) -> Solved:
        from vprm_search.images.messages import image_message
        from vprm_search.images.normalise import normalise_image
        from vprm_search.tiny.world import render

        images = (normalise_image(render(problem)),)
        asked = image_message(problem.question, *images)
        return Solved(problem, images, ask(sample, asked), ask(search, asked))

    return solve_one


def tallies(solved: list[Solved]) -> dict[str, Tally]:
    """Return what each method got right and spent, per problem."""
    selectors: dict[str, Selector] = {
        f"self-consistency@{SAMPLES}": MajorityVote(),
        f"PRM best-of-{SAMPLES}": BestScore(),
        f"PRM weighted vote@{SAMPLES}": WeightedVote(aggregate="last"),
    }
    search_name = f"PRM search ({type(SEARCH).__name__})"
    found = {"policy alone (pass@1)": Tally(), **{name: Tally() for name in selectors}}
    found[search_name] = Tally()
    for item in solved:
        spent = item.sampled.result.usage.generated_tokens
        candidates = item.sampled.result.candidates
        ended = [c for c in candidates if c.status == "finished"]
        hits = sum(c.answer == item.problem.answer for c in ended)
        _add(found["policy alone (pass@1)"], hits / SAMPLES, spent / SAMPLES)
        for name, selector in selectors.items():
            _add(found[name], float(item.chosen_by(selector)), spent)
        _add(
            found[search_name],
            float(item.search_right),
            item.searched.result.usage.generated_tokens,
        )
    return found


def _add(tally: Tally, right: float, tokens: float) -> None:
    tally.right.append(right)
    tally.tokens.append(tokens)


def results_table(solved: list[Solved]) -> Table:
    """Return the accuracies with 95 % intervals, and the tokens generated per problem."""
    from vprm_search.compare.intervals import bootstrap

    table = Table(header_style="bold")
    table.add_column("method")
    table.add_column("right", justify="right")
    table.add_column("95 %", justify="right", style="dim")
    table.add_column("tokens / problem", justify="right")
    for name, tally in tallies(solved).items():
        share = bootstrap(tally.right)
        tokens = sum(tally.tokens) / len(tally.tokens)
        interval = f"{100 * share.low:.0f}-{100 * share.high:.0f} %"
        table.add_row(name, f"{100 * share.mean:.0f} %", interval, f"{tokens:.0f}")
    return table


def shown_problem(solved: list[Solved]) -> Solved:
    """Return the search that tells most: right where voting is wrong, with wrong turns pruned."""
    return max(
        solved,
        key=lambda item: (
            item.search_right,
            item.pruned_wrong_turns > 0,
            not item.chosen_by(MajorityVote()),
            -len(item.searched.tree),
        ),
    )


def _show_search(item: Solved, out: Path) -> None:
    from vprm_search.report.html import html_page
    from vprm_search.report.picture import png_picture
    from vprm_search.report.view import answer_line, tree_view, view_of

    majority = "right" if item.chosen_by(MajorityVote()) else "wrong"
    view = view_of(
        item.searched.tree,
        item.searched.result,
        title=f"{type(SEARCH).__name__} on {item.problem.id}",
        expected=item.problem.answer,
    )
    console.OUT.print()
    console.OUT.print(
        Text(f"{view.title} (self-consistency@{SAMPLES} is {majority} here)"), style="bold"
    )
    console.OUT.print(tree_view(view, width=60))
    console.OUT.print(answer_line(view))
    console.write_file(out / "search.html", html_page(view, item.images))
    console.write_file(out / "search.png", png_picture(view, item.images))
