"""A search as one HTML file that needs nothing else: no server, no network, no library.

Everything a user or a model wrote is in one JSON block in which "<" cannot occur, and reaches the
page as text. The content security policy allows the page's own script and style by their hashes,
images only as data, and no connection at all.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from importlib import resources
from typing import Any

from vprm_search.report.view import UNKNOWN, SearchView, css, printable, score_rgb
from vprm_search.types import ImageData, NodeId

_UNFOLDED_ROWS = 40  # about two screens

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="referrer" content="no-referrer">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Search</title>
<style>{style}</style>
</head>
<body>
<header>
<div id="images"></div>
<div>
<h1 id="title"></h1>
<div id="question"></div>
<div id="answer"></div>
<div id="facts"></div>
</div>
</header>
<div id="bar"><span id="scale">P('+')</span><span class="soft">blue: the answer's path;
dashed: pruned; click a step to read its path</span><button id="fold" type="button" hidden></button>
<span class="soft" id="hidden"></span></div>
<main>
<div id="canvas"></div>
<aside><h2>Path</h2><p class="soft" id="where"></p><ol id="path"></ol></aside>
</main>
<section><h2>Candidates</h2><table><thead><tr><th>Answer</th><th>Path score</th><th>Votes</th>
<th>Status</th><th>P('+') of each step</th></tr></thead><tbody id="candidates"></tbody></table>
</section>
<noscript><p>This page draws the search with its own script, which is switched off.</p></noscript>
<script type="application/json" id="data">{data}</script>
<script>{script}</script>
</body>
</html>
"""


def html_page(view: SearchView, images: Sequence[ImageData] = ()) -> str:
    """Return the page that shows a search and its images."""
    here = resources.files("vprm_search.report")
    style = here.joinpath("viewer.css").read_text(encoding="utf-8")
    script = here.joinpath("viewer.js").read_text(encoding="utf-8")
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    data = escaped_json(page_data(view, images))
    return _PAGE.format(policy=policy, style=style, script=script, data=data)


def page_data(view: SearchView, images: Sequence[ImageData] = ()) -> dict[str, Any]:
    """Return what the page's script draws, as plain JSON; all text is made printable."""
    data: dict[str, Any] = _clean(asdict(view))
    folds = folded(view)
    for shown, node in zip(data["nodes"], view.nodes, strict=True):
        shown["colour"] = css(score_rgb(node.score))
        shown["fold"] = folds.get(node.id)
        if node.reading is not None:
            told = {"parts": list(map(_part, node.parts)), "source": node.reading.source}
            shown["reading"] = told
    for row, candidate in zip(data["candidates"], view.candidates, strict=True):
        row["said"] = printable(candidate.said, lines=True)
    data["images"] = [_data_uri(image) for image in images]
    data["facts"] = printable(_facts(view))
    scale = [(f"{value:.1f}", css(score_rgb(value))) for value in (0.0, 0.5, 1.0)]
    data["scale"] = [*scale, ("unknown", css(UNKNOWN))]
    return data


def _part(text: str) -> str:
    """Return a part of a text made printable, with one sign of the white space at its ends."""
    shown = printable(text, lines=True)
    ends = [text[: len(text) - len(text.lstrip())], text[len(text.rstrip()) :] if shown else ""]
    first, last = ("\n" if "\n" in end else " " * bool(end) for end in ends)
    return first + shown.strip() + last


def folded(view: SearchView) -> dict[NodeId, NodeId]:
    """Return the steps that a large page hides at first, each with the parent it is folded into.

    Folded are subtrees in which every path ends pruned or failed, two steps at least under one
    parent ("" for first steps), in a page of more than 40 rows. The answer's path is never folded.
    """
    if view.rows <= _UNFOLDED_ROWS:
        return {}
    parents = {node.parent for node in view.nodes}
    alive: set[NodeId | None] = set()
    for node in reversed(view.nodes):  # children come before their parents here
        goes_on = node.id not in parents and node.status not in ("pruned", "failed")
        if node.id in alive or node.chosen or goes_on:
            alive |= {node.id, node.parent}
    folds: dict[NodeId, NodeId] = {}
    for node in view.nodes:
        if node.id not in alive:
            above = node.parent or ""
            folds[node.id] = folds.get(above, above)
    sizes = Counter(folds.values())
    return {node: parent for node, parent in folds.items() if sizes[parent] > 1}


def escaped_json(data: Any) -> str:
    """Return JSON that can stand inside a script element: ASCII without "<", ">" and "&"."""
    text = json.dumps(data, ensure_ascii=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _clean(value: Any) -> Any:
    """Make every text in a JSON value printable; line breaks stay."""
    if isinstance(value, str):
        return printable(value, lines=True)
    if isinstance(value, dict):
        return {key: _clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(item) for item in value]
    return value


def _data_uri(image: ImageData) -> str:
    return "data:image/png;base64," + base64.b64encode(image.png).decode("ascii")


def _hash(source: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode("ascii")


def _facts(view: SearchView) -> str:
    spent = view.usage
    score = "" if view.score is None else f"path score ({view.aggregate}) {view.score:.2f} · "
    return (
        f"{score}{view.ended_by} · {spent.rounds} rounds · {spent.candidates} "
        f"candidates · {spent.generated_tokens} tokens generated · {spent.scored_tokens} scored"
        + (f" · {spent.work()}" if spent.work() else "")
    )
