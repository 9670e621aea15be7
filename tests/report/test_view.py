"""What the reports draw: every step once, parents before children, no two in one place."""

from __future__ import annotations

import io

from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.report.searches import child, ended, small_search, written_by
from vprm_search.images import normalise_image
from vprm_search.report.picture import png_picture
from vprm_search.report.view import SearchView, css, score_rgb, view_of
from vprm_search.tree import SearchTree
from vprm_search.types import Problem, SearchResult


@st.composite
def searches(draw: st.DrawFn) -> tuple[SearchTree, SearchResult]:
    """Random trees: each new node hangs on the root or on an open node."""
    tree = SearchTree(Problem("q"))
    parents = [tree.root_id]
    for round_number in range(draw(st.integers(0, 25))):
        parent = draw(st.sampled_from(parents))
        status = draw(st.sampled_from(("open", "open", "finished", "truncated", "pruned")))
        score = draw(st.none() | st.floats(0, 1))
        text = draw(st.sampled_from(("a", "b", "c")))
        count = tree.child_count(parent)
        record = child(tree, parent, count, text, status=status, score=score, round=round_number)
        tree.merge([record])
        if status == "open":
            parents.append(record.id)
    return tree, ended(tree)


def check(tree: SearchTree, view: SearchView) -> None:
    seen: dict[str, tuple[int, float]] = {}
    for node in view.nodes:
        assert node.id not in seen
        assert node.parent is None or node.parent in seen
        above = -1 if node.parent is None else seen[node.parent][0]
        assert node.column == above + 1
        assert 0 <= node.row < view.rows
        assert 0 <= node.column < view.columns
        seen[node.id] = (node.column, node.row)
    assert len(set(seen.values())) == len(seen)
    assert sum(n.copies for n in view.nodes) + view.hidden >= 0


@settings(max_examples=50)
@given(searches())
def test_every_step_is_drawn_once_or_counted_as_a_copy(
    search: tuple[SearchTree, SearchResult],
) -> None:
    tree, result = search
    view = view_of(tree, result)
    check(tree, view)
    assert view.hidden == 0
    assert sum(node.copies for node in view.nodes) == len(tree) - 1
    chosen = [node.id for node in view.nodes if node.chosen]
    expected = [] if result.node is None else [record.id for record in tree.path(result.node)]
    assert chosen == expected


@settings(max_examples=50)
@given(searches(), st.integers(1, 12))
def test_a_large_tree_is_cut_but_keeps_the_answer(
    search: tuple[SearchTree, SearchResult], limit: int
) -> None:
    tree, result = search
    whole, view = view_of(tree, result), view_of(tree, result, max_nodes=limit)
    check(tree, view)
    assert len(view.nodes) + view.hidden == len(whole.nodes)
    length = 0 if result.node is None else len(tree.path(result.node))
    assert len(view.nodes) <= max(limit, length)
    assert sum(node.chosen for node in view.nodes) == length


@settings(max_examples=12)
@given(searches())
def test_a_picture_is_a_png_as_large_as_its_tree(search: tuple[SearchTree, SearchResult]) -> None:
    view = view_of(*search)
    image = normalise_image(Image.new("RGB", (64, 64), (200, 10, 10)))
    with Image.open(io.BytesIO(png_picture(view, [image]))) as picture:
        picture.load()
        assert picture.format == "PNG"
        assert picture.width >= 296 * view.columns
        assert picture.height >= 56 * view.rows


def test_a_picture_shows_the_colours_of_its_scores() -> None:
    with Image.open(io.BytesIO(png_picture(view_of(*small_search())))) as picture:
        drawn = picture.convert("RGB").crop((0, 216, *picture.size))  # without the legend
        colours = {colour for _, colour in drawn.getcolors(1 << 20) or []}
    assert score_rgb(0.95) in colours
    assert score_rgb(0.90) in colours
    assert score_rgb(0.04) not in colours  # pruned steps are faded


def test_text_the_font_does_not_know_is_no_error() -> None:
    tree, result = written_by(["数学 \U0001f600 ∑ عربى"])
    assert png_picture(view_of(tree, result)).startswith(b"\x89PNG")


@given(st.floats(0, 1), st.floats(0, 1))
def test_a_higher_score_is_never_redder(low: float, high: float) -> None:
    low, high = sorted((low, high))
    assert score_rgb(high)[1] - score_rgb(high)[0] >= score_rgb(low)[1] - score_rgb(low)[0] - 1
    assert len(css(score_rgb(low))) == 7
